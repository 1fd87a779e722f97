"""Parasail's openai-batch: its Batch class from a file of requests to the downloaded files.

Runs in an environment of its own. Prints one JSON object: what ran. Requests are not added by `add_to_batch`: in
version 0.3.4 it closes the file that `submit` reads then, whatever the server.
"""

from __future__ import annotations

import json
import sys
from array import array
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai_batch import Batch
from openai_batch.batch import BatchType
from openai_batch.providers import Provider

TEXTS = [f"text {number}" for number in range(60)]


def request(number: int, text: str) -> dict[str, Any]:
    body = {"model": "tiny", "input": text}
    return {"custom_id": f"line-{number + 1}", "method": "POST", "url": "/v1/embeddings", "body": body}


def run(base_url: str, key: str, folder: Path) -> dict[str, Any]:
    requests = folder / "requests.jsonl"
    requests.write_text("".join(f"{json.dumps(request(n, text))}\n" for n, text in enumerate([*TEXTS, "poison"])))
    names = {"output_file": folder / "output.jsonl", "error_file": folder / "errors.jsonl"}
    provider = Provider(name="ours", base_url=base_url, api_key=key)
    with Batch(requests, **names, provider=provider) as batch:
        batch.batch_type = BatchType.EMBEDDING
        statuses: list[str] = []
        ended, output, errors = batch.submit_wait_download(
            interval=0.2, metadata={"by": "openai-batch"}, status_callback=lambda each: statuses.append(each.status)
        )
    assert ended.status == "completed" and statuses[-1] == "completed", statuses
    lines = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"line-{number + 1}" for number in range(60)]
    sync = OpenAI(api_key=key, base_url=base_url).embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    vectors = [array("f", line["response"]["body"]["data"][0]["embedding"]) for line in lines]
    assert vectors == [array("f", item.embedding) for item in sync.data]
    (failure,) = [json.loads(line) for line in Path(errors).read_text().splitlines()]
    assert failure["custom_id"] == "line-61" and failure["response"]["status_code"] == 400
    return {"ran": "Batch.submit_wait_download: 61 requests, one of them refused"}


if __name__ == "__main__":
    result = run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    print(json.dumps(result))
