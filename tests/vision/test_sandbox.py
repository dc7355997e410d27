"""Images that end, hold or fill the process that looks at them become reasons, and those beside them stay as they are."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from sites import DEADLY, with_site

from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.errors import ImageError
from fer_ray.vision.sandbox import SLOW_SECONDS, SandboxLimits, TimeBudget, sift


def test_each_image_is_tried_alone_within_limits_of_time_and_memory(
    photographs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", with_site(tmp_path)["PYTHONPATH"])
    hopper = photographs["grace_hopper"].read_bytes()
    unread = ImageError("unreadable", "The file cannot be read (AccessDenied).")
    images: list[bytes | ImageError] = [
        hopper,
        hopper + b"SLEEPY",
        b"no image",
        hopper + b"POISON",
        unread,
        hopper + b"SLEEPY",
        hopper,
    ]
    limits = SandboxLimits(seconds=6.0, seconds_together=26.0, memory_bytes=1 << 30)
    found = list(sift(images, LabelingOptions(), limits))
    found.extend(sift([hopper + b"HUNGRY"], LabelingOptions(), SandboxLimits(memory_bytes=1 << 30)))
    assert re.fullmatch(r"The image takes more than [\d.]+ s to decode, and there was no more beside the others: .*", str(found.pop(5)))
    assert [str(one) if isinstance(one, ImageError) else one for one in found] == [
        hopper,
        "The image takes more than 6 s to decode.",
        b"no image",
        "The image ended the process that decoded it.",
        str(unread),
        hopper,
        "The image takes more than 1.1 GB of memory to decode.",
    ]
    assert [one.status for one in found if isinstance(one, ImageError)] == ["undecodable"] * 2 + ["unreadable", "undecodable"]


def test_a_decoder_is_stopped_in_the_middle_of_its_work() -> None:
    """Decoders are C, which hears no exception: only the end of their process stops them."""
    with io.BytesIO() as buffer:
        Image.effect_noise((3000, 3000), 80).save(buffer, "PNG")
        content = buffer.getvalue()
    (stopped,) = sift([content], LabelingOptions(), SandboxLimits(seconds=0.02, least_seconds=0.02))
    assert isinstance(stopped, ImageError)


def test_what_slow_images_take_of_a_part_is_bounded_and_sound_ones_lose_nothing_by_each_other() -> None:
    limits = SandboxLimits()
    for images, at_most in ((16, 240), (512, 540)):
        budget, lost = TimeBudget(limits.seconds, limits.seconds_together, limits.least_seconds), 0.0
        for _ in range(images):
            lost += budget.seconds()
            budget.spend(budget.seconds())
        assert lost < at_most
    budget = TimeBudget(limits.seconds, limits.seconds_together, limits.least_seconds)
    for _ in range(512):
        budget.spend(SLOW_SECONDS - 0.1)
    assert budget.seconds() == limits.seconds
