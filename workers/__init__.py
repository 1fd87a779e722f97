"""The queue edge: Celery's treaty in `app`, one event loop a process in `loop`, three-line tasks in `tasks`."""
