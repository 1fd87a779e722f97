"""The release of a shard whose run has ended: it goes back to the queue whatever its reason is made of."""

from __future__ import annotations

import pytest

from engine.jobs.execution.release import release_unfinished
from models.errors import EmbedmillError
from models.job import ShardState
from tests.integration.store import Store, stopped_run


async def test_a_shard_whose_reason_cannot_be_stored_is_released_without_it(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    [shard] = await store.claim_all(await store.submit(5))
    error = EmbedmillError("unfit")
    error.message = object()  # type: ignore[assignment]  # no column takes it
    await release_unfinished(stopped_run(store, shard, error), job_active=True)
    assert await store.state_of(shard.shard_id) == ShardState.QUEUED
    logged = [record for record in caplog.records if record.getMessage() == "a shard could not be given back"]
    assert len(logged) == 1 and logged[0].exc_info and logged[0].__dict__["shard_id"] == shard.shard_id
