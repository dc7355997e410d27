"""What the labels of published data sets mean, and those of anybody's: numbers and codes to emotions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fer_ray.emotions import EMOTIONS, emotion_of
from fer_ray.errors import UsageError

LEFT_OUT = ""  # what a label means whose images are no data: uncertain, no face, none of the emotions
_FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _numbered(names: Sequence[str], start: int = 0) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names, start)}


PRESETS: Mapping[str, Mapping[str, str]] = {
    # Goodfellow et al. 2013, arXiv 1307.0414
    "fer2013": _numbered(_FER2013),
    # Zhang et al. 2018, arXiv 1609.06426
    "expw": _numbered(_FER2013),
    # ckextended.csv of Kaggle: CK+ with the numbers of FER-2013, and contempt
    "ckextended": _numbered((*_FER2013, "contempt")),
    # Lucey et al. 2010, doi 10.1109/CVPRW.2010.5543262
    "ckplus": _numbered(("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")),
    # Li et al. 2017, doi 10.1109/CVPR.2017.277
    "rafdb": _numbered(("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"), 1),
    # Mollahosseini et al. 2017, arXiv 1708.03985; 8 to 10 are none, uncertain, no face
    "affectnet": _numbered(("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt", *[LEFT_OUT] * 3)),
    # Lundqvist et al. 1998; codes in the names of the files
    "kdef": {"AF": "fear", "AN": "angry", "DI": "disgust", "HA": "happy", "NE": "neutral", "SA": "sad", "SU": "surprise"},
    # Lyons et al. 1998, doi 10.5281/zenodo.3451524
    "jaffe": {"AN": "angry", "DI": "disgust", "FE": "fear", "HA": "happy", "NE": "neutral", "SA": "sad", "SU": "surprise"},
}


def parse_label_names(given: Sequence[str]) -> dict[str, str]:
    """The emotion of each label; LEFT_OUT for labels whose images are left out.

    Args:
        given: the name of a preset, or emotions in the order of labels numbered from 0, or LABEL=EMOTION each; LABEL= leaves out.

    Raises:
        UsageError: an emotion that is none, or the ways are mixed.
    """
    if len(given) == 1 and given[0].lower() in PRESETS:
        return dict(PRESETS[given[0].lower()])
    pairs = [text.rpartition("=") if "=" in text else (str(number), "", text) for number, text in enumerate(given)]
    if len({"=" in text for text in given}) > 1:
        raise UsageError("The setting label_names takes emotions in the order of the labels from 0, or LABEL=EMOTION for each, not both.")
    names: dict[str, str] = {}
    for label, _, name in pairs:
        emotion = emotion_of(name) if name.strip() else LEFT_OUT
        if emotion is None:
            known = f"{', '.join(EMOTIONS)}, LABEL= to leave one out, or one of the data sets {', '.join(PRESETS)}"
            raise UsageError(f"The setting label_names has {name!r}: it takes {known}.")
        names[plain_label(label)] = emotion
    return names


def plain_label(text: str) -> str:
    """A label without what files write around it: ` 3.0000000e+00` is 3, `AN ` is AN."""
    text = text.strip().strip("'\"")
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text
