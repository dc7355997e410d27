"""From the bytes of an image to face crops; no models of emotion, no Ray."""
