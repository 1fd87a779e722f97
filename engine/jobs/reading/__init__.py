"""What a caller reads of a job: status and results."""
