"""A few images labeled in processes beside this one, as where nobody has started Ray; other tests of this process may have."""

from typing import Any

import pytest

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.label import job


def label_without_ray(config: LabelConfig) -> tuple[dict[str, Any], int]:
    """What `label` does with few images: most tests ask for what is the same with Ray, which takes several times as long."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "are_few", lambda run, images, few: True)
        return job.label(config)
