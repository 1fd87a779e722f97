"""What a caller reads of a job: its status and its results."""
