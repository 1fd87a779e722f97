"""The Celery task. A message only says that there is work; the database says which."""

from __future__ import annotations

from engine.jobs.execution.message_handler import handle_message
from engine.queue.broker import RUN_SHARD
from workers import loop
from workers.app import app


@app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
def run_shard(shard_id: str) -> None:
    """Handle the announcement of a shard."""
    loop_thread = loop.current()
    loop_thread.run(handle_message(loop_thread.runtime, str(shard_id), loop_thread.worker))
