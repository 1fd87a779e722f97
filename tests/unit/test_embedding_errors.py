"""Which error embed() raises when each of its routes has failed with another."""

from __future__ import annotations

import pytest

from engine.embedding.embed import BULK, INTERACTIVE
from models.errors import UpstreamAuthFailed, UpstreamMisconfigured
from tests.fakes import FakeWire, alias, embed_texts, fake, new_run, route, run


@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
@pytest.mark.parametrize("hosts", ["refused reads", "reads refused", "refused other reads", "refused reads refused2"])
def test_a_refusal_of_the_request_is_named_before_a_refused_credential(hosts: str, lane: str) -> None:
    wire = FakeWire(
        refused=fake({"do": {"status": 401}}),
        refused2=fake({"do": {"status": 401}}),
        other=fake({"do": {"status": 404, "code": "model_not_found"}}),
        reads=fake({"do": {"status": 404, "code": "model_not_found"}}),
    )
    routes = [route(host, priority=position) for position, host in enumerate(hosts.split())]
    embed_run = new_run(wire, alias(*routes), 1, lane=lane)
    with pytest.raises(UpstreamMisconfigured) as raised:
        run(embed_texts(embed_run, ["a"]))
    assert raised.value.account == "reads"


def test_of_several_refused_credentials_the_first_is_named() -> None:
    wire = FakeWire(a=fake({"do": {"status": 401}}), b=fake({"do": {"status": 401}}))
    with pytest.raises(UpstreamAuthFailed) as raised:
        run(embed_texts(new_run(wire, alias(route("a"), route("b", priority=1)), 1), ["a"]))
    assert raised.value.account == "a"
