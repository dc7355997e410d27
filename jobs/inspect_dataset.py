"""`fer-ray inspect` for `ray job submit --working-dir . -- python jobs/inspect_dataset.py`."""

from _run import run

run("inspect")
