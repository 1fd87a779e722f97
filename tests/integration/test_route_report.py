"""What every process says of a route that is down: since when it is probed, and by whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from engine.routing.outages import Outages
from engine.routing.route_report import report
from engine.routing.router import Router
from models.base import db_now
from models.embedding import Alias
from models.errors import UpstreamAuthFailed
from models.outage import RouteOutage
from tests.integration.store import MODEL, Store


@pytest.fixture
async def other(store: Store) -> AsyncIterator[Store]:
    other = store.another()
    yield other
    await other.close()


def breaker(router: Router, alias: Alias) -> tuple[str, str]:
    first = report(router, alias)[0]
    return first.status, first.breaker.state


async def written(outages: Outages) -> None:
    await asyncio.gather(*outages._writing)


async def test_a_probe_is_seen_by_all_processes_while_it_is_under_way(store: Store, other: Store) -> None:
    alias, route = store.runtime.alias(MODEL), store.runtime.alias(MODEL).routes[0]
    one, two = store.runtime.router, other.runtime.router
    assert breaker(one, alias) == breaker(two, alias) == ("up", "closed")
    one.report(route, UpstreamAuthFailed("the credential was refused", status=401))
    await written(one.outages)
    await two.outages.refresh(max_age_s=0.0)
    assert breaker(one, alias) == breaker(two, alias) == ("down", "open")
    async with store.runtime.database.write() as connection:
        await connection.execute(update(RouteOutage).values(next_attempt_at=db_now() - 1.0))
    await one.outages.refresh(max_age_s=0.0)
    assert await one.outages.claim_probe(route)
    await two.outages.refresh(max_age_s=0.0)
    assert breaker(one, alias) == breaker(two, alias) == ("down", "half_open")
    one.outages.probe_failed(route, UpstreamAuthFailed("the credential was refused again", status=401))
    await written(one.outages)
    await two.outages.refresh(max_age_s=0.0)
    assert breaker(one, alias) == breaker(two, alias) == ("down", "open")
    assert report(two, alias)[0].breaker.reason == "the credential was refused again"
    one.outages.resolve(route)
    await written(one.outages)
    await two.outages.refresh(max_age_s=0.0)
    assert breaker(one, alias) == breaker(two, alias) == ("up", "closed")


async def test_the_probe_of_a_process_that_died_is_over_after_its_time(store: Store) -> None:
    alias, route = store.runtime.alias(MODEL), store.runtime.alias(MODEL).routes[0]
    router = store.runtime.router
    router.report(route, UpstreamAuthFailed("the credential was refused", status=401))
    await written(router.outages)
    async with store.runtime.database.write() as connection:
        await connection.execute(update(RouteOutage).values(probe_until=db_now() - 0.01))
    await router.outages.refresh(max_age_s=0.0)
    assert breaker(router, alias) == ("down", "open")
