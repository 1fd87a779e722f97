"""The doctor's check of outages: routes that the running processes have found down, read from the table at no cost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, select

from cli.commands.doctor.finding import Finding
from engine.config.settings import Settings
from engine.storage.database import Database
from models.embedding import Alias
from models.outage import RouteOutage


def outages(settings: Settings, aliases: Mapping[str, Alias]) -> list[Finding]:
    """One finding for each route of the configuration that is down now; nothing where none is."""
    routes = {route.key for alias in aliases.values() for route in alias.routes}
    return list(asyncio.run(_read(settings, routes)))


async def _read(settings: Settings, routes: Collection[tuple[str, str]]) -> list[Finding]:
    database = Database(settings.sqlalchemy_url)
    try:
        async with database.read() as connection:
            rows = (await connection.execute(select(RouteOutage.__table__).order_by(RouteOutage.since))).all()
    finally:
        await database.close()
    # No process makes probes of a route that is no longer configured, so its outage never ends.
    return list(_findings([row for row in rows if (row.account, row.upstream_model) in routes]))


def _findings(rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    for row in rows:
        since = datetime.fromtimestamp(row.since, UTC).isoformat(timespec="seconds")
        route = f"account {row.account}, model {row.upstream_model}"
        advice, try_it = row.advice, f"`embedmill providers test {row.account}`"
        if try_it not in advice:
            advice = f"{advice.rstrip('.')}; {try_it} tries it now."
        yield Finding("outages", "fail", f"{route}: down since {since}: {row.message}", advice)
