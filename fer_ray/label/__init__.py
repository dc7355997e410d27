"""The labeling job: a Ray Data job from images to published Parquet tables."""
