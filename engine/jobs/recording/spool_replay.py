"""Replay of the spool: results that other processes could not record go into the database once it is available.

A record stores only outcomes of inputs without one, so a file may be replayed twice, or after its shard was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, get_type_hints

import msgspec
import numpy as np

from engine.durability.spool import DamagedFile, Spool, SpooledFile
from engine.job_store import JobStore
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record_outcomes import SHARD_CLOSED, record
from engine.ledger.usage_rows import UNKNOWN_PRICE
from engine.observability.telemetry import SPOOLED
from engine.process.background import logging_errors
from models.embedding import Account, BatchOutcome, Call, InputError, Limits, Route

log = logging.getLogger("embedmill.spool")

# The fields of a claim that record() needs. It reads the outcome bits again and does not need the inputs.
_CLAIM_FIELDS = (
    "shard_id",
    "job_id",
    "project",
    "key_id",
    "alias",
    "width",
    "options",
    "first_index",
    "count",
    "attempt",
    "fence",
    "tokens",
    "max_cost_usd",
)
_hints = get_type_hints(ClaimedShard)
# "calls" in the claim, as earlier releases wrote it: the calls of the run without results.
_ClaimFields: Any = msgspec.defstruct(
    "_ClaimFields", [*((name, _hints[name]) for name in _CLAIM_FIELDS), ("calls", list[Call])]
)


class _StoredOutcome(msgspec.Struct):
    indexes: list[int]
    vectors: bytes | None
    width: int
    error: InputError | None
    tokens: int
    tokens_estimated: bool
    cost_usd: Decimal
    served_by: tuple[str, str] | None  # account and upstream model
    truncated: list[int] = []
    usd_per_million_tokens: Decimal | None = None  # None: unknown, as in files of earlier releases


class _Results(msgspec.Struct):
    # "held" in the file, as earlier releases wrote it.
    claim: _ClaimFields = msgspec.field(name="held")
    parts: list[_StoredOutcome]
    record_id: str = ""


_decoder = msgspec.msgpack.Decoder(_Results)


def encode_spool(
    shard: ClaimedShard, parts: Sequence[BatchOutcome], record_id: str, calls: Sequence[Call] = ()
) -> bytes:
    """The content of a spool file: everything that record() needs."""
    fields = {name: getattr(shard, name) for name in _CLAIM_FIELDS}
    return msgspec.msgpack.encode(
        _Results(_ClaimFields(**fields, calls=list(calls)), [_encode_outcome(part) for part in parts], record_id)
    )


def decode_spool(body: bytes) -> tuple[ClaimedShard, list[BatchOutcome], str, list[Call]]:
    """The claim without its inputs, the results, their record's id, and calls without results.

    Raises msgspec.ValidationError, ValueError.
    """
    results = _decoder.decode(body)
    shard = ClaimedShard(
        **{name: getattr(results.claim, name) for name in _CLAIM_FIELDS},
        inputs=[None] * results.claim.count,
        duplicates={},
        outcome_bits=np.zeros(results.claim.count, dtype=np.bool_),
    )
    routes: dict[tuple[str, str, Decimal | None], Route] = {}
    return shard, [_decode_outcome(part, routes) for part in results.parts], results.record_id, results.claim.calls


async def replay(store: JobStore, spool: Spool) -> int:
    """Record the spool files of other processes. Returns the number of files. Raises StorageUnavailable."""
    count = 0
    for file in spool.orphaned():
        await _replay(store, file)
        count += 1
    return count


async def _replay(store: JobStore, file: SpooledFile) -> None:
    try:
        shard, parts, record_id, calls = decode_spool(await asyncio.to_thread(file.read))
    except (DamagedFile, msgspec.MsgspecError, ValueError, OSError) as error:
        log.error("a spool file is damaged, and set aside as .bad: %s", error)
        file.quarantine()
        return
    log_fields = {
        "job_id": shard.job_id,
        "shard_id": shard.shard_id,
        "inputs": sum(len(part.indexes) for part in parts),
    }
    with contextlib.ExitStack() as undo:
        undo.callback(file.unlock)  # StorageUnavailable, or this process ends
        with logging_errors("the database refused a spool file, which is set aside as .bad", **log_fields) as block:
            recorded = await record(store, shard, parts, record_id, calls)
        undo.pop_all()
    if block.error is not None:
        file.quarantine()
        return
    file.remove()
    if recorded is SHARD_CLOSED:
        SPOOLED.labels("dropped").inc()
        log.warning(
            "spooled results came too late: their part of the job is done, cancelled or deleted", extra=log_fields
        )
    else:
        SPOOLED.labels("replayed").inc()
        log.info("spooled results were recorded", extra=log_fields)


def _encode_outcome(part: BatchOutcome) -> _StoredOutcome:
    return _StoredOutcome(
        [int(index) for index in part.indexes],
        None if part.vectors is None else part.vectors.astype("<f4", copy=False).tobytes(),
        0 if part.vectors is None else part.vectors.shape[1],
        part.error,
        part.tokens,
        part.tokens_estimated,
        part.cost_usd,
        None if part.route is None else (part.route.provider, part.route.upstream_model),
        [int(index) for index in part.truncated],
        None if part.route is None else part.route.usd_per_million_tokens,
    )


def _decode_outcome(part: _StoredOutcome, routes: dict[tuple[str, str, Decimal | None], Route]) -> BatchOutcome:
    vectors = None
    if part.vectors is not None:
        vectors = np.frombuffer(part.vectors, dtype="<f4").reshape(len(part.indexes), part.width)
    route = None
    if part.served_by is not None:
        # The ledger needs only the names and the price; the configuration may no longer contain the route.
        account, model = part.served_by
        price = part.usd_per_million_tokens
        key = account, model, price
        if (route := routes.get(key)) is None:
            of_route = UNKNOWN_PRICE if price is None else price
            route = routes[key] = Route(Account(account, "", ""), model, part.width, Limits(), of_route)
    return BatchOutcome(
        part.indexes,
        vectors,
        part.error,
        part.tokens,
        part.tokens_estimated,
        part.cost_usd,
        route,
        part.truncated,
    )
