"""The names of the tables: emotions, statuses and (below) the pyarrow schemas of everything written."""

EMOTIONS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")

_SPELLINGS = {
    "angry": ("anger",),
    "contempt": ("contemptuous",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid", "scared"),
    "happy": ("happiness", "joy"),
    "neutral": (),
    "sad": ("sadness",),
    "surprise": ("surprised",),
}
_EMOTION_OF = {spelling: emotion for emotion, others in _SPELLINGS.items() for spelling in (emotion, *others)}


def emotion_of(name: str) -> str | None:
    """The canonical emotion for a spelling such as `Angry`, `anger` or `happiness`; None when it names no emotion."""
    return _EMOTION_OF.get(name.strip().lower())
