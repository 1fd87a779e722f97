"""Which routes a caller's own options leave, and in which order."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engine.routing import Router, narrowed
from models.embedding import Account, Alias, Limits, Route
from models.errors import EmbedmillError, InvalidInput, NoRoute, UnknownAlias


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
    left = narrowed(ALIASES, ONE, {"gateway": gateway})
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


@pytest.mark.parametrize(
    ("gateway", "error", "param"),
    [
        ({"only": ["nobody"]}, InvalidInput, "providerOptions.gateway.only"),
        ({"models": ["missing"]}, UnknownAlias, "providerOptions.gateway.models"),
        ({"models": ["other"]}, InvalidInput, "providerOptions.gateway.models"),
        ({"nonsense": 1}, InvalidInput, "providerOptions.gateway"),
        ({"order": "a"}, InvalidInput, "providerOptions.gateway"),
    ],
)
def test_what_cannot_be_followed_names_the_field(
    gateway: dict[str, Any], error: type[EmbedmillError], param: str
) -> None:
    with pytest.raises(error) as raised:
        tried(gateway)
    assert raised.value.param == param


def test_a_route_that_was_refused_is_left_out_until_it_recovers() -> None:
    router = Router()
    router.cool_down(ONE.routes[0])
    assert [chosen.provider for chosen in router.candidates(ONE)] == ["b", "c"]
    router.answered(ONE.routes[0], 0)
    assert [chosen.provider for chosen in router.candidates(ONE)] == ["a", "b", "c"]


def test_a_refused_credential_is_left_alone_for_longer_each_time() -> None:
    router, pauses = Router(), []
    for _ in range(5):
        router.refused(TWIN.routes[0])
        router.refused(TWIN.routes[0])  # another call that was under way meets the same refusal
        with pytest.raises(NoRoute) as raised:
            router.candidates(TWIN)
        pauses.append(raised.value.retry_after_s)
        router._unfit_until.clear()  # the pause is over
    assert pauses == pytest.approx([20.0, 60.0, 300.0, 600.0, 600.0], abs=1.0)
    router.answered(TWIN.routes[0], 0)
    router.refused(TWIN.routes[0])
    with pytest.raises(NoRoute) as raised:
        router.candidates(TWIN)
    assert raised.value.retry_after_s == pytest.approx(20.0, abs=1.0)


def test_without_any_fit_route_the_error_says_when_to_come_back() -> None:
    router = Router()
    for refused in ONE.routes:
        router.cool_down(refused, seconds=9.0)
    with pytest.raises(NoRoute) as raised:
        router.candidates(ONE)
    assert raised.value.retry_after_s is not None
    assert 1.0 <= raised.value.retry_after_s <= 9.0


def test_weights_share_one_priority() -> None:
    heavy = alias("heavy", route("light", weight=1), route("heavy", weight=3))
    firsts = [Router().candidates(heavy)[0].provider for _ in range(1000)]
    # Three in four, give or take nine standard deviations.
    assert 630 <= firsts.count("heavy") <= 870
