"""The Celery task. A message only says that there is work; the database says which."""

from __future__ import annotations

from engine.queue.broker import RUN_SHARD
from workers import loop
from workers.app import app


@app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
def run_shard() -> None:
    """Run the shard that is next by fair share, if any is due."""
    loop_thread = loop.current()
    loop_thread.run(loop_thread.worker.run_next())
