"""The verbs: plan, route, send, check, keep and read. Knows neither FastAPI nor Celery."""
