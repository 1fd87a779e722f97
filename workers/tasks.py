"""What a message may ask for. A message says where to look; the database says what there is to do."""

from __future__ import annotations

from engine.jobs.execution.message_handler import handle_message
from engine.queue.broker import RUN_SHARD
from workers import loop
from workers.app import app


@app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
def run_shard(shard_id: str) -> None:
    loop_thread = loop.current()
    loop_thread.run(handle_message(loop_thread.runtime, str(shard_id), loop_thread.worker))
