"""Celery worker: Celery's settings in `app`, one event loop per process in `loop`, three-line tasks in `tasks`."""
