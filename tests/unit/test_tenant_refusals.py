"""A 429 that only one caller's text draws: the gate is shut for a moment at the most, and only that text waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, INTERACTIVE, EmbedRun
from engine.observability.telemetry import REGISTRY
from engine.route_state.tenant_refusals import MAX_TENANTS, REMEMBERED_S, TenantRefusals
from models.embedding import Limits
from models.errors import UpstreamRateLimited
from tests.fakes import WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run, time_passes
from tests.unit.test_outage_causes import anew

TEN_EACH = Limits(inputs_per_call=10)


def refusing(**told: Any) -> dict[str, Any]:
    return {"when": {"contains": "slow me"}, "do": {"status": 429, **told}}


def gates_shut() -> float:
    labels = {"provider": "up", "model": "m"}
    return REGISTRY.get_sample_value("embedmill_limiter_rate_limited_total", labels) or 0.0


async def kept_trying(embed_run: EmbedRun, texts: list[str], runs: int) -> tuple[set[int], list[UpstreamRateLimited]]:
    """What workers do who claim a shard again and again: the indexes with a vector, and how the runs ended."""
    done: set[int] = set()
    errors: list[UpstreamRateLimited] = []
    for _ in range(runs):
        left = [index for index in range(len(texts)) if index not in done]
        if not left:
            break
        deadline = asyncio.get_running_loop().time() + 600.0
        again = anew(embed_run, len(left), deadline=deadline)
        try:
            await embed_texts(again, [texts[index] for index in left], limits=TEN_EACH, concurrency=2)
        except UpstreamRateLimited as error:
            errors.append(error)
            await time_passes(error.retry_after_s or 1.0)
        embed_run.calls += again.calls
        assert isinstance(again.on_outcome, OutcomeCollector)
        done |= {left[index] for part in again.on_outcome.outcomes if part.error is None for index in part.indexes}
        assert all(part.error is None for part in again.on_outcome.outcomes)  # nobody is condemned
    return done, errors


@pytest.mark.parametrize("told", [{}, {"retry_after": 0}, {"retry_after": 1}, {"retry_after": 4}, {"retry_after": 30}])
@pytest.mark.parametrize("offending_position", [{0}, {17}, {3, 4, 35}])
def test_the_neighbours_of_a_text_that_always_draws_429_get_their_vectors(
    told: dict[str, Any], offending_position: set[int]
) -> None:
    wire = FakeWire(up=fake(refusing(**told)))
    embed_run = new_run(wire, alias(route(limits=TEN_EACH)), 40, seconds=10_000.0)
    texts = [f"slow me {index}" if index in offending_position else f"text {index}" for index in range(40)]
    done, errors = run(kept_trying(embed_run, texts, 5))
    assert done == set(range(40)) - offending_position
    assert errors[-1].is_own and "answers 429 (rate limit) to this call, and answers others" in errors[-1].message
    ours = sum(call.error == "control_call" for call in embed_run.calls)
    assert wire.inputs_sent - ours <= 4 * 40 + 64 and ours <= 30, (wire.inputs_sent, ours)


def test_another_route_of_the_model_takes_the_text() -> None:
    wire = FakeWire(up=fake(refusing(retry_after=1)), other=fake())
    embed_run = new_run(wire, alias(route(), route("other", priority=1)), 10, seconds=1_000.0)
    done, _ = run(kept_trying(embed_run, [f"slow me {index}" for index in range(10)], 5))
    assert done == set(range(10))


@pytest.mark.parametrize("told", [{}, {"retry_after": 1}, {"retry_after": 4}])
@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
def test_a_short_429_again_and_again_shuts_the_gate_once(told: dict[str, Any], lane: str) -> None:
    """Other tenants call all the while: they wait for that one moment, and then no more."""
    wire = FakeWire(up=fake(refusing(**told)))
    embed_run = new_run(wire, alias(route()), 1, lane=lane, seconds=10_000.0)
    embed_run.tenant = "offending_position"

    async def offending_position() -> None:
        for _ in range(12):
            deadline = asyncio.get_running_loop().time() + 20.0
            try:
                await embed_texts(anew(embed_run, 1, deadline=deadline), ["slow me"])
            except UpstreamRateLimited as error:
                await time_passes(min(5.0, error.retry_after_s or 1.0))

    async def victim() -> list[float]:
        waits = []
        for number in range(100):
            began = asyncio.get_running_loop().time()
            await embed_texts(anew(embed_run, 1, tenant="victim", deadline=began + 60.0), [f"text {number}"])
            waits.append(asyncio.get_running_loop().time() - began)
            await time_passes(1.0)
        return waits

    async def both() -> list[float]:
        beside = asyncio.create_task(offending_position())
        waits = await victim()
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
        return waits

    before = gates_shut()
    waits = run(both())
    print(f"gates shut: {gates_shut() - before}, seconds waited by others: {sum(waits):.1f}")
    assert gates_shut() - before == 1
    assert sum(waits) <= 1.5 + 1.1 * (told.get("retry_after") or 1) + 1.0


def test_a_limit_that_all_calls_meet_shuts_the_gate_each_time_and_nobody_is_searched() -> None:
    wire = FakeWire(up=fake({"times": 12, "do": {"status": 429, "retry_after": 2}}))
    embed_run = new_run(wire, alias(route(limits=TEN_EACH)), 40, seconds=10_000.0)
    before = gates_shut()
    done, errors = run(kept_trying(embed_run, [f"text {index}" for index in range(40)], 3))
    assert done == set(range(40)) and errors == [] and gates_shut() - before >= 5
    sizes = [call.inputs for call in embed_run.calls if call.success]
    assert sizes.count(10) == 4  # no batch was cut


def test_what_passes_clears_its_tenant() -> None:
    """A provider's last refusals, after which our own call was answered: the next limit is everybody's again."""
    wire = FakeWire(up=fake({"when": {"contains": "slow me"}, "times": 2, "do": {"status": 429, "retry_after": 1}}))
    embed_run = new_run(wire, alias(route()), 1, seconds=1_000.0)

    async def tried() -> bool:
        await embed_texts(embed_run, ["slow me"])
        return embed_run.router.state_of(route()).tenant_refusals.is_known("")

    assert run(tried()) is False


def test_what_is_remembered_of_tenants_is_bounded_and_ends() -> None:
    async def tried() -> None:
        refusals = TenantRefusals()
        assert [refusals.record("t") for _ in range(3)] == [1, 1, 1]  # of one moment
        await time_passes(2.0)
        assert refusals.record("t") == 2
        for number in range(MAX_TENANTS):
            refusals.record(str(number))
        assert not refusals.is_known("t") and refusals.is_known("0")
        await time_passes(REMEMBERED_S + 1)
        assert not refusals.is_known("0")

    run(tried())


def test_who_is_turned_away_is_told_account_model_and_wait() -> None:
    wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 3}}))
    embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE, seconds=2.0)

    async def tried() -> str:
        with pytest.raises(UpstreamRateLimited) as raised:
            await embed_texts(embed_run, ["a"])
        return raised.value.message

    message = run(tried())
    assert message.startswith("Provider account up, model m: ") and "a call may start in 4 s" in message, message
    assert WIDTH and "http" not in message
