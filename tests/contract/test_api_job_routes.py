"""GET …/routes of a job: which routes embedded its inputs, and what was billed for nothing on each."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, error_of, open_gateway


async def test_the_shares_of_the_routes_add_up_to_the_job(data_dir: Path) -> None:
    routes = 'routes = [{ provider = "fake", model = "up" }'
    config = CONFIG.replace(routes, routes + ', { provider = "second", model = "up" }', 1)
    config += '\n[providers.second]\nkind = "fake"\n'
    gateway = await open_gateway(data_dir, config=config)
    try:
        job = await gateway.submit([f"text {number}" for number in range(300)])
        done = await gateway.run(job["id"])
        routes = (await gateway.client.get(f"{JOBS}/{job['id']}/routes")).json()["data"]
        assert {route["provider"] for route in routes} <= {"fake", "second"}
        assert sum(route["delivered"]["inputs"] for route in routes) == 300
        assert sum(route["share"] for route in routes) == pytest.approx(1.0)
        assert sum(Decimal(route["delivered"]["cost_usd"]) for route in routes) == Decimal(done["cost_usd"])
        assert all(route["codes"] == {} and route["wasted"]["calls"] == 0 for route in routes)
    finally:
        await close_gateway(gateway)


async def test_a_job_that_made_no_call_has_no_route_and_anothers_job_is_not_found(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    assert (await gateway.client.get(f"{JOBS}/{job['id']}/routes")).json() == {"object": "list", "data": []}
    missing = await gateway.client.get(f"{JOBS}/job_{'0' * 32}/routes")
    assert missing.status_code == 404 and error_of(missing)["code"]
    assert (await gateway.client.get(f"{JOBS}/{job['id']}/routes?x=1")).status_code == 400
