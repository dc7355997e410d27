"""What each job can be told, checked; one class of options a job."""
