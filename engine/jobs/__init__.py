"""A bulk job by phase of life: submit, dispatch, claim, run, record, finish, read, end, sweep."""
