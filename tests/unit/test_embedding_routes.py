"""embed() when routes fail: retry, wait as told, fail over, give up in time. On a loop where waiting costs nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from decimal import Decimal

import orjson
import pytest

from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, INTERACTIVE, EmbedRun, embed
from engine.jobs.execution.lease_keeper import ShardStopped
from engine.ledger.call_cost import CONTROL_TEXT
from models.embedding import Limits, Options
from models.errors import (
    DeadlineExceeded,
    NoRoute,
    UnsupportedParameter,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import FakeUpstream, fake_vectors
from tests.fakes import MODEL, WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run, unanswered_calls

ONE_EACH = Limits(inputs_per_call=1)


def vectors_of(gathered: OutcomeCollector) -> bytes:
    return b"".join(block.tobytes() for block in gathered.vectors_in_order())


def right(*texts: str) -> bytes:
    return fake_vectors(list(texts), WIDTH, MODEL).tobytes()


@pytest.mark.parametrize(
    "trouble", [{"status": 500}, {"status": 503}, {"status": 408}, {"reply": "short"}, {"fault": "close"}]
)
def test_trouble_that_passes_is_tried_again(trouble: dict[str, object]) -> None:
    wire = FakeWire(up=fake({"times": 2, "do": trouble}))
    embed_run = new_run(wire, alias(route()), 2)
    assert vectors_of(run(embed_texts(embed_run, ["a", "b"]))) == right("a", "b")
    assert [call.success for call in embed_run.calls] == [False, False, True]


def test_a_route_that_has_named_the_model_asked_for_names_no_other() -> None:
    wire = FakeWire(up=fake({"when": {"call": 2}, "do": {"reply": "wrong_model"}}))
    embed_run = new_run(wire, alias(route()), 1)
    for _ in range(2):
        run(embed_texts(embed_run, ["a"]))
    assert [call.error for call in embed_run.calls] == [None, "upstream_wrong_model", None]


@pytest.mark.parametrize("rule", [{"reply": "wrong_model"}, {}])
def test_a_route_that_never_names_it_or_may_name_any_is_believed(rule: dict[str, object]) -> None:
    """Many servers name what they please."""
    wire = FakeWire(up=fake({"times": 2, "do": {"reply": "wrong_model"}}, {"do": rule}))
    embed_run = new_run(wire, alias(route(model_name_unchecked=not rule)), 1)
    for _ in range(4):
        run(embed_texts(embed_run, ["a"]))
    assert len(embed_run.calls) == 4


@pytest.mark.parametrize("told", ["Owner/{}", "{}-2026-11-01", "{}@20261101", "{}:latest"])
def test_owners_dates_and_tags_are_no_other_model(told: str) -> None:
    wire = FakeWire(up=fake())
    embed_run = new_run(wire, alias(route()), 1)
    run(embed_texts(embed_run, ["a"]))
    renamed = orjson.dumps(told.format(MODEL))
    wire.edit = lambda reply: dataclasses.replace(reply, body=reply.body.replace(orjson.dumps(MODEL), renamed))
    run(embed_texts(embed_run, ["a"]))
    assert renamed in wire.edit(UpstreamReply(200, {}, orjson.dumps(MODEL))).body
    assert [call.success for call in embed_run.calls] == [True, True]


@pytest.mark.parametrize("first", ["answered", "hangs"])
def test_a_provider_that_hangs_is_told_of_although_the_run_was_stopped(first: str) -> None:
    """Else its shard would be given back unspent for ever. Where something was answered, the stop is what counts."""
    wire = FakeWire(up=fake({"when": {"contains": "hangs"}, "do": {"fault": "hang"}}))
    embed_run = new_run(wire, alias(route(limits=ONE_EACH)), 4, seconds=200.0)

    async def stopped() -> None:
        asyncio.get_running_loop().call_later(5.0, embed_run.stop.cancel, ShardStopped("the time is over"))
        await embed_texts(embed_run, [first, "hangs 1", "hangs 2", "hangs 3"], concurrency=2)

    with pytest.raises(ShardStopped if first == "answered" else UpstreamTimeout):
        run(stopped())


@pytest.mark.parametrize(("lane", "calls"), [(INTERACTIVE, 3), ("bulk", 5)])
def test_the_third_failure_is_the_last(lane: str, calls: int) -> None:
    """Bulk then asks twice with a text of ours whether the route is down. Floats are tried once: nothing has worked."""
    wire = FakeWire(up=fake({"do": {"status": 500}}))
    with pytest.raises(UpstreamUnavailable):
        run(embed_texts(new_run(wire, alias(route()), 1, lane=lane), ["a"]))
    assert len(wire.sent) == calls + 1


def pauses_of_callers(wire: FakeWire) -> list[float]:
    """Between calls with a caller's text: a repeated 429 is followed by a call of ours."""
    sent = zip(wire.sent, wire.sent_at, strict=True)
    at = [when for request, when in sent if orjson.loads(request.body)["input"] != [CONTROL_TEXT]]
    return [later - earlier for earlier, later in itertools.pairwise(at)]


