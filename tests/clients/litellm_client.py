"""LiteLLM as a client of files and batches. Runs in an environment of its own. Prints one JSON object: what ran."""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import litellm

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "hello"}}
END_S = 60


def run(base_url: str, key: str) -> dict[str, Any]:
    access: dict[str, Any] = {"custom_llm_provider": "openai", "api_base": base_url, "api_key": key}
    content = io.BytesIO(json.dumps(LINE).encode() + b"\n")
    content.name = "requests.jsonl"
    file = litellm.create_file(file=content, purpose="batch", **access)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/embeddings", input_file_id=file.id, metadata={"by": "litellm"}, **access
    )
    gives_up_at = time.monotonic() + END_S
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < gives_up_at, batch
        time.sleep(0.05)
        batch = litellm.retrieve_batch(batch_id=batch.id, **access)
    assert batch.status == "completed", batch
    output = json.loads(litellm.file_content(file_id=batch.output_file_id, **access).content)
    assert output["custom_id"] == "a" and len(output["response"]["body"]["data"][0]["embedding"]) == 16
    listed = litellm.list_batches(limit=5, **access)
    assert batch.id in [each.id for each in listed.data]
    assert litellm.file_delete(file_id=file.id, **access).deleted
    return {"ran": "create_file, create_batch, retrieve_batch, file_content, list_batches, file_delete"}


if __name__ == "__main__":
    result = run(*sys.argv[1:3])
    print(json.dumps(result))
