"""The gateway's logic: plan, route, pace, call, check, record, read. Only engine/queue knows Celery."""
