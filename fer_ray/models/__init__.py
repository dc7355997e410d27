"""Emotion networks: architectures, bundles on disk, calibration, ensembles, export."""
