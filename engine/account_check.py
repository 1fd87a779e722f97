"""Checks an account for an operator with one real call to each of its routes. Ends their outages."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import delete
from sqlalchemy.exc import DBAPIError

from engine.jobs.composition import dispatcher_of
from engine.jobs.execution import outage_waits
from engine.ledger import usage_rows
from engine.ledger.call_cost import cost_of
from engine.route_state.control_call import control_batch
from engine.routing.outage_causes import Cause, cause_of
from engine.runtime import Runtime
from engine.upstream.call import CallContext
from models.embedding import Alias, Call, Route
from models.errors import EmbedmillError, UpstreamError
from models.outage import RouteOutage

TIMEOUT_S = 30.0
OPERATOR_PROJECT = "operator"


@dataclass(frozen=True, slots=True)
class RouteTest:
    """The result of one call. `cause` None: the route answers as the configuration says."""

    alias: str
    provider: str
    upstream_model: str
    width: int
    seconds: float
    cause: Cause | None = None
    tokens: int | None = None  # as the reply reports; None: it reports none
    usd_per_million_tokens: Decimal = Decimal(0)
    cost_usd: Decimal = Decimal(0)


async def check_account(runtime: Runtime, account: str) -> list[RouteTest]:
    """Call each distinct route of the account once; its other outages end at once, for all processes.

    `account`: a section of the configuration, for all of its credentials, or the name of a single one (`NAME#2`).
    """
    routes: dict[tuple[tuple[str, str], int], tuple[Alias, Route]] = {}
    for alias in runtime.aliases.values():
        for route in alias.routes:
            if account in (route.provider, route.account.section):
                routes.setdefault((route.key, route.width), (alias, route))
    tests = [await _test(runtime, alias, route) for alias, route in routes.values()]
    with contextlib.suppress(EmbedmillError, DBAPIError, OSError):  # without tables, nobody waits for it
        for name in {route.provider for _, route in routes.values()} | {account}:
            failed = [test.upstream_model for test in tests if test.cause is not None and test.provider == name]
            await _end_outages(runtime, name, failed)
        await runtime.usage.flush()
        await outage_waits.resume_recovered_jobs(runtime.store)  # jobs go on now, not only when the sweep looks
        await dispatcher_of(runtime).dispatch()
    return tests


async def _test(runtime: Runtime, alias: Alias, route: Route) -> RouteTest:
    batch = control_batch(route.width)
    calls: list[Call] = []
    began = time.monotonic()
    deadline = began + min(TIMEOUT_S, route.account.timeout_s)
    context = CallContext(runtime.router.state_of(route), deadline, calls, purpose="providers_test")
    cause: Cause | None = None
    counted: int | None = None
    try:
        counted = (await runtime.upstream.embed(batch, route, context)).tokens
    except UpstreamError as error:
        cause = cause_of(route.account, error)
    except EmbedmillError as error:
        cause = Cause(route.provider, error.code, error.message, "Try again.")
    seconds = time.monotonic() - began
    runtime.usage.add(
        usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias.name)
    )
    price = route.usd_per_million_tokens
    used = batch.tokens if counted is None else counted
    return RouteTest(
        alias.name,
        route.provider,
        route.upstream_model,
        route.width,
        seconds,
        cause,
        counted,
        price,
        cost_of(used, route),
    )


async def _end_outages(runtime: Runtime, account: str, failed_models: list[str]) -> None:
    """End the outages of the models that answer, and of those to which the configuration has no route any more."""
    async with runtime.database.write() as connection:
        await connection.execute(
            delete(RouteOutage).where(RouteOutage.account == account, RouteOutage.upstream_model.not_in(failed_models))
        )