def test_a_rate_limit_is_waited_out_as_told_and_costs_no_try() -> None:
    wire = FakeWire(up=fake({"times": 6, "do": {"status": 429, "retry_after": 5}}))
    assert vectors_of(run(embed_texts(new_run(wire, alias(route()), 1), ["a"]))) == right("a")
    pauses = pauses_of_callers(wire)
    # Never sooner than told, and with jitter on top, so that not all come back in the same moment.
    assert len(pauses) == 4 and all(5.0 <= pause <= 5.8 for pause in pauses) and len(set(pauses)) > 1


@pytest.mark.fault(24)
@pytest.mark.parametrize("told", [0, -3, 0.01, "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_provider_that_refuses_and_says_at_once_is_not_hammered(told: float | str) -> None:
    wire = FakeWire(up=fake({"times": 5, "do": {"status": 429, "retry_after": told}}))
    assert vectors_of(run(embed_texts(new_run(wire, alias(route()), 1), ["a"]))) == right("a")
    least = [0.01, 2, 4] if told == 0.01 else [1, 2, 4]
    assert all(pause >= few for pause, few in zip(pauses_of_callers(wire), least, strict=True))


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 30}}))
    with pytest.raises(UpstreamRateLimited) as refused:
        run(embed_texts(new_run(wire, alias(route()), 1, seconds=20.0), ["a"]))
    assert len(wire.sent) == 2  # the second is ours: is the limit everybody's?
    assert 30.0 <= (refused.value.retry_after_s or 0) <= 33.1


async def stopped_after(embed_run: EmbedRun, seconds: float, texts: list[str], concurrency: int = 4) -> float:
    """Fly until a worker that stops says so; how long it took from there to the end."""
    loop = asyncio.get_running_loop()
    given_at: list[float] = []

    def stop() -> None:
        given_at.append(loop.time())
        embed_run.stop.cancel(ShardStopped("the worker is stopping"))

    loop.call_later(seconds, stop)
    with pytest.raises(ShardStopped):
        await embed_texts(embed_run, texts, limits=ONE_EACH, concurrency=concurrency)
    return loop.time() - given_at[0]


@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("hosts", [["up"], ["up", "other"]])
def test_a_wait_ends_when_the_run_is_told_to_stop_and_no_call_follows_it(status: int, hosts: list[str]) -> None:
    wire = FakeWire(**{host: fake({"do": {"status": status, "retry_after": 4}}) for host in hosts})
    embed_run = new_run(wire, alias(*(route(host, priority=place) for place, host in enumerate(hosts))), 1)
    assert run(stopped_after(embed_run, 0.3, ["a"])) < 0.1
    assert len(wire.sent) == 1


