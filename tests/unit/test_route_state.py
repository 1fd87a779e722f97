"""One state for each account and upstream model: what a call has taught, the next finds, whichever alias it serves."""

from __future__ import annotations

from dataclasses import replace

from engine.limiter.registry import LimiterRegistry
from engine.planning.token_estimator import TokenEstimator
from engine.route_state.call_size_limits import CallSizeLimits
from engine.routing.router import Router
from models.embedding import Account, Batch, Limits, Options
from models.errors import UpstreamAuthFailed
from providers.rate_limit_headers import RateLimitHeaders
from tests.fakes import WIDTH, alias, route, run


def batch(count: int, tokens: int = 10) -> Batch:
    return Batch(["text"] * count, range(count), tokens, WIDTH, Options(), bytes=4 * count)


def test_routes_of_several_aliases_share_one_state() -> None:
    router, one = Router(), route("one")
    assert router.state_of(one) is router.state_of(replace(one, priority=3, width=8, alias="other"))
    assert router.state_of(one) is not router.state_of(replace(one, upstream_model="other"))
    assert router.state_of(one) is not router.state_of(route("two"))


def test_a_refused_credential_is_to_be_verified_again() -> None:
    router, one = Router(), route("one")
    router.state_of(one).credential_probe.is_verified = True
    router.report(one, UpstreamAuthFailed("refused", status=401))
    assert not router.state_of(one).credential_probe.is_verified


def test_limits_are_the_lowest_that_refusals_have_taught() -> None:
    limits = CallSizeLimits()
    assert limits.current() is None and not limits.has_any
    limits.observe_rejection(batch(40), "inputs")
    limits.observe_rejection(batch(8, tokens=500), "tokens")
    limits.observe_rejection(batch(60, tokens=700), "inputs")
    learned = limits.current()
    assert learned is not None and limits.has_any
    assert (learned.inputs_per_call, learned.tokens_per_call) == (40, 500)
    assert learned.tokens_per_input == learned.bytes_per_call > Limits().bytes_per_call  # no limit of these was met


def test_only_bulk_calls_keep_to_the_size_that_a_stated_quota_allows() -> None:
    async def learned() -> tuple[Limits | None, Limits | None]:
        router, one, two = Router(), route("one"), route("two")
        router.state_of(two).call_size_limits.observe_rejection(batch(5), "inputs")
        limiter = router.state_of(one).limiter
        permit = limiter.try_acquire()
        assert permit is not None
        hint = RateLimitHeaders(tokens_per_minute=100_000, tokens_left=90_000)
        limiter.release(permit, seconds=0.1, estimated=10, used=10, error=None, hint=hint)
        both = alias(one, two)
        return router.learned_limits(both, is_bulk=True), router.learned_limits(both, is_bulk=False)

    bulk, interactive = run(learned())
    assert bulk is not None and interactive is not None
    assert (bulk.inputs_per_call, bulk.tokens_per_call) == (5, 1_500)  # 1.5 % of the quota
    assert interactive.inputs_per_call == 5 and interactive.tokens_per_call > 10**9


def test_a_quota_is_charged_what_estimates_have_turned_out_to_be() -> None:
    estimator = TokenEstimator()
    assert (estimator.charge(100), estimator.charge(0)) == (100.0, 1.0)
    for _ in range(30):
        estimator.observe_estimate(100, 50)
    assert 50.0 <= estimator.charge(100) < 51.0
    estimator.observe_estimate(0, 50)  # says nothing
    for _ in range(50):
        estimator.observe_estimate(1, 1_000)
    assert 4.9 < estimator.charge(100) / 100 <= 5.0  # one absurd count does not stop the route


def test_the_limiter_charges_by_the_estimator_of_its_route() -> None:
    async def charged() -> float:
        limiters, estimator = LimiterRegistry(), TokenEstimator()
        account = Account("one", "openai", "http://one/v1", tokens_per_minute=1_000_000)
        limiter = limiters.create(account, "m", estimator)
        for _ in range(40):
            permit = await limiter.acquire(100, interactive=True, deadline=2**40)
            limiter.release(permit, seconds=0.1, estimated=100, used=25, error=None, hint=None)
        await limiters.close()
        return estimator.charge(100)

    assert 25.0 <= run(charged()) < 26.0
