"""`fer-ray label` for `ray job submit --working-dir . -- python jobs/label.py`."""

from _run import run

run("label")
