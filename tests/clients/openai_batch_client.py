"""Parasail's openai-batch: its Batch class from the first request to the downloaded files.

Runs in an environment of its own. Prints one JSON object: what ran.
"""

from __future__ import annotations

import json
import sys
from array import array
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai_batch import Batch
from openai_batch.providers import Provider

TEXTS = [f"text {number}" for number in range(60)]


def run(base_url: str, key: str, folder: Path) -> dict[str, Any]:
    names = {"output_file": folder / "output.jsonl", "error_file": folder / "errors.jsonl"}
    provider = Provider(name="ours", base_url=base_url, api_key=key)
    with Batch(folder / "requests.jsonl", **names, provider=provider) as batch:
        for text in [*TEXTS, "poison"]:
            batch.add_to_batch(model="tiny", input=text)
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
    return {"ran": "Batch.add_to_batch and submit_wait_download: 61 requests, one of them refused"}


if __name__ == "__main__":
    result = run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    print(json.dumps(result))
