"""Data sets of labeled faces: layouts, splits, votes, duplicates, arrays."""
