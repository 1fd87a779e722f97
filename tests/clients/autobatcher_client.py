"""autobatcher's BatchOpenAI: single embeddings calls that it gathers into batches. Runs in an environment of its own.

Prints one JSON object: what ran, and whether each vector is that of the same text in a sync call.
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from typing import Any

from autobatcher import BatchOpenAI
from openai import AsyncOpenAI

CALLS = 120


async def run(base_url: str, key: str) -> dict[str, Any]:
    events: list[str] = []
    client = BatchOpenAI(
        api_key=key,
        base_url=base_url,
        batch_size=50,
        batch_window_seconds=0.2,
        poll_interval_seconds=0.2,
        batch_metadata={"by": "autobatcher"},
        batch_event_handler=lambda event: events.append(event["event"]),
    )
    texts = [f"text {number}" for number in range(CALLS)]
    embed = client.embeddings.create
    calls = [embed(model="tiny", input=text) for text in texts]
    poison = asyncio.ensure_future(embed(model="tiny", input="poison"))
    replies = await asyncio.gather(*calls)
    failure = (await asyncio.gather(poison, return_exceptions=True))[0]
    await client.close()
    sync = await AsyncOpenAI(api_key=key, base_url=base_url).embeddings.create(
        model="tiny", input=texts, encoding_format="float"
    )
    same = [array("f", reply.data[0].embedding) for reply in replies] == [array("f", i.embedding) for i in sync.data]
    assert same, "vectors of the batch differ from those of sync calls"
    # This client reads no error file: a refused request is one without a result.
    assert isinstance(failure, Exception), failure
    assert events.count("batch_completed") == events.count("batch_submitted") >= 3, events
    return {"ran": f"{CALLS} calls of BatchOpenAI.embeddings.create in {events.count('batch_submitted')} batches"}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:3]))))
