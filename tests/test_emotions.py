"""Emotions go by many names."""

import pytest

from fer_ray.emotions import emotion_of


@pytest.mark.parametrize(
    ("spelling", "emotion"),
    [
        ("Angry", "angry"),
        ("01-anger", "angry"),
        ("5 Suprised", "surprise"),
        ("natural", "neutral"),
        ("Contempt", "contempt"),
        ("fearful", "fear"),
        ("sad-images", "sad"),
        ("happy_faces", "happy"),
        ("angry (1)", "angry"),
        ("7", None),
        ("not happy", None),
        ("happy or sad", None),
        ("hungry", None),
    ],
)
def test_emotions_are_known_in_the_spellings_of_other_data_sets(spelling: str, emotion: str | None) -> None:
    assert emotion_of(spelling) == emotion
