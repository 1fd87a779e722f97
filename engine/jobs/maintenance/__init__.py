"""Periodic maintenance, in any number of processes: recovery after crashes, removal of expired rows."""
