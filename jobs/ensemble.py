"""`fer-ray ensemble` for `ray job submit --working-dir . -- python jobs/ensemble.py`."""

from _run import run

run("ensemble")
