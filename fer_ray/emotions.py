"""The emotions, and how people spell them."""

import re

EMOTIONS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
UNKNOWN = "unknown"  # what a face is called whose likeliest emotion is not likely enough
# For boxes, charts and legends, everywhere the same; warm for high arousal, cool for low.
EMOTION_COLORS = {
    "angry": "#d7263d",
    "contempt": "#8a5a2b",
    "disgust": "#5b8c2a",
    "fear": "#7b3fa0",
    "happy": "#f5b700",
    "neutral": "#8d99ae",
    "sad": "#2f6fbf",
    "surprise": "#f2762e",
    UNKNOWN: "#c9ced6",
}

_SPELLINGS = {
    "angry": ("anger",),
    "contempt": ("contemptuous",),
    "disgust": ("disgusted", "disgusting"),
    "fear": ("feared", "fearful", "afraid", "scared"),
    "happy": ("happiness", "joy", "joyful"),
    "neutral": ("neutrality", "natural"),
    "sad": ("sadness",),
    "surprise": ("surprised", "suprise", "suprised", "surprize", "surprized"),
}
_EMOTION_OF = {spelling: emotion for emotion, others in _SPELLINGS.items() for spelling in (emotion, *others)}


# What else stands in the names of folders: sad-images, happy_faces, "angry (1)", "Copy of fear".
_DECORATIONS = {"copy", "emotion", "expression", "face", "faces", "image", "images", "imgs", "of", "photos", "pictures"}


def emotion_of(name: str) -> str | None:
    """The canonical emotion for a spelling such as `Angry`, `happiness`, `01-anger` or `sad_images`; None when it names no emotion."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in _DECORATIONS]
    return _EMOTION_OF.get(words[0]) if len(words) == 1 else None
