"""From a script in this folder to its job, with a sentence where the environment is missing."""

import sys
from typing import NoReturn


def run(name: str) -> NoReturn:
    """Run one job of `fer-ray` with this process's arguments."""
    try:
        from fer_ray.cli.main import main
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: This Python lacks {error.name}: run `make .venv/ready` once, then .venv/bin/fer-ray {name}.\n")
        sys.exit(2)
    main([name, *sys.argv[1:]])
