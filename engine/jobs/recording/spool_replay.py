"""Replay: results in the spool go into the database once it is back, whoever wrote them, and whether they still live.

Recording takes only what has no outcome yet, so a file may be replayed twice, or after its shard was done by others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, get_type_hints

import msgspec
import numpy as np

from engine.durability.spool import DamagedFile, SpooledFile
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record import GONE, record
from engine.observability.telemetry import SPOOLED
from engine.runtime import Runtime
from models.embedding import Account, BatchOutcome, InputError, Limits, Route
from models.errors import StorageUnavailable

log = logging.getLogger("embedmill.spool")

# What record() needs of a claim. The inputs themselves and what was settled then, it reads anew or does not need.
_KEPT = (
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
    "calls",
)
_hints = get_type_hints(ClaimedShard)
_Held: Any = msgspec.defstruct("_Held", [(name, _hints[name]) for name in _KEPT])


class _Part(msgspec.Struct):
    indexes: list[int]
    vectors: bytes | None
    width: int
    error: InputError | None
    tokens: int
    tokens_estimated: bool
    cost_usd: Decimal
    served_by: tuple[str, str] | None  # account and upstream model
    truncated: list[int] = []


class _Results(msgspec.Struct):
    held: _Held
    parts: list[_Part]
    record_id: str = ""


_decoder = msgspec.msgpack.Decoder(_Results)


def packed(held: ClaimedShard, parts: Sequence[BatchOutcome], record_id: str) -> bytes:
    """What a spool file holds: everything that record() needs."""
    kept = {name: getattr(held, name) for name in _KEPT}
    return msgspec.msgpack.encode(_Results(_Held(**kept), [_packed_part(part) for part in parts], record_id))


def unpacked(body: bytes) -> tuple[ClaimedShard, list[BatchOutcome], str]:
    """The claim, without its inputs, the results, and their record's id. Raises msgspec.ValidationError, ValueError."""
    results = _decoder.decode(body)
    held = ClaimedShard(
        **msgspec.structs.asdict(results.held),
        inputs=[None] * results.held.count,
        twins={},
        settled=np.zeros(results.held.count, dtype=np.bool_),
    )
    routes: dict[tuple[str, str], Route] = {}
    return held, [_unpacked_part(part, routes) for part in results.parts], results.record_id


async def replay(runtime: Runtime) -> int:
    """Record what other processes left in the spool; how many files were dealt with. Raises StorageUnavailable."""
    dealt_with = 0
    for file in runtime.spool.orphaned():
        await _replay(runtime, file)
        dealt_with += 1
    return dealt_with


async def _replay(runtime: Runtime, file: SpooledFile) -> None:
    try:
        held, parts, record_id = unpacked(await asyncio.to_thread(file.read))
    except (DamagedFile, msgspec.MsgspecError, ValueError, OSError) as error:
        log.error("a spool file is damaged, and set aside as .bad: %s", error)
        file.quarantine()
        return
    about = {"job_id": held.job_id, "shard_id": held.shard_id, "inputs": sum(len(part.indexes) for part in parts)}
    try:
        recorded = await record(runtime, held, parts, record_id)
    except (StorageUnavailable, asyncio.CancelledError):
        file.unlock()
        raise
    except Exception:
        log.exception("the database refused a spool file, which is set aside as .bad", extra=about)
        file.quarantine()
        return
    file.remove()
    if recorded is GONE:
        SPOOLED.labels("dropped").inc()
        log.warning("spooled results came too late: their part of the job is done, cancelled or deleted", extra=about)
    else:
        SPOOLED.labels("replayed").inc()
        log.info("spooled results were recorded", extra=about)


def _packed_part(part: BatchOutcome) -> _Part:
    return _Part(
        [int(index) for index in part.indexes],
        None if part.vectors is None else part.vectors.astype("<f4", copy=False).tobytes(),
        0 if part.vectors is None else part.vectors.shape[1],
        part.error,
        part.tokens,
        part.tokens_estimated,
        part.cost_usd,
        None if part.route is None else (part.route.provider, part.route.upstream_model),
        [int(index) for index in part.truncated],
    )


def _unpacked_part(part: _Part, routes: dict[tuple[str, str], Route]) -> BatchOutcome:
    vectors = None
    if part.vectors is not None:
        vectors = np.frombuffer(part.vectors, dtype="<f4").reshape(len(part.indexes), part.width)
    route = None
    if part.served_by is not None:
        # Only its names are still of use, for the ledger; the configuration may have lost it since.
        account, model = part.served_by
        route = routes.setdefault(
            part.served_by, Route(Account(account, "", ""), model, part.width, Limits(), Decimal(0))
        )
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
