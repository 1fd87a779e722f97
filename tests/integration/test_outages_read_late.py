"""The table of outages is read while one begins or ends: what this process knows better is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.routing.outages import Outages
from engine.storage.database import Database
from models.errors import UpstreamAuthFailed
from tests.integration.store import Store

REFUSED = UpstreamAuthFailed("the upstream refuses our key", status=401)


class LateDatabase(Database):
    """What `meanwhile` does happens after a read has its rows, and before its reader has them."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with super().read() as connection:
            yield connection
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()


async def test_an_outage_that_is_stored_while_the_table_is_read_is_kept(store: Store) -> None:
    database = LateDatabase(store.runtime.settings.sqlalchemy_url, pool_size=2)
    outages, route = Outages(database), next(iter(store.runtime.aliases.values())).routes[0]

    async def begin() -> None:
        outages.report(route, REFUSED)
        await outages.close()  # it is stored

    database.meanwhile = begin
    await outages.refresh()
    assert (outage := outages.of(route)) is not None and outage.is_stored
    await outages.refresh(max_age_s=0.0)
    assert outages.of(route) is not None
    await database.close()


@pytest.mark.parametrize("is_removed", [False, True])
async def test_an_outage_that_ends_while_the_table_is_read_stays_ended(store: Store, is_removed: bool) -> None:
    database = LateDatabase(store.runtime.settings.sqlalchemy_url, pool_size=2)
    outages, route = Outages(database), next(iter(store.runtime.aliases.values())).routes[0]
    outages.report(route, REFUSED)
    await outages.close()

    async def end() -> None:
        outages.resolve(route)
        if is_removed:
            await outages.close()

    database.meanwhile = end
    await outages.refresh(max_age_s=0.0)
    assert outages.of(route) is None
    await outages.close()
    await outages.refresh(max_age_s=0.0)
    assert outages.of(route) is None
    await database.close()


async def test_an_outage_that_another_process_ended_ends_here(store: Store) -> None:
    here, there = Outages(store.runtime.database), Outages(store.runtime.database)
    route = next(iter(store.runtime.aliases.values())).routes[0]
    here.report(route, REFUSED)
    await here.close()
    await there.refresh(max_age_s=0.0)
    assert there.of(route) is not None
    there.resolve(route)
    await there.close()
    await here.refresh(max_age_s=0.0)
    assert here.of(route) is None
