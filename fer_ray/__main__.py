"""`python -m fer_ray` is `fer-ray`."""

from fer_ray.cli.main import main

if __name__ == "__main__":
    main()
