"""The broker: notifications to workers, and which processes are alive."""
