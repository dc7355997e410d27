"""Films as containers of frames: what they are, their frames by the time they are shown, and faces followed from frame to frame."""
