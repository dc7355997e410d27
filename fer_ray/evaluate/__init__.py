"""The evaluation job: figures, pictures and a page about models on labeled faces."""
