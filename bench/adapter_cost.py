"""`python -m bench.adapter_cost`: what each adapter's own code costs beside OpenAI's, in CPU.

Same texts, same vectors, same number of inputs. One exchange is what a call runs of an adapter: `request`, `sign` where
the account signs, `parse_reply`, and the checks of every reply. Replies are the fakes', made beforehand; nothing is
sent. A shard is packed as a job packs it, so a provider that takes fewer inputs at once makes more calls. Rounds go
through all rows in turn, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from bench.machine import describe_machine
from bench.measure import Spread, significant
from bench.report import table, tell
from bench.texts import texts
from engine.config.settings import Settings
from engine.planning import packing
from models.embedding import Account, Batch, Options, Route
from providers import PROVIDERS
from providers.base import UpstreamReply, check_embedded
from providers.fake import FakeUpstream
from providers.fake.formats import fake_format

WIDTH = 1024
SPACE = "bench"
SHARD_INPUTS = 1024
BATCH_INPUTS = Settings().batch_inputs
MIN_ROUND_S = 0.02  # of CPU: the clock ticks finer than that
NOW = 1_700_000_000.0
IAM = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "not-a-secret"}
Exchange = tuple[Batch, UpstreamReply]


@dataclass(frozen=True, slots=True)
class Row:
    """An adapter, and what its account and its model are."""

    name: str
    kind: str
    model: str = "bench"
    encoding: str = "base64"
    is_signed: bool = False


ROWS = (
    Row("openai", "openai"),
    Row("openai, floats", "openai", encoding="float"),
    Row("cohere", "cohere"),
    Row("google", "google", "gemini-embedding-001"),
    Row("bedrock, Titan", "bedrock", "amazon.titan-embed-text-v2:0"),
    Row("bedrock, Titan, signed", "bedrock", "amazon.titan-embed-text-v2:0", is_signed=True),
    Row("tei", "tei"),
    Row("ollama", "ollama"),
)
BASE = ROWS[0]
FLOATS_BASE = ROWS[1]


class Case:
    """All calls that a row needs for some texts, with their replies."""

    def __init__(self, row: Row, inputs: Sequence[str]) -> None:
        wire = fake_format(row.kind)
        fake = FakeUpstream(width=WIDTH, wire_format=wire, space=SPACE)
        key, secrets = (None, IAM) if row.is_signed else ("sk-bench", {})
        url = f"http://fake{wire.base_path}"
        settings = {"region": "us-east-1"} if row.kind == "bedrock" else {}
        account = Account("bench", row.kind, url, key, settings=settings, secrets=secrets, encoding=row.encoding)
        self.provider = PROVIDERS[row.kind]
        limits = self.provider.traits_of(row.model).limits
        self.route = Route(account, row.model, WIDTH, limits, Decimal(0), encoding=row.encoding)
        most = replace(limits, inputs_per_call=min(limits.inputs_per_call, BATCH_INPUTS))
        batches = packing.pack(inputs, range(len(inputs)), most, WIDTH, Options())
        self.exchanges: list[Exchange] = []
        for batch in batches:
            reply = fake.answer(self.provider.request(batch, self.route), NOW).reply
            if reply.status != 200:
                raise SystemExit(f"{row.name}: the fake answers {reply.status}: {reply.body[:200]!r}")
            self.exchanges.append((batch, reply))

    @property
    def reply_bytes(self) -> int:
        return sum(len(reply.body) for _, reply in self.exchanges)

    def run(self) -> Iterator[Any]:
        """Run the adapter's part of each call; the vectors of each."""
        provider, route = self.provider, self.route
        for batch, reply in self.exchanges:
            request = provider.request(batch, route)
            if provider.traits.is_signed:
                provider.sign(request, route, NOW)
            embedded = provider.parse_reply(reply, batch, route)
            check_embedded(embedded, embedded.vectors, batch, route)
            yield embedded.vectors

    def cpu_ms(self) -> float:
        """CPU of one pass through all calls, the mean of as many as make a measurable time."""
        passes, began = 0, time.process_time()
        while (took_s := time.process_time() - began) < MIN_ROUND_S or passes == 0:
            for _ in self.run():
                pass
            passes += 1
        return took_s / passes * 1000


def measure(inputs: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """All rows with these inputs: CPU in all, per call and per input, and its ratio to OpenAI's."""
    cases = {row: Case(row, inputs) for row in ROWS}
    expected = [block.tobytes() for block in cases[BASE].run()]
    for row, case in cases.items():
        if b"".join(block.tobytes() for block in case.run()) != b"".join(expected):
            raise SystemExit(f"{row.name}: its vectors are not those of {BASE.name}")
    times: dict[Row, list[float]] = {row: [] for row in ROWS}
    for _ in range(rounds):
        for row, case in cases.items():
            times[row].append(case.cpu_ms())
    spreads = {row: Spread.of(values) for row, values in times.items()}
    return [
        {
            "adapter": row.name,
            "inputs": len(inputs),
            "calls": len(cases[row].exchanges),
            "cpu_ms": spread,
            "cpu_us_per_call": spread.median * 1000 / len(cases[row].exchanges),
            "cpu_us_per_input": spread.median * 1000 / len(inputs),
            "ratio_to_openai": spread.median / spreads[BASE].median,
            "ratio_to_openai_floats": spread.median / spreads[FLOATS_BASE].median,
            "reply_bytes": cases[row].reply_bytes,
        }
        for row, spread in spreads.items()
    ]


def main() -> int:
    """Measure, print, and keep the figures in bench/results/adapter-cost.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapter_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--label", default="adapter-cost", help="name under bench/results; empty: nothing is kept")
    given = parser.parse_args()
    machine = describe_machine()
    cases = {
        "sync call of 1 input": 1,
        "sync call of 32 inputs": 32,
        f"part of a shard, {SHARD_INPUTS} inputs": SHARD_INPUTS,
    }
    results = {name: measure(texts(count), given.rounds) for name, count in cases.items()}
    heads = ["adapter", "inputs", "calls", "CPU-ms", "CPU-µs/call", "CPU-µs/input", "÷ openai", "÷ floats", "bytes"]
    for name, rows in results.items():
        cells = [[significant(cell) if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
        print(f"\n## {name}, vectors of {WIDTH}\n\n{table(heads, cells)}")
    tell({"machine": machine, "width": WIDTH, "rounds": given.rounds, "cases": _plain(results)}, given.label or None)
    return 0


def _plain(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        name: [
            {
                key: {"median": cell.median, "low": cell.low, "high": cell.high} if isinstance(cell, Spread) else cell
                for key, cell in row.items()
            }
            for row in rows
        ]
        for name, rows in results.items()
    }


if __name__ == "__main__":
    sys.exit(main())
