"""`fer-ray evaluate` for `ray job submit --working-dir . -- python jobs/evaluate.py`."""

from _run import run

run("evaluate")
