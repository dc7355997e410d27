"""The search for hyperparameters: Ray Tune over trials that are training jobs."""
