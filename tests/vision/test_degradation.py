from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_ray.errors import UsageError
from fer_ray.typing import UInt8Array
from fer_ray.vision import degradation


def portrait(photographs: dict[str, Path], flags: int) -> UInt8Array:
    image = np.asarray(cv2.imread(str(photographs["astronaut"]), flags))
    return np.asarray(cv2.resize(image[60:220, 145:305], (48, 48), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.mark.parametrize("flags", [cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR])
def test_every_condition_changes_what_it_says_and_leaves_the_rest(photographs: dict[str, Path], flags: int) -> None:
    face = portrait(photographs, flags)
    of = {name: degradation.degraded(face[None], name)[0] for name in degradation.CONDITIONS}
    assert all(changed.shape == face.shape and changed.dtype == np.uint8 for changed in of.values())
    assert np.array_equal(of["clean"], face)
    assert 9 < np.std(of["noise 10"].astype(float) - face) < 11
    detail = [cv2.Laplacian(of[name], cv2.CV_64F).var() for name in ("clean", "24 px", "16 px")]
    assert detail == sorted(detail, reverse=True) and detail[2] < detail[0] / 4
    assert np.array_equal(of["mask"][:20], face[:20]) and np.ptp(of["mask"][34:38, 12:36]) == 0
    assert np.array_equal(of["noise 10"], degradation.degraded(face[None], "noise 10")[0]), "another call would judge other pixels"


def test_motion_smears_along_its_angle_alone() -> None:
    stripes = np.repeat(np.tile(np.array([0, 255], np.uint8), 24)[None], 48, axis=0)
    assert np.array_equal(degradation.motion_blur(stripes, 7, 90), stripes)
    assert degradation.motion_blur(stripes, 7, 0)[:, 8:-8].std() < stripes.std() / 4


@pytest.mark.parametrize(("what", "strength"), [("noise", 65), ("jpeg", 0), ("downscale", 49), ("gamma", 0)])
def test_a_strength_out_of_range_is_told_in_a_sentence(what: str, strength: int) -> None:
    more = (np.random.default_rng(0),) if what == "noise" else ()
    with pytest.raises(UsageError, match=f"takes .* not {strength}"):
        getattr(degradation, what)(np.zeros((48, 48), np.uint8), strength, *more)
