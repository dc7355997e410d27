"""`fer-ray train` for `ray job submit --working-dir . -- python jobs/train.py`."""

from _run import run

run("train")
