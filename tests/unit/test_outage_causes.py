"""Outages of a route: one call finds out, one probe at a time asks again, and no caller can bring one about alone."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import orjson
import pytest

from api.http.errors import render
from engine.cancellation import CancellationToken
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import INTERACTIVE, EmbedRun, embed
from engine.embedding.hang_detector import PROBE_EVERY_S
from engine.planning.packing import pack
from models.embedding import Limits, Options
from models.errors import (
    EmbedmillError,
    NoRoute,
    RouteDown,
    UnsupportedParameter,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply, UpstreamRequest
from tests.fakes import WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run, time_passes

ONE_EACH = Limits(inputs_per_call=1)
OWN = Options(provider_options={"up": {"user": "x"}})
OTHER_OPTIONS = Options(provider_options={"gateway": {"tags": ["a"]}})


def refusing_connections(request: UpstreamRequest) -> UpstreamReply:
    raise UpstreamUnavailable("the upstream cannot be connected to", sent=False)


def anew(embed_run: EmbedRun, count: int, **fields: Any) -> EmbedRun:
    """Another run in the same process."""
    return dataclasses.replace(
        embed_run, stop=CancellationToken(), calls=[], on_outcome=OutcomeCollector(count, WIDTH), **fields
    )


async def failing(embed_run: EmbedRun, texts: list[str], **options: Any) -> EmbedmillError:
    with pytest.raises(EmbedmillError) as raised:
        await embed_texts(embed_run, texts, **options)
    return raised.value


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ({"status": 401}, UpstreamAuthFailed),
        ({"status": 403}, UpstreamAuthFailed),
        ({"status": 402}, UpstreamAuthFailed),
        ({"status": 429, "code": "insufficient_quota"}, UpstreamAuthFailed),
        ({"status": 404}, UpstreamMisconfigured),
        ({"status": 500}, UpstreamUnavailable),
        ({"status": 503}, UpstreamUnavailable),
        ({"reply": "html"}, UpstreamProtocolError),
        ({"fault": "hang"}, UpstreamTimeout),
        ({"fault": "close"}, UpstreamUnavailable),
    ],
)
def test_each_kind_of_outage_is_found_out_waited_for_and_ended_by_one_probe(
    trouble: dict[str, object], kind: type[UpstreamError]
) -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"do": trouble}))
        embed_run = new_run(wire, alias(route()), 4, seconds=10_000.0)
        assert isinstance(await failing(embed_run, ["a"]), kind)
        outage = embed_run.router.outage_of(embed_run.alias)
        assert outage is not None and outage.cause.account == "up" and outage.cause.advice
        # Nobody calls before the next probe is due.
        calls = len(wire.sent)
        assert isinstance(await failing(anew(embed_run, 4), list("abcd"), limits=ONE_EACH), RouteDown)
        assert len(wire.sent) == calls
        # A probe that fails is a call of one input, or two with that of ours, and now and then one for floats: nothing
        # has worked yet; the pause after it is bounded.
        for _ in range(5):
            await time_passes(5.1)
            calls, began = len(wire.sent), asyncio.get_running_loop().time()
            await failing(anew(embed_run, 4), list("abcd"))
            # Beside one that is given the account's whole time, others are made.
            took_s = asyncio.get_running_loop().time() - began
            assert 1 <= len(wire.sent) - calls <= 3 + took_s // PROBE_EVERY_S
        # The first probe after its end is the last: what it brought is kept.
        wire.hosts["up"] = fake()
        await time_passes(5.1)
        calls = len(wire.sent)
        gathered = await embed_texts(anew(embed_run, 4), list("abcd"), limits=ONE_EACH)
        assert len(wire.sent) - calls == 4 and len(gathered.outcomes) == 4
        assert not embed_run.router.outages.active

    run(tried())


def test_a_refused_connection_is_an_outage_without_a_call_of_ours() -> None:
    async def tried() -> None:
        wire = FakeWire(up=refusing_connections)
        embed_run = new_run(wire, alias(route()), 1)
        assert isinstance(await failing(embed_run, ["a"]), UpstreamUnavailable)
        assert embed_run.router.outages.active and len(wire.sent) == 3

    run(tried())


@pytest.mark.parametrize("status", [401, 403, 404, 429])
@pytest.mark.parametrize("lane", [INTERACTIVE, "bulk"])
def test_what_a_callers_own_options_bring_about_is_only_its_own(status: int, lane: str) -> None:
    """The upstream refuses calls with the option `user`, and no others."""

    def picky(request: UpstreamRequest) -> UpstreamReply:
        if b'"user"' in request.body:
            return UpstreamReply(status, {}, b'{"error": {"message": "no", "code": null}}')
        return fake().answer(request, 0.0).reply

    async def tried() -> None:
        wire = FakeWire(up=picky)
        embed_run = new_run(wire, alias(route()), 1, lane=lane, seconds=5.0)
        error = await failing(embed_run, ["a"], options=OWN)
        assert isinstance(error, UnsupportedParameter) or status == 429, error
        assert not embed_run.router.outages.active
        limiter = embed_run.router.state_of(embed_run.alias.routes[0]).limiter
        assert not limiter.is_paced and limiter.coordinator.cooldown_s() == 0.0  # no gate was shut for anybody
        before = asyncio.get_running_loop().time()
        await embed_texts(anew(embed_run, 1), ["b"], options=OTHER_OPTIONS)
        assert asyncio.get_running_loop().time() - before < 0.5

    run(tried())


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_text_that_draws_a_refusal_of_its_own_fails_alone_and_shuts_nothing(status: int) -> None:
    """A firewall on the way to the provider answers 403 to some texts."""
    wire = FakeWire(up=fake({"when": {"contains": "<script>"}, "do": {"status": status}}))
    embed_run = new_run(wire, alias(route()), 4)
    gathered = run(embed_texts(embed_run, ["a", "<script>", "b", "c"]))
    refused = [part for part in gathered.outcomes if part.error is not None]
    assert [list(part.indexes) for part in refused] == [[1]] and not embed_run.router.outages.active


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429])
def test_a_user_whom_the_provider_refuses_hurts_no_other(status: int) -> None:
    """A gateway upstream has keys, budgets and limits for single users of its callers."""

    def picky(request: UpstreamRequest) -> UpstreamReply:
        if orjson.loads(request.body).get("user") == "x":
            return UpstreamReply(status, {"retry-after": "60"}, b'{"error": {"message": "no", "code": null}}')
        return fake().answer(request, 0.0).reply

    async def tried() -> None:
        wire = FakeWire(up=picky)
        embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE, seconds=5.0)
        error = await failing(embed_run, ["a"], options=Options(user="x"))
        assert (isinstance(error, UnsupportedParameter) and error.param == "user") or status == 429, error
        before = asyncio.get_running_loop().time()
        await embed_texts(anew(embed_run, 1), ["b"], options=Options(user="y"))
        assert not embed_run.router.outages.active and asyncio.get_running_loop().time() - before < 0.5

    run(tried())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_that_happened_once_blames_no_input(status: int) -> None:
    wire = FakeWire(up=fake({"times": 1, "do": {"status": status}}))
    embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE)
    gathered = run(embed_texts(embed_run, ["a"]))
    assert [part.error for part in gathered.outcomes] == [None] and len(wire.sent) == 3


def test_options_do_not_hide_a_refused_key() -> None:
    """The call of ours, without them, is refused too: so it is the key."""
    wire = FakeWire(up=fake({"do": {"status": 401}}))
    embed_run = new_run(wire, alias(route()), 1)
    error = run(failing(embed_run, ["a"], options=OWN))
    assert isinstance(error, UpstreamAuthFailed) and embed_run.router.outages.active and len(wire.sent) == 2


def test_a_text_that_the_provider_always_fails_on_is_no_outage() -> None:
    wire = FakeWire(up=fake({"when": {"contains": "bad"}, "do": {"status": 500}}))
    embed_run = new_run(wire, alias(route()), 2)
    gathered = run(embed_texts(embed_run, ["bad 1", "bad 2"]))
    assert all(part.error is not None for part in gathered.outcomes) and not embed_run.router.outages.active


def test_many_calls_of_a_shard_that_hang_find_out_together_and_few_are_made_again() -> None:
    wire = FakeWire(up=fake({"do": {"fault": "hang"}}))
    embed_run = new_run(wire, alias(route()), 40, seconds=10_000.0)
    run(failing(embed_run, [f"t{i}" for i in range(40)], limits=ONE_EACH, concurrency=8))
    beside = 60 // PROBE_EVERY_S  # it is not known how long its calls take: they are given their whole time
    assert embed_run.router.outages.active and len(wire.sent) <= 2 * 8 + 1 + beside


def test_another_route_serves_while_one_is_down_and_the_first_is_asked_again() -> None:
    async def tried() -> None:
        wire = FakeWire(first=fake({"do": {"status": 401}}), second=fake())
        embed_run = new_run(wire, alias(route("first"), route("second", priority=1)), 8, seconds=10_000.0)
        await embed_texts(embed_run, ["a"])
        for _ in range(3):
            await embed_texts(anew(embed_run, 1), ["b"])
        assert wire.hosts_called.count("first") == 2  # with that of ours
        wire.hosts["first"] = fake()
        await time_passes(5.1)
        await embed_texts(anew(embed_run, 2), ["c", "d"])
        assert wire.hosts_called[-1] == "first" and not embed_run.router.outages.active

    run(tried())


def test_a_probe_that_hangs_does_not_keep_the_next_one_from_its_turn() -> None:
    """The route comes back six seconds after a probe began that will never be answered."""

    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"fault": "hang"}}))
        embed_run = new_run(wire, alias(route()), 4, seconds=10_000.0)
        await failing(embed_run, ["a"])
        await time_passes(5.1)
        probing = asyncio.create_task(failing(anew(embed_run, 4), list("abcd"), limits=ONE_EACH))
        await time_passes(1.0)
        wire.hosts["up"] = fake()
        began = asyncio.get_running_loop().time()
        await asyncio.wait({probing})
        while True:
            try:
                await embed_texts(anew(embed_run, 4), list("abcd"))
                break
            except NoRoute:
                await time_passes(0.5)
        assert asyncio.get_running_loop().time() - began <= 15.0

    run(tried())


def test_the_sync_lane_is_told_account_cause_and_advice() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"status": 401}}))
        embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE)
        first = await failing(embed_run, ["a"])
        second = await failing(anew(embed_run, 1), ["a"])
        for message in (orjson.loads(render(error).body)["error"]["message"] for error in (first, second)):
            assert "account up" in message and "credential" in message and "providers test up" in message
        assert isinstance(second, NoRoute) and (second.retry_after_s or 0) >= 1.0

    run(tried())


def test_a_refusal_for_a_caller_without_options_of_its_own_is_about_the_input() -> None:
    wire = FakeWire(up=fake({"when": {"contains": "x"}, "do": {"status": 422, "message": "unsupported dimension"}}))
    embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE)
    error = run(failing_or_refused(embed_run))
    assert error is None or isinstance(error, UpstreamRejected | UpstreamMisconfigured)
    assert not embed_run.router.outages.active


async def failing_or_refused(embed_run: EmbedRun) -> EmbedmillError | None:
    try:
        await embed(embed_run, pack(["x"], [0], Limits(), WIDTH, Options()), concurrency=1)
    except EmbedmillError as error:
        return error
    return None


@pytest.mark.parametrize("told", [6, 62, 3600])
@pytest.mark.parametrize("lane", [INTERACTIVE, "bulk"])
def test_a_text_that_alone_draws_a_long_429_makes_only_its_caller_wait(told: int, lane: str) -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"when": {"contains": "slow me"}, "do": {"status": 429, "retry_after": told}}))
        embed_run = new_run(wire, alias(route()), 1, lane=lane, seconds=10_000.0)
        embed_run.cooldown_wait_s = 5.0
        before = asyncio.get_running_loop().time()
        error = await failing(embed_run, ["slow me"])
        assert isinstance(error, UpstreamRateLimited) and error.retry_after_s is not None
        assert min(told, 120) <= error.retry_after_s <= told * 1.1 + 0.2  # nobody is told more than two minutes
        limiter = embed_run.router.state_of(embed_run.alias.routes[0]).limiter
        assert not limiter.is_paced and limiter.coordinator.cooldown_s() == 0.0  # no gate was shut for anybody
        assert len(wire.sent) == 2  # its own, and one of ours
        await embed_texts(anew(embed_run, 1), ["b"])
        assert asyncio.get_running_loop().time() - before < 0.5  # nor has it kept a worker waiting
        assert not embed_run.router.outages.active

    run(tried())


def test_a_true_rate_limit_shuts_the_gate_after_one_call_of_ours_and_none_follows() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 62}}))
        embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE, seconds=10.0)
        embed_run.cooldown_wait_s = 5.0
        errors = [await failing(anew(embed_run, 1), ["a"]) for _ in range(3)]
        assert all(isinstance(error, UpstreamRateLimited) and not error.sent for error in errors)
        limiter = embed_run.router.state_of(embed_run.alias.routes[0]).limiter
        assert limiter.is_paced and limiter.coordinator.cooldown_s() > 60.0 and len(wire.sent) == 2

    run(tried())


def test_many_calls_that_meet_a_true_rate_limit_at_once_share_one_call_of_ours() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 62}}))
        embed_run = new_run(wire, alias(route()), 1, lane="bulk", seconds=20.0)
        errors = await asyncio.gather(*(failing(anew(embed_run, 1), [text]) for text in "abcdefgh"))
        assert all(isinstance(error, UpstreamRateLimited) for error in errors)
        assert (
            len(wire.sent) == 9
            and embed_run.router.state_of(embed_run.alias.routes[0]).limiter.coordinator.cooldown_s() > 60.0
        )

    run(tried())


def test_a_long_429_after_which_our_own_call_fails_otherwise_is_waited_for_by_its_caller_alone() -> None:
    """Nobody knows: the caller keeps to what it was told, and is not sent again at once."""

    async def tried() -> None:
        wire = FakeWire(
            up=fake(
                {"when": {"contains": "slow me"}, "do": {"status": 429, "retry_after": 62}}, {"do": {"status": 503}}
            )
        )
        embed_run = new_run(wire, alias(route()), 1, lane=INTERACTIVE, seconds=100.0)
        embed_run.cooldown_wait_s = 5.0
        assert isinstance(await failing(embed_run, ["slow me"]), UpstreamRateLimited)
        assert len(wire.sent) == 2

    run(tried())
