"""The table of hostile acts: the name of each, what it does, and the statuses that its caller may be answered with.

A status that is not in the row, a 5xx above all, is a fault; so is an act that drew none of those it must.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.influence import acts_bodies as bodies
from tests.influence import acts_names as names
from tests.influence import acts_time as slow
from tests.influence.attack import CLOSED, Act


@dataclass(frozen=True)
class Row:
    act: Act
    must: frozenset[int]  # each of these came
    may: frozenset[int] = frozenset()


def row(act: Act, must: set[int], may: set[int] | None = None) -> Row:
    return Row(act, frozenset(must), frozenset(may or ()))


# A request that the end of the act cuts off has no status. CLOSED: the server closed, or no answer was waited for.
ACTS: dict[str, Row] = {
    "echoed words": row(names.echoed_words, {400}, {502}),
    "echoed words in jobs": row(names.echoed_words_in_jobs, {202}),
    "odd names": row(names.odd_names, {200, 400, 404}, {202, CLOSED}),
    "lookalike models": row(names.lookalike_models, {404}, {400}),
    "the victim's idempotency key": row(names.the_victims_idempotency_key, {202, 422}, {409}),
    "hostile options": row(names.hostile_options, {400}, {200}),
    "wrong keys": row(names.wrong_keys, {401}),
    "giant tokens": row(bodies.giant_tokens, {400}),
    "giant tokens, cut": row(bodies.giant_tokens_cut, set(), {200, 429}),
    "giant tokens in jobs": row(bodies.giant_tokens_in_jobs, {400}),
    "a million blank lines": row(bodies.blank_lines, {202}),
    "refused lines": row(bodies.refused_lines, set(), {202}),
    "empty texts": row(bodies.empty_texts, set(), {202}),
    "ratio bombs": row(bodies.ratio_bombs, {413}),
    "bombs below the ratio": row(bodies.bombs_below_the_ratio, {400}, {429}),
    "unfinished gzip bodies": row(bodies.unfinished_gzip, set(), {429, 408}),
    "deep nesting": row(bodies.deep_nesting, {400}),
    "absurd token ids": row(bodies.absurd_token_ids, {400}, {200, 202, 429}),
    "full calls": row(bodies.full_calls, {200}, {429}),
    "full calls as base64": row(bodies.full_calls_as_base64, {200}, {429}),
    "dry runs": row(bodies.dry_runs, set(), {200}),
    "gzip uploads": row(bodies.gzip_uploads, set(), {200}),
    "large uploads": row(bodies.large_uploads, set(), {202}),
    "slow heads": row(slow.slow_heads, {CLOSED}),
    "silent connections": row(slow.silent_connections, {CLOSED}),
    "slow uploads": row(slow.slow_uploads, {CLOSED}),
    "slow bodies": row(slow.slow_bodies, {CLOSED}),
    "long polls": row(slow.long_polls, {429}, {200, 202}),
    "quick polls": row(slow.quick_polls, {200}),
    "lists of jobs with long options": row(slow.lists_of_jobs, {200, 202}, {400}),
    "callers who hang up": row(slow.callers_who_hang_up, {CLOSED}),
    "readers who stop": row(slow.readers_who_stop, {200, 429}),
    "quick downloads": row(slow.quick_downloads, {200}),
    "lists of a million errors": row(slow.lists_of_a_million_errors, {200}),
    "small jobs": row(slow.small_jobs, {202}),
    "jobs made and deleted": row(slow.jobs_made_and_deleted, {200, 202}, {409}),
    "pipelined requests": row(slow.pipelined_requests, {CLOSED}),
    "public pages": row(slow.public_pages, {200}),
}


def victims_key(act: str) -> str:
    """The Idempotency-Key of the victim's job beside an act."""
    return f"job beside {act}"
