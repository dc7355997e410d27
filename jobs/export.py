"""`fer-ray export` for `ray job submit --working-dir . -- python jobs/export.py`."""

from _run import run

run("export")
