"""The queue edge: Celery's whole treaty in `app`, one event loop a process in `loop`, tasks of three lines in `tasks`."""
