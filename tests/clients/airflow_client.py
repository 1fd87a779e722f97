"""Airflow's OpenAI provider: operators, hook and trigger as a worker and a triggerer run them.

Runs in an environment of its own, with AIRFLOW_CONN_OPENAI_DEFAULT set. Prints one JSON object: what ran.
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.providers.openai.exceptions import OpenAIBatchJobException
from airflow.providers.openai.hooks.openai import OpenAIHook
from airflow.providers.openai.operators.openai import OpenAIEmbeddingOperator, OpenAITriggerBatchOperator

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "hello"}}


def operator(file_id: str, **fields: Any) -> OpenAITriggerBatchOperator:
    return OpenAITriggerBatchOperator(task_id="batch", file_id=file_id, endpoint="/v1/embeddings", timeout=60, **fields)


def run_deferred(file_id: str) -> dict[str, Any]:
    """The event of the trigger: execute() defers, the triggerer runs the trigger as it was serialized."""
    task = operator(file_id, deferrable=True, poll_interval=0.2, metadata={"by": "airflow"})
    try:
        task.execute({})
    except TaskDeferred as deferred:
        path, fields = deferred.trigger.serialize()
        assert path == "airflow.providers.openai.triggers.openai.OpenAIBatchTrigger"
        trigger = type(deferred.trigger)(**fields)
    else:
        raise AssertionError("the operator did not defer")

    async def first_event() -> dict[str, Any]:
        event = await anext(trigger.run())
        payload: dict[str, Any] = event.payload
        return payload

    return asyncio.run(first_event())


def run(folder: Path) -> dict[str, Any]:
    hook = OpenAIHook()
    assert hook.test_connection()[0], hook.test_connection()
    (folder / "good.jsonl").write_text(json.dumps(LINE) + "\n")
    (folder / "bad.jsonl").write_text(json.dumps({**LINE, "url": "/v1/other"}) + "\n")
    good = hook.upload_file(str(folder / "good.jsonl"), purpose="batch")
    bad = hook.upload_file(str(folder / "bad.jsonl"), purpose="batch")

    event = run_deferred(good.id)
    assert event["status"] == "success", event
    batch_id = operator(good.id).execute_complete({}, event)
    batch = hook.get_batch(batch_id)
    assert batch.status == "completed" and batch.metadata == {"by": "airflow"}, batch
    output = json.loads(hook.conn.files.content(batch.output_file_id).text)
    sync = OpenAIEmbeddingOperator(task_id="sync", conn_id="openai_default", input_text="hello", model="tiny").execute(
        {}
    )
    assert array("f", output["response"]["body"]["data"][0]["embedding"]) == array("f", sync)

    failed = run_deferred(bad.id)
    assert failed["status"] == "error", failed
    try:
        operator(bad.id).execute_complete({}, failed)
    except OpenAIBatchJobException:
        pass
    else:
        raise AssertionError("a failed batch did not fail the task")

    waited = operator(good.id, deferrable=False, wait_seconds=0.2).execute({})
    assert waited is not None and hook.get_batch(waited).status == "completed"
    started = operator(good.id, deferrable=False, wait_for_completion=False)
    started.execute({})
    started.on_kill()  # cancels, whatever the batch is doing
    return {"ran": "OpenAITriggerBatchOperator deferred, waiting and killed; a failing batch; OpenAIEmbeddingOperator"}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[3]))))