def test_who_waits_for_a_place_leaves_when_the_run_is_told_to_stop() -> None:
    wire = FakeWire(up=fake({"do": {"latency_ms": 2000}}))
    narrow = route()
    narrow = dataclasses.replace(narrow, account=dataclasses.replace(narrow.account, max_concurrency=1))
    embed_run = new_run(wire, alias(narrow), 3)
    run(stopped_after(embed_run, 0.3, ["a", "b", "c"]))
    assert (
        len(wire.sent) == 1
        and isinstance(embed_run.on_outcome, OutcomeCollector)
        and len(embed_run.on_outcome.outcomes) == 1
    )


def test_no_call_starts_after_the_deadline() -> None:
    wire = FakeWire(up=fake())
    with pytest.raises(DeadlineExceeded):
        run(embed_texts(new_run(wire, alias(route()), 1, seconds=0.0), ["a"]))
    assert wire.sent == []


def test_an_upstream_that_hangs_is_left_at_the_deadline() -> None:
    wire = FakeWire(up=fake({"do": {"fault": "hang"}}))
    embed_run = new_run(wire, alias(route()), 1, seconds=1.0)
    counted = unanswered_calls("up")
    with pytest.raises((UpstreamTimeout, DeadlineExceeded)):
        run(embed_texts(embed_run, ["a"]))
    assert all(call.ambiguous and not call.success for call in embed_run.calls) and embed_run.calls
    assert unanswered_calls("up") - counted == len(embed_run.calls)


@pytest.mark.parametrize(("trouble", "unanswered"), [({"fault": "hang"}, 1), ({"status": 503, "retry_after": 30}, 0)])
def test_a_caller_who_hangs_up_leaves_what_was_not_answered_ambiguous(
    trouble: dict[str, object], unanswered: int
) -> None:
    wire = FakeWire(up=fake({"do": trouble}))

    async def hang_up() -> None:
        embed_run = asyncio.create_task(embed_texts(new_run(wire, alias(route()), 1, lane=INTERACTIVE), ["a"]))
        await asyncio.wait({embed_run}, timeout=1.0)
        embed_run.cancel()
        await asyncio.wait({embed_run})

    counted = unanswered_calls("up")
    run(hang_up())
    assert len(wire.sent) == 1
    assert unanswered_calls("up") - counted == unanswered


@pytest.mark.parametrize(
    "trouble", [{"status": 401}, {"status": 404}, {"status": 503}, {"fault": "close"}, {"reply": "html"}]
)
def test_another_route_of_the_alias_stands_in(trouble: dict[str, object]) -> None:
    wire = FakeWire(first=fake({"do": trouble}), second=fake())
    embed_run = new_run(wire, alias(route("first"), route("second", priority=1)), 1)
    assert vectors_of(run(embed_texts(embed_run, ["a"]))) == right("a")
    assert set(wire.hosts_called) == {"first", "second"} and wire.hosts_called[-1] == "second"
    assert {call.provider for call in embed_run.calls if call.success} == {"second"}


@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
@pytest.mark.parametrize("error", [UpstreamUnavailable, UpstreamTimeout])
def test_without_a_connection_the_other_route_is_called_at_once(lane: str, error: type[UpstreamError]) -> None:
    """Each further try may last as long as connecting may. Without another route it is tried again."""

    def away(request: UpstreamRequest) -> UpstreamReply:
        raise error("no connection", sent=False)

    wire = FakeWire(up=away, other=fake())
    embed_run = new_run(wire, alias(route(), route("other", priority=1)), 1, lane=lane)
    for _ in range(3):
        assert vectors_of(run(embed_texts(embed_run, ["a"])))[-4 * WIDTH :] == right("a")
    assert wire.hosts_called == ["up", "other", "other", "other"]
    alone = FakeWire(up=away)
    with pytest.raises(error):
        run(embed_texts(new_run(alone, alias(route()), 1, lane=INTERACTIVE), ["a"]))
    assert alone.hosts_called == ["up"] * 3


