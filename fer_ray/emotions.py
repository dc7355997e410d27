"""The emotions, and how people spell them."""

EMOTIONS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")

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


def emotion_of(name: str) -> str | None:
    """The canonical emotion for a spelling such as `Angry`, `happiness` or `01-anger`; None when it names no emotion."""
    return _EMOTION_OF.get(name.strip().lower().lstrip("0123456789").strip(" ._-"))
