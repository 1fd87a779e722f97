"""Bulk jobs: ingest, scheduling, leasing, execution, recording, control, reading and maintenance."""
