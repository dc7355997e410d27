"""What each job can be told."""
