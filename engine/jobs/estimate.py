"""Estimate: what a corpus would become as a job, and what it would cost. Nothing is sent, and no row is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from engine import planning, tokens
from engine.corpus import Lines
from engine.jobs.budget import MILLION
from engine.jobs.cutting import Cut, Cutter, Wanted
from engine.jobs.finish import tally
from engine.runtime import Runtime
from models.base import PICODOLLAR, usd_text
from models.embedding import Input, Route


class Estimate:
    """Takes the lines of a corpus in, as an Intake does, and counts. Memory stays flat."""

    def __init__(self, runtime: Runtime, wanted: Wanted) -> None:
        self._wanted = wanted
        self._cutter = Cutter(runtime.settings, wanted)
        self._limits = planning.limits_of(wanted.alias.routes, inputs_per_call=runtime.settings.batch_inputs)
        self._exact = all(tokens.is_exact_for(route) for route in wanted.alias.routes)
        self._inputs = 0
        self._errors: list[dict[str, Any]] = []
        self._refused = 0
        self._duplicates = 0
        self._tokens = 0
        self._duplicate_tokens = 0
        self._calls = 0

    async def add(self, lines: Lines) -> None:
        async for cut in self._cutter.feed(lines):
            await self._count(cut)

    async def finish(self) -> dict[str, Any]:
        """The estimate as the contract shows it."""
        await self._count(await self._cutter.rest())
        alias = self._wanted.alias
        seconds = seconds_by_quota(alias.routes, self._calls, self._tokens)
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
            "tokens": self._tokens,
            "estimated": not self._exact,
            "calls": self._calls,
            "cost_usd": self._price(self._tokens),
            "cost_usd_with_duplicates": self._price(self._tokens + self._duplicate_tokens),
            "eta_seconds": None if seconds is None else round(seconds),
        }

    async def _count(self, cut: Cut) -> None:
        inputs = [item for item in cut.lines.inputs if item is not None]
        self._inputs += len(cut)
        self._refused += len(cut.lines.errors)
        self._duplicates += len(cut.twins)
        self._errors = tally(
            self._errors, {cut.first_index + position: error for position, error in cut.lines.errors.items()}
        )
        self._calls += sum(
            1 for _ in planning.pack(inputs, range(len(inputs)), self._limits, self._wanted.width, self._wanted.options)
        )
        # The tokenizer takes its time, and lets the event loop have the processor meanwhile.
        counted, of_twins = await asyncio.to_thread(lambda: (_tokens_of(inputs), _tokens_of(cut.twin_inputs)))
        self._tokens += counted
        self._duplicate_tokens += of_twins

    def _price(self, count: int) -> str:
        # By the first route, which all calls take while it is fit.
        alias = self._wanted.alias
        first = min(alias.routes, key=lambda route: route.priority)
        return usd_text((Decimal(count) * first.usd_per_million_tokens / MILLION).quantize(PICODOLLAR))


def _tokens_of(inputs: Sequence[Input]) -> int:
    return sum(map(tokens.count, inputs))


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
