"""What a caller does to a job: pause, resume, cancel, delete, retry."""
