"""The report of a labeling run: its figures, drift against earlier runs, sample faces, the page."""
