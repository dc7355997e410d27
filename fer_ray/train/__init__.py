"""The training job: a Ray Train job whose workers run one loop."""
