"""Estimate: what a corpus would become as a job, and what it would cost. Nothing is sent, and no row is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest.job_intake import INLINE_BYTES
from engine.jobs.ingest.sharding import JobSpec, Sharder
from engine.jobs.ingest.token_counting import Method, TokenTotal, method_for
from engine.jobs.recording import refused_ranges
from engine.jobs.shard_draft import ShardDraft
from engine.ledger.billing import MILLION
from engine.planning import packing
from engine.runtime import Runtime
from models.base import PICODOLLAR, usd_text
from models.embedding import Route


class Estimate:
    """Takes the lines of a corpus in, as an Intake does, and counts. Memory stays flat."""

    def __init__(self, runtime: Runtime, wanted: JobSpec, project: str) -> None:
        self._runtime = runtime
        self._project = project
        self._wanted = wanted
        self._cutter = Sharder(runtime.settings, wanted)
        self._limits = packing.limits_of(wanted.alias.routes, inputs_per_call=runtime.settings.batch_inputs)
        self._inputs = 0
        self._errors: list[dict[str, Any]] = []
        self._refused = 0
        self._duplicates = 0
        self._method: Method | None = None
        self._tokens: TokenTotal | None = None
        self._duplicate_tokens: TokenTotal | None = None
        self._calls = 0

    async def add(self, lines: ParsedRecords) -> None:
        await self.read(iter([lines]))

    async def read(self, pieces: Iterator[ParsedRecords], *, size: int | None = None, held_bytes: int = 0) -> None:
        """Count the lines of these pieces, parsed on the way: in the work threads, unless they are few bytes."""

        method = await self._choose_method()

        def steps() -> Iterator[None]:
            for lines in pieces:
                for cut in self._cutter.feed(lines):
                    self._count(cut)
                yield

        if size is not None and size <= INLINE_BYTES and method.is_quick:
            for _ in steps():
                pass
            return
        async for _ in self._runtime.work.drive(self._project, steps()):
            pass

    async def finish(self) -> dict[str, Any]:
        """The estimate as the contract shows it."""
        method = await self._choose_method()
        await self._runtime.work.run(self._project, lambda: self._count(self._cutter.end()))
        alias = self._wanted.alias
        assert self._tokens is not None and self._duplicate_tokens is not None
        counted, again = self._tokens.total, self._duplicate_tokens.total
        seconds = seconds_by_quota(alias.routes, self._calls, counted)
        return {
            "object": "embedding.job.estimate",
            "model": alias.name,
            "space": alias.space,
            "dimensions": self._wanted.width,
            "inputs": self._inputs,
            "usable_inputs": self._inputs - self._refused,
            "refused_inputs": self._refused,
            "duplicates": self._duplicates,
            "errors": self._errors,
            "tokens": counted,
            "tokens_margin": self._tokens.margin,
            "estimated": not method.is_exact or self._tokens.is_sampled,
            "calls": self._calls,
            "cost_usd": self._price(counted),
            "cost_usd_with_duplicates": self._price(counted + again),
            "eta_seconds": None if seconds is None else round(seconds),
            **self._of_ceiling(counted + self._tokens.margin),
        }

    async def _choose_method(self) -> Method:
        if self._method is None:
            self._method = await method_for(self._runtime, self._wanted.alias, self._project)
            self._tokens, self._duplicate_tokens = TokenTotal(self._method), TokenTotal(self._method)
        return self._method

    def _count(self, cut: ShardDraft) -> None:
        assert self._tokens is not None and self._duplicate_tokens is not None
        inputs = [item for item in cut.lines.inputs if item is not None]
        self._inputs += len(cut)
        self._refused += cut.refused
        self._duplicates += len(cut.twins)
        self._errors = refused_ranges.tally(self._errors, refused_ranges.rows_of("", cut))
        self._calls += sum(
            1 for _ in packing.pack(inputs, range(len(inputs)), self._limits, self._wanted.width, self._wanted.options)
        )
        self._tokens.add(inputs)
        self._duplicate_tokens.add(cut.twin_inputs)

    def _of_ceiling(self, upper_bound: int) -> dict[str, Any]:
        """The job's ceiling, and whether so many tokens keep to it; null where it has none."""
        ceiling = self._wanted.max_cost_usd
        if ceiling is None:
            return {"max_cost_usd": None, "within_max_cost": None}
        return {"max_cost_usd": usd_text(ceiling), "within_max_cost": self._usd(upper_bound) <= ceiling}

    def _price(self, count: int) -> str:
        return usd_text(self._usd(count))

    def _usd(self, count: int) -> Decimal:
        # By the first route, which all calls take while it is fit.
        alias = self._wanted.alias
        first = min(alias.routes, key=lambda route: route.priority)
        return (Decimal(count) * first.usd_per_million_tokens / MILLION).quantize(PICODOLLAR)


def seconds_by_quota(routes: Sequence[Route], calls: int, counted: int) -> float | None:
    """How long the quotas alone hold a job up, that uses all of them at once; None where a route has none."""
    quotas = {(route.provider, route.upstream_model): route.account for route in routes}.values()
    requests_per_minute = [account.requests_per_minute for account in quotas]
    tokens_per_minute = [account.tokens_per_minute for account in quotas]
    bounds = [
        amount / sum(known) * 60
        for amount, limits in ((calls, requests_per_minute), (counted, tokens_per_minute))
        if len(known := [limit for limit in limits if limit]) == len(limits)
    ]
    return max(bounds) if bounds else None
