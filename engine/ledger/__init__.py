"""Usage rows: what each call costs."""
