"""Emotion labels for image archives, at scale, on Ray."""
