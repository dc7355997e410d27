"""`fer-ray tune` for `ray job submit --working-dir . -- python jobs/tune.py`."""

from _run import run

run("tune")
