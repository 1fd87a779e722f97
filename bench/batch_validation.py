"""`python -m bench.batch_validation`: how fast the input file of a batch is validated, and what memory that takes.

Each case has a process and a SQLite database of its own. The file has one input a line, as OpenAI's clients write it;
`repeated ids`: half of the lines repeat the custom_id of the line before, so that the file is read twice. The inline
form is a body of 200 MB that arrives in pieces of 64 KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from bench.machine import describe_machine
from bench.report import tell
from bench.texts import text_of
from bench.transport_cases import peak_mb, reset_peak
from engine.access.keys import Caller
from engine.batches.batch_request import BatchRequest, check_request
from engine.batches.composition import step_parts_of
from engine.batches.create import insert_batch, new_batch_id
from engine.batches.steps import claim_step
from engine.batches.submit import ArrivingBody, submit_batch
from engine.batches.submit_parts import submit_parts_of
from engine.batches.validate import validate_batch
from engine.config.settings import Settings
from engine.corpus.lines import IdentityDecoder
from engine.files.composition import files_of
from engine.files.idempotency import reserve_key
from engine.files.write import store_file
from engine.runtime import Runtime
from engine.storage.database import migrate
from engine.webhooks.targets import TargetPolicy

CONFIG = """
[providers.fake]
kind = "fake"
[models.bench]
dimensions = 1536
routes = [{ provider = "fake", model = "up" }]
"""
CALLER = Caller("key", "bench", frozenset())
PIECE_BYTES = 64 * 1024
INLINE_REQUESTS, INLINE_INPUTS = 5000, 300
CASES = {
    "100,000 lines": ("file", 100_000, False),
    "1,000,000 lines": ("file", 1_000_000, False),
    "1,000,000 lines, repeated ids": ("file", 1_000_000, True),
    "inline, 5,000 requests": ("inline", INLINE_REQUESTS, False),
}


def _line(number: int, custom_id: int) -> bytes:
    body = {"model": "bench", "input": text_of(number), "encoding_format": "float"}
    line = {"custom_id": f"request-{custom_id}", "method": "POST", "url": "/v1/embeddings", "body": body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


async def _file(count: int, *, repeats: bool) -> AsyncIterator[bytes]:
    for low in range(0, count, 1000):
        yield b"".join(_line(number, number // 2 if repeats else number) for number in range(low, low + 1000))


async def _body() -> AsyncIterator[bytes]:
    yield b'{"model":"bench","endpoint":"/v1/embeddings","requests":['
    for number in range(INLINE_REQUESTS):
        texts = [text_of(number * INLINE_INPUTS + place) for place in range(INLINE_INPUTS)]
        item = (b"," if number else b"") + orjson.dumps({"custom_id": str(number), "body": {"input": texts}})
        for low in range(0, len(item), PIECE_BYTES):
            yield item[low : low + PIECE_BYTES]
    yield b"]}"


async def _nothing() -> None:
    return None


async def _create_from_file(runtime: Runtime, count: int, *, repeats: bool) -> int:
    file = await store_file(
        files_of(runtime),
        project=CALLER.project,
        key_id=CALLER.key_id,
        purpose="batch",
        filename="in.jsonl",
        chunks=_file(count, repeats=repeats),
        max_bytes=1 << 40,
        expires_after_s=None,
    )
    request = BatchRequest(endpoint="/v1/embeddings", input_file_id=file.id, completion_window="24h")
    spec = check_request(request, runtime.settings, is_inline=False)
    async with runtime.database.write() as connection:
        await insert_batch(
            connection, CALLER, new_batch_id(), spec, input_file_id=file.id, is_inline=False, request_id="bench"
        )
    return int(file.bytes)


async def _create_inline(runtime: Runtime) -> int:
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in _body():
            sent += len(piece)
            yield piece

    body = ArrivingBody(counted(), IdentityDecoder(), lambda: None, _nothing)
    reserved = await reserve_key(runtime.store, CALLER.project, None, new_id=new_batch_id)
    parts = submit_parts_of(runtime, TargetPolicy())
    await submit_batch(parts, CALLER, body, reserved, is_retry=False, request_id="bench")
    return sent


async def _measure(kind: str, count: int, *, repeats: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        config = data_dir / "embedmill.toml"
        config.write_text(CONFIG)
        settings = Settings(data_dir=data_dir, config=str(config))
        await asyncio.to_thread(migrate, settings.sqlalchemy_url)
        runtime = Runtime.open(settings)
        try:
            reset_peak()
            before_mb, began_s = peak_mb(), time.perf_counter()
            size = await (
                _create_inline(runtime) if kind == "inline" else _create_from_file(runtime, count, repeats=repeats)
            )
            result: dict[str, Any] = {"lines": count, "mb": size / 1e6, "rss_before_mb": before_mb}
            if kind == "inline":
                result |= {
                    "accept_mb_per_s": size / 1e6 / (time.perf_counter() - began_s),
                    "accept_peak_rss_mb": peak_mb(),
                }
            reset_peak()
            step = await claim_step(runtime.store, "bench")
            assert step is not None
            began_s, cpu_s = time.perf_counter(), time.process_time()
            await validate_batch(step_parts_of(runtime), step)
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        finally:
            await runtime.close()
    return result | {
        "validated_lines_per_s": count / took_s,
        "validated_lines_per_cpu_s": count / cpu_s,
        "validation_peak_rss_mb": peak_mb(),
    }


def main() -> int:
    """Measure, print, and keep the figures in bench/results/batch-validation.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch_validation", description=__doc__)
    parser.add_argument("--label", default="batch-validation", help="name under bench/results; empty: nothing is kept")
    parser.add_argument("--case", choices=CASES, help="measure one case in this process, for the others")
    options = parser.parse_args()
    if options.case:
        kind, count, repeats = CASES[options.case]
        print(json.dumps(asyncio.run(_measure(kind, count, repeats=repeats))))
        return 0
    machine = describe_machine()
    cases = {}
    for name in CASES:
        command = [sys.executable, "-m", "bench.batch_validation", "--case", name]
        cases[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    tell({"machine": machine, "cases": cases}, options.label or None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