def test_an_unfit_route_is_left_alone_for_a_while_and_trouble_is_not_unfitness() -> None:
    async def twice(status: int) -> list[str]:
        wire = FakeWire(first=fake({"do": {"status": status}}), second=fake())
        embed_run = new_run(wire, alias(route("first"), route("second", priority=1)), 1)
        await embed_texts(embed_run, ["a"])
        before = len(wire.sent)
        await embed_texts(dataclasses.replace(embed_run, on_outcome=OutcomeCollector(1, WIDTH)), ["b"])
        return wire.hosts_called[before:]

    assert run(twice(401)) == ["second"]
    assert run(twice(503))[0] == "first"


def test_no_fit_route_is_said_with_the_time_to_come_back() -> None:
    wire = FakeWire(up=fake({"do": {"status": 401}}))
    embed_run = new_run(wire, alias(route()), 1)
    with pytest.raises(UpstreamAuthFailed):
        run(embed_texts(embed_run, ["a"]))
    with pytest.raises(NoRoute) as none:
        run(embed_texts(embed_run, ["a"]))
    assert len(wire.sent) == 2 and 1.0 <= (none.value.retry_after_s or 0) <= 5.0


def test_a_callers_own_options_take_no_route_from_others() -> None:
    wire = FakeWire(up=fake())
    embed_run = new_run(wire, alias(route()), 1)
    with pytest.raises(UnsupportedParameter) as refused:
        run(embed_texts(embed_run, ["a"], options=Options(provider_options={"up": {"unheard_of": 1}})))
    assert refused.value.param == "providerOptions.up"
    assert vectors_of(run(embed_texts(embed_run, ["a"]))) == right("a")


def test_of_several_failures_the_most_hopeful_one_is_told() -> None:
    wire = FakeWire(a=fake({"do": {"status": 401}}), b=fake({"do": {"status": 429, "retry_after": 90}}))
    both = alias(route("a"), route("b", priority=1))
    with pytest.raises(UpstreamRateLimited) as told:
        run(embed_texts(new_run(wire, both, 1, seconds=5.0), ["x"]))
    assert 90 <= (told.value.retry_after_s or 0) <= 99.1


def test_priority_decides_and_weight_shares() -> None:
    wire = FakeWire(a=fake(), b=fake(), c=fake())
    several = alias(route("a", weight=3), route("b", weight=1), route("c", priority=1))
    run(embed_texts(new_run(wire, several, 400), [str(i) for i in range(400)], limits=ONE_EACH))
    counts = {host: wire.hosts_called.count(host) for host in "abc"}
    assert counts["c"] == 0 and 240 <= counts["a"] <= 360 and sum(counts.values()) == 400


def broken_siblings() -> FakeUpstream:
    return fake(
        {"when": {"contains": "bad"}, "do": {"status": 401}},
        {"when": {"contains": "embedmill"}, "do": {"status": 401}},  # the text of ours
        {"when": {"contains": "slow"}, "do": {"latency_ms": 5000}},
    )


@pytest.mark.parametrize(("lane", "cancelled", "landed"), [(INTERACTIVE, 2, 0), ("bulk", 0, 2)])
def test_what_becomes_of_siblings(lane: str, cancelled: int, landed: int) -> None:
    wire = FakeWire(up=broken_siblings())
    embed_run = new_run(wire, alias(route()), 6, lane=lane)
    with pytest.raises(UpstreamAuthFailed):
        run(
            embed_texts(
                embed_run, ["slow 1", "slow 2", "bad", "never", "never", "never"], limits=ONE_EACH, concurrency=3
            )
        )
    assert isinstance(embed_run.on_outcome, OutcomeCollector)
    assert (wire.cancelled, len(embed_run.on_outcome.outcomes), len(wire.sent)) == (cancelled, landed, 4)


