#!/bin/sh
# One night under cron: runs a command, and tells of every night that did not end well, also of those that the command
# itself cannot tell of: skipped, since the night before is still at work, timed out, killed, or not started at all.
#
#     FER_RAY_ALARM=/opt/alarm.sh deploy/nightly.sh .venv/bin/fer-ray label --input s3://photos --output s3://tables
#
# FER_RAY_STATE    folder of the lock and of the output of this night and the last (default: /var/lib/fer_ray)
# FER_RAY_TIMEOUT  after this the night is ended, as `timeout` takes it (default: 20h)
# FER_RAY_ALARM    shell command that is given {"status", "exit_code", "reason"} as JSON on its standard input
# FER_RAY_METRICS  file that Prometheus' node_exporter collects, such as /var/lib/node_exporter/fer_ray.prom
#
# The exit code is the command's own; 75 for a night that was skipped, 124 for one that timed out, 137 where it had to be killed.
set -u
state=${FER_RAY_STATE:-/var/lib/fer_ray} limit=${FER_RAY_TIMEOUT:-20h} log=
mkdir -p "$state" || exit 1

# A sentence as the inside of a JSON string.
quoted() { printf '%s' "$1" | tr -d '\000-\037' | cut -c1-1000 | iconv -c -f UTF-8 -t UTF-8 | sed 's/[\\"]/\\&/g'; }

# tell STATUS EXIT_CODE REASON, where the reason is quoted
tell() {
  echo "night $1: $3" >&2
  [ -z "${FER_RAY_ALARM:-}" ] ||
    printf '{"status": "%s", "exit_code": %d, "reason": "%s"}\n' "$1" "$2" "$3" | timeout 60 sh -c "$FER_RAY_ALARM" ||
    echo "FER_RAY_ALARM did not end well" >&2
}

# gauge NAME VALUE HELP
gauge() { [ -z "$2" ] || printf '# HELP %s %s\n# TYPE %s gauge\n%s %s\n' "$1" "$3" "$1" "$1" "$2"; }

# A number of the summary, which is the last line of what the command prints; nothing where it has none.
of_summary() { tail -n 1 "$log" | sed -n 's/^{.*"'"$1"'": \(-\{0,1\}[0-9][0-9.e+-]*\).*/\1/p'; }

metrics() {
  gauge fer_ray_night_exit_code "$code" "exit code of the last night"
  gauge fer_ray_night_finished_timestamp_seconds "$now" "when the last night ended"
  gauge fer_ray_night_committed_timestamp_seconds "$(cat "$state/committed" 2>/dev/null)" "when a night last committed a run"
  gauge fer_ray_night_seconds "$((now - begun))" "how long the last night took"
  gauge fer_ray_night_images "$(of_summary images_total)" "images of the last night"
  gauge fer_ray_night_faces "$(of_summary faces_total)" "faces of the last night"
  gauge fer_ray_night_error_share "$(of_summary error_share)" "share of the images of the last night that failed"
  gauge fer_ray_night_drift_psi "$(of_summary drift_psi)" "how far the emotions moved in the last night"
}

exec 9>"$state/lock"
if ! flock --nonblock 9; then
  tell skipped 75 "The night was skipped: the one before is still at work."
  exit 75
fi
log=$state/night.log
[ ! -e "$log" ] || mv "$log" "$log.1"
begun=$(date +%s)
timeout --kill-after=60 "$limit" "$@" >"$log" 2>&1
code=$? now=$(date +%s)
case $code in
  0 | 3) echo "$now" >"$state/committed" ;; # 3: committed, and too much of it failed or moved
esac
case $code in
  0) ;;
  124) tell timed_out 124 "The night was ended after $limit: the same line again goes on with it." ;;
  137) tell killed 137 "The night was killed, after $limit or for want of memory: the same line again goes on with it." ;;
  *)
    # The reason in the summary, else the last line that says what is wrong, else the last line.
    reason=$(tail -n 1 "$log" | sed -n 's/^{.*"reason": "\(\([^"\\]\|\\.\)*\)".*/\1/p')
    tell failed "$code" "${reason:-$(quoted "$( (grep '^error: ' "$log" || grep -v '^{' "$log") | tail -n 1)")}"
    ;;
esac
if [ -n "${FER_RAY_METRICS:-}" ]; then
  metrics >"$FER_RAY_METRICS.new" && mv "$FER_RAY_METRICS.new" "$FER_RAY_METRICS"
fi
exit "$code"
