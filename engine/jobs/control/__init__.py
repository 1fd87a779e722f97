"""Actions of a caller on a job: pause, resume, cancel, delete, retry."""