@pytest.mark.fault(27)
@pytest.mark.parametrize("status", [401, 403])
def test_a_credential_is_tried_by_one_call_for_all(status: int) -> None:
    """A text can bring about a refusal (a firewall on the way), so a text of ours is tried too."""
    wire = FakeWire(up=fake({"do": {"status": status, "latency_ms": 200}}))
    embed_run = new_run(wire, alias(route()), 16)
    with pytest.raises(UpstreamAuthFailed):
        run(embed_texts(embed_run, [str(i) for i in range(16)], limits=ONE_EACH, concurrency=16))
    assert len(wire.sent) == 2


@pytest.mark.parametrize(
    ("first", "latest_s"),
    [({"latency_ms": 100}, 0.2), ({"latency_ms": 9000}, 2.1), ({"status": 429, "retry_after": 1}, 3.0)],
)
def test_an_answer_that_is_no_refusal_lets_the_others_call_and_a_slow_one_too(
    first: dict[str, object], latest_s: float
) -> None:
    wire = FakeWire(up=fake({"times": 1, "do": first}))
    run(embed_texts(new_run(wire, alias(route()), 8), [str(i) for i in range(8)], limits=ONE_EACH, concurrency=8))
    began = wire.sent_at[0]
    assert len([at for at in wire.sent_at if at - began <= latest_s]) >= 8
    assert len([at for at in wire.sent_at if at - began < 0.09]) == 1


def test_a_first_call_without_an_answer_is_followed_by_another() -> None:
    wire = FakeWire(up=fake({"times": 2, "do": {"fault": "close"}}))
    embed_run = new_run(wire, alias(route()), 8)
    assert vectors_of(run(embed_texts(embed_run, list("abcdefgh"), limits=ONE_EACH, concurrency=8))) == right(
        *"abcdefgh"
    )


def test_cancelling_embed_cancels_its_calls() -> None:
    async def cancel_in_the_middle(embed_run: EmbedRun, wire: FakeWire) -> None:
        task = asyncio.create_task(embed_texts(embed_run, ["slow 1", "slow 2"], limits=ONE_EACH))
        while wire.in_flight < 2:  # noqa: ASYNC110  # nothing but turns of the loop is waited for
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    wire = FakeWire(up=broken_siblings())
    run(cancel_in_the_middle(new_run(wire, alias(route()), 2), wire))
    assert (wire.cancelled, wire.in_flight) == (2, 0)


def test_an_accounts_door_bounds_its_calls_in_flight() -> None:
    wire = FakeWire(up=fake({"do": {"latency_ms": 10}}))
    narrow = route()
    narrow = dataclasses.replace(narrow, account=dataclasses.replace(narrow.account, max_concurrency=2))
    run(embed_texts(new_run(wire, alias(narrow), 20), [str(i) for i in range(20)], limits=ONE_EACH, concurrency=8))
    assert (wire.most_in_flight, len(wire.sent)) == (2, 20)


def test_what_was_used_and_what_it_costs() -> None:
    def uncounted(request: UpstreamRequest) -> UpstreamReply:
        document = orjson.loads(fake().answer(request, 0.0).reply.body)
        return UpstreamReply(200, {}, orjson.dumps({"data": document["data"]}))

    (told,) = run(embed_texts(new_run(FakeWire(up=fake()), alias(route()), 1), ["a" * 400])).outcomes
    assert (told.tokens, told.tokens_estimated, told.cost_usd) == (100, False, Decimal("0.000002"))
    (guessed,) = run(embed_texts(new_run(FakeWire(up=uncounted), alias(route()), 1), ["a" * 400])).outcomes
    assert guessed.tokens_estimated and guessed.tokens > 0 and guessed.cost_usd > 0


def test_nothing_to_do_is_done_at_once() -> None:
    wire = FakeWire(up=fake())
    embed_run = new_run(wire, alias(route()), 0)
    run(embed(embed_run, [], concurrency=3))
    assert wire.sent == [] and embed_run.calls == []
