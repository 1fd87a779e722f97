"""Which routes a caller's own options leave, and in which order."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engine.routing.router import Router, apply_gateway_options
from models.embedding import Account, Alias, Limits, Route
from models.errors import (
    EmbedmillError,
    InvalidInput,
    RouteDown,
    UnknownAlias,
    UnsupportedParameter,
    UpstreamAuthFailed,
)


def route(account: str, priority: int = 0, weight: int = 1) -> Route:
    return Route(
        account=Account(account, "openai", f"http://{account}"),
        upstream_model="m",
        width=8,
        limits=Limits(),
        usd_per_million_tokens=Decimal(0),
        priority=priority,
        weight=weight,
    )


def alias(name: str, *routes: Route, space: str = "s") -> Alias:
    return Alias(name, 8, frozenset({8}), 100, space, routes, Decimal(0))


ONE = alias("one", route("a"), route("b", 1), route("c", 2))
TWIN = alias("twin", route("d"))
OTHER = alias("other", route("e"), space="elsewhere")
ALIASES = {one.name: one for one in (ONE, TWIN, OTHER)}


def tried(gateway: dict[str, Any]) -> list[str]:
    left = apply_gateway_options(ALIASES, ONE, {"gateway": gateway})
    return [chosen.provider for chosen in Router().candidates(left)]


def test_routes_go_by_priority() -> None:
    assert tried({}) == ["a", "b", "c"]


def test_the_callers_order_comes_first() -> None:
    assert tried({"order": ["c", "a"]}) == ["c", "a", "b"]


def test_only_leaves_the_named_by_account_or_kind() -> None:
    assert tried({"only": ["b"]}) == ["b"]
    assert tried({"only": ["openai"]}) == ["a", "b", "c"]


def test_models_of_the_same_space_stand_in_last() -> None:
    assert tried({"models": ["twin"]}) == ["a", "b", "c", "d"]


def test_each_route_is_there_once_whoever_names_it() -> None:
    shared = alias("shared", route("a"), route("d"))
    left = apply_gateway_options({**ALIASES, "shared": shared}, ONE, {"gateway": {"models": ["one", "shared", "twin"]}})
    assert [each.provider for each in left.routes] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("gateway", "error", "param"),
    [
        ({"only": ["nobody"]}, InvalidInput, "providerOptions.gateway.only"),
        ({"models": ["missing"]}, UnknownAlias, "providerOptions.gateway.models"),
        ({"models": ["other"]}, InvalidInput, "providerOptions.gateway.models"),
        ({"nonsense": 1}, UnsupportedParameter, "providerOptions.gateway.nonsense"),
        ({"onyl": ["a"]}, UnsupportedParameter, "providerOptions.gateway.onyl"),
        ({"zeroDataRetention": True}, UnsupportedParameter, "providerOptions.gateway.zeroDataRetention"),
        ({"disallowPromptTraining": True}, UnsupportedParameter, "providerOptions.gateway.disallowPromptTraining"),
        ({"region": "eu", "sort": "cost"}, UnsupportedParameter, "providerOptions.gateway.region"),
        ({"strict": "yes"}, InvalidInput, "providerOptions.gateway"),
        ({"order": "a"}, InvalidInput, "providerOptions.gateway"),
        ({"models": ["twin"] * 2}, InvalidInput, "providerOptions.gateway.models"),
        ({"models": ["one"] * 1_500_000}, InvalidInput, "providerOptions.gateway.models"),
        ({"models": [f"m{i}" for i in range(9)]}, InvalidInput, "providerOptions.gateway.models"),
        ({"only": ["a"] * 9}, InvalidInput, "providerOptions.gateway.only"),
        ({"order": ["a", "b", "a"]}, InvalidInput, "providerOptions.gateway.order"),
        ({"tags": ["t"] * 30_000}, InvalidInput, "providerOptions.gateway.tags"),
        ({"order": ["a" * 257]}, InvalidInput, "providerOptions.gateway.order"),
        ({"models": [["twin"]] * 9}, InvalidInput, "providerOptions.gateway.models"),
    ],
)
def test_what_cannot_be_followed_names_the_field(
    gateway: dict[str, Any], error: type[EmbedmillError], param: str
) -> None:
    with pytest.raises(error) as raised:
        tried(gateway)
    assert raised.value.param == param


REFUSED = UpstreamAuthFailed("the provider refused the account's credential", status=401)


def test_a_route_that_is_down_is_left_out_until_it_answers() -> None:
    router = Router()
    router.report(ONE.routes[0], REFUSED)
    assert [chosen.provider for chosen in router.candidates(ONE)] == ["b", "c"]
    assert router.outage_of(ONE) is None
    router.record_success(ONE.routes[0], router.state_of(ONE.routes[0]), 0)
    assert [chosen.provider for chosen in router.candidates(ONE)] == ["a", "b", "c"]


def test_with_all_routes_down_the_error_names_account_cause_and_advice_and_when_to_come_back() -> None:
    router = Router()
    for each in ONE.routes:
        router.report(each, REFUSED)
    with pytest.raises(RouteDown) as raised:
        router.candidates(ONE)
    assert "Provider account a: the provider refused the account's credential" in raised.value.message
    assert "embedmill providers test a" in raised.value.message
    assert raised.value.retry_after_s is not None and 1.0 <= raised.value.retry_after_s <= 5.0
    outage = router.outage_of(ONE)
    assert outage is not None and (outage.cause.account, outage.cause.status) == ("a", 401)


def test_weights_share_one_priority() -> None:
    heavy = alias("heavy", route("light", weight=1), route("heavy", weight=3))
    firsts = [Router().candidates(heavy)[0].provider for _ in range(1000)]
    # Three in four, give or take nine standard deviations.
    assert 630 <= firsts.count("heavy") <= 870
