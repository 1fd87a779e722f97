"""Token counts of dry runs: by the model's tokenizer where it is available, else by ratios learned from replies.

A small corpus is tokenized in full. Of a large one, the beginning and then one input in sixteen is tokenized; the rest
is estimated by its bytes, with a margin of error.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from engine.planning import packing, token_estimator, tokens
from engine.routing.router import Router
from engine.storage.database import Database
from engine.upstream.call import Upstream
from models.embedding import Alias, Input
from models.job import Job, JobStatus, Shard

COUNTED_BYTES = 4 * 1024 * 1024
SAMPLE_ONE_IN = 16
RECENT_JOBS, MAX_JOBS_READ = 5, 100
Count = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Method:
    """How texts are counted, and whether the upstream counts the same."""

    count: Count
    is_exact: bool
    needs_sampling: bool = True
    is_quick: bool = True  # False: the first count loads a model


async def method_for(database: Database, upstream: Upstream, router: Router, alias: Alias, project: str) -> Method:
    """The most exact method for the alias's routes. Raises StorageUnavailable."""
    routes = alias.routes
    if packing.has_exact_tokenizer(routes):
        return Method(_cl100k, is_exact=True)
    if all(route.account.kind == "local" for route in routes):
        return Method(upstream.count_local, is_exact=True, is_quick=False)
    per_byte = router.mean_tokens_per_byte(alias) or await _tokens_per_byte_of_jobs(database, alias, project)
    if per_byte is not None:
        learned = per_byte

        def by_bytes(texts: Sequence[str]) -> list[int]:
            return [max(1, round(token_estimator.utf8_bytes(text) * learned)) for text in texts]

        return Method(by_bytes, is_exact=False, needs_sampling=False)
    return Method(_cl100k, is_exact=False)


def _cl100k(texts: Sequence[str]) -> list[int]:
    return [tokens.count(text) for text in texts]


async def _tokens_per_byte_of_jobs(database: Database, alias: Alias, project: str) -> float | None:
    """Tokens per byte in the project's latest completed jobs of this alias; None without one.

    A shard's estimate is a third of its bytes. Jobs of other projects are left out: their texts may be different.
    """
    latest = (
        select(Job.id, Job.alias, Job.prompt_tokens, Job.usage_estimated)
        .where(Job.project == project, Job.status == JobStatus.COMPLETED)
        .order_by(Job.id.desc())
        .limit(MAX_JOBS_READ)
        .subquery()
    )
    usable = (
        select(latest.c.id, latest.c.prompt_tokens)
        .where(latest.c.alias == alias.name, latest.c.usage_estimated.is_(False), latest.c.prompt_tokens > 0)
        .limit(RECENT_JOBS)
    )
    async with database.read() as connection:
        rows = (await connection.execute(usable)).all()
        if not rows:
            return None
        estimated = (
            await connection.execute(select(func.sum(Shard.tokens)).where(Shard.job_id.in_([row.id for row in rows])))
        ).scalar_one()
    counted_tokens = sum(row.prompt_tokens for row in rows)
    return counted_tokens / (float(estimated) * 3) if estimated else None


class TokenTotal:
    """The tokens of one corpus, added in chunks. `margin`: bound of the error of `total` in 19 of 20 cases."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._chance = random.Random(
            0
        )  # random, so that no pattern of the corpus, such as every third line being long, biases the sample
        self._counted_bytes = 0
        self._total = 0.0
        # Of the sampled part: inputs and bytes of all, and sums over the counted ones.
        self._all, self._all_bytes = 0, 0
        self._n = 0
        self._t = self._b = self._tt = self._bb = self._tb = 0.0

    def add(self, inputs: Sequence[Input]) -> None:
        """Count these inputs, or a sample of them."""
        texts = []
        for item in inputs:
            if isinstance(item, list):
                self._total += len(item)
            else:
                texts.append(item)
        if not texts:
            return
        if not self._method.needs_sampling or self._counted_bytes < COUNTED_BYTES:
            self._total += sum(self._method.count(texts))
            self._counted_bytes += sum(map(token_estimator.utf8_bytes, texts))
            return
        sample = [text for text in texts if self._chance.randrange(SAMPLE_ONE_IN) == 0] or texts[:1]
        self._all += len(texts)
        self._all_bytes += sum(map(token_estimator.utf8_bytes, texts))
        for text, count in zip(sample, self._method.count(sample), strict=True):
            size = token_estimator.utf8_bytes(text)
            self._n += 1
            self._t += count
            self._b += size
            self._tt += count * count
            self._bb += size * size
            self._tb += count * size

    @property
    def is_sampled(self) -> bool:
        """Whether a part of the corpus was only sampled."""
        return self._all > self._n

    @property
    def total(self) -> int:
        """The estimated tokens of all inputs."""
        return round(self._total + (self._all_bytes * self._t / self._b if self._b else 0.0))

    @property
    def margin(self) -> int:
        """Twice the standard error of a ratio estimator."""
        if not self.is_sampled or self._n < 2:
            return 0
        ratio = self._t / self._b
        variance = max(0.0, self._tt - 2 * ratio * self._tb + ratio * ratio * self._bb) / (self._n - 1)
        return math.ceil(2 * self._all * math.sqrt(variance / self._n * (1 - self._n / self._all)))
