"""Dry run: the inputs, tokens, calls and cost of a corpus as a job. No upstream call is made, no row is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from engine.config.settings import Settings
from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest.job_intake import INLINE_BYTES
from engine.jobs.ingest.sharding import JobSpec, Sharder
from engine.jobs.ingest.token_counting import Method, TokenTotal
from engine.jobs.recording import refused_inputs
from engine.jobs.shard_draft import ShardDraft
from engine.ledger.call_cost import cost_of
from engine.planning import packing
from engine.planning.templates import added_bytes
from engine.process.work_threads import WorkThreads
from models.base import PICODOLLAR, usd_text
from models.embedding import Route


class DryRun:
    """Counts the lines of a corpus. It has the same methods as a JobIntake. Memory stays bounded."""

    def __init__(self, settings: Settings, work: WorkThreads, method: Method, spec: JobSpec, project: str) -> None:
        self._work = work
        self._method = method
        self._project = project
        self._spec = spec
        self._sharder = Sharder(settings, spec)
        self._limits = packing.limits_of(spec.alias.routes, inputs_per_call=settings.batch_inputs)
        self._inputs = 0
        self._errors: list[dict[str, Any]] = []
        self._refused = 0
        self._duplicates = 0
        self._tokens, self._duplicate_tokens = TokenTotal(method), TokenTotal(method)
        self._calls = 0

    async def add(self, lines: ParsedRecords) -> None:
        """Count parsed lines."""
        await self.read(iter([lines]))

    async def read(self, chunks: Iterator[ParsedRecords], *, size: int | None = None, buffered_bytes: int = 0) -> None:
        """Count lines while the iterator parses them: in the work threads, unless they are few bytes."""

        def steps() -> Iterator[None]:
            for lines in chunks:
                for draft in self._sharder.feed(lines):
                    self._count(draft)
                yield

        if size is not None and size <= INLINE_BYTES and self._method.is_quick:
            for _ in steps():
                pass
            return
        async for _ in self._work.drive(self._project, steps()):
            pass

    async def finish(self) -> dict[str, Any]:
        """The estimate as the JSON object of the API."""
        await self._work.run(self._project, lambda: self._count(self._sharder.end()))
        alias = self._spec.alias
        tokens, duplicate_tokens = self._tokens.total, self._duplicate_tokens.total
        seconds = quota_bound_seconds(alias.routes, self._calls, tokens)
        return {
            "object": "embedding.job.estimate",
            "model": alias.name,
            "space": alias.space,
            "dimensions": self._spec.width,
            "inputs": self._inputs,
            "usable_inputs": self._inputs - self._refused,
            "refused_inputs": self._refused,
            "duplicates": self._duplicates,
            "errors": self._errors,
            "tokens": tokens,
            "tokens_margin": self._tokens.margin,
            "estimated": not self._method.is_exact or self._tokens.is_sampled,
            "calls": self._calls,
            "cost_usd": self._price(tokens),
            "cost_usd_with_duplicates": self._price(tokens + duplicate_tokens),
            "eta_seconds": None if seconds is None else round(seconds),
            **self._cost_limit_fields(tokens + self._tokens.margin),
        }

    def _count(self, draft: ShardDraft) -> None:
        inputs = [item for item in draft.lines.inputs if item is not None]
        self._inputs += len(draft)
        self._refused += draft.refused
        self._duplicates += len(draft.duplicates)
        self._errors = refused_inputs.add_to_summary(self._errors, refused_inputs.refused_rows("", draft))
        self._calls += sum(
            1
            for _ in packing.pack(
                inputs,
                range(len(inputs)),
                self._limits,
                self._spec.width,
                self._spec.options,
                added_bytes=added_bytes(self._spec.alias.routes, self._spec.options),
            )
        )
        self._tokens.add(inputs)
        self._duplicate_tokens.add(draft.duplicate_inputs)

    def _cost_limit_fields(self, upper_bound: int) -> dict[str, Any]:
        """The job's cost limit, and whether so many tokens stay below it; null without a limit."""
        max_cost_usd = self._spec.max_cost_usd
        if max_cost_usd is None:
            return {"max_cost_usd": None, "within_max_cost": None}
        return {"max_cost_usd": usd_text(max_cost_usd), "within_max_cost": self._usd(upper_bound) <= max_cost_usd}

    def _price(self, count: int) -> str:
        return usd_text(self._usd(count))

    def _usd(self, count: int) -> Decimal:
        # By the price of the first route, which all calls take while it is available.
        alias = self._spec.alias
        first = min(alias.routes, key=lambda route: route.priority)
        return cost_of(count, first).quantize(PICODOLLAR)


def quota_bound_seconds(routes: Sequence[Route], calls: int, tokens: int) -> float | None:
    """Seconds that a job needs by the quotas of all routes together; None where a route has no quota."""
    quotas = {(route.provider, route.upstream_model): route.account for route in routes}.values()
    requests_per_minute = [account.requests_per_minute for account in quotas]
    tokens_per_minute = [account.tokens_per_minute for account in quotas]
    bounds = [
        amount / sum(known) * 60
        for amount, limits in ((calls, requests_per_minute), (tokens, tokens_per_minute))
        if len(known := [limit for limit in limits if limit]) == len(limits)
    ]
    return max(bounds) if bounds else None
