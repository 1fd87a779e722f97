"""What this process knows of each route: one state for each account and upstream model."""
