"""The demo photographs: public-domain pictures that scikit-image and matplotlib carry."""

import datetime
from importlib.util import find_spec
from pathlib import Path

from fer_ray.errors import UsageError
from fer_ray.schema import ImageEntry

INPUT = "demo photographs"
OUTPUT = "demo"
PICTURE_IMAGES = 6
_FILES = {
    "skimage": ("data/astronaut.png", "data/camera.png", "data/chelsea.png", "data/coffee.png"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}


def images() -> list[ImageEntry]:
    """The photographs as manifest entries.

    Raises:
        UsageError: the packages that carry them are not installed.
    """
    entries = []
    for package, files in _FILES.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(f"The demo photographs need the package {package}: pip install 'fer-ray[demo]', or give --input.")
        for file in files:
            path = Path(spec.submodule_search_locations[0]) / file
            found = path.stat()
            entries.append(ImageEntry(str(path), found.st_size, datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)))
    return sorted(entries, key=lambda entry: entry.image_uri)
