"""The endpoints of bulk jobs: submit, poll, read results, control."""
