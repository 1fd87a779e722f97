"""/readyz answers from memory: nobody waits for a part that was well lately, and for no part longer than a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from api.readiness import MAX_WAIT_S, PROBE_S, Probe, Readiness
from tests.fakes import run, time_passes


def part(takes_s: Callable[[], float], is_ok: Callable[[], bool] = lambda: True) -> Probe:
    async def ask() -> bool:
        await time_passes(takes_s())
        return is_ok()

    return Probe(ask)


async def asked(readiness: Readiness) -> tuple[float, bool]:
    began = asyncio.get_running_loop().time()
    parts = await readiness.parts()
    return asyncio.get_running_loop().time() - began, all(parts.values())


@pytest.mark.parametrize("every_s", [1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("takes_s", [0.3, 0.7, 3.0])
def test_who_asks_again_waits_for_nothing(every_s: float, takes_s: float) -> None:
    async def tried() -> None:
        readiness = Readiness({"database": part(lambda: takes_s), "broker": part(lambda: 0.0)})
        fresh = asyncio.create_task(readiness.keep_fresh())
        first_s, _ = await asked(readiness)
        assert first_s <= MAX_WAIT_S + 0.1
        await time_passes(takes_s + 1.0)
        for _ in range(10):
            waited_s, is_ready = await asked(readiness)
            assert waited_s < 0.05 and is_ready
            await time_passes(every_s)
        fresh.cancel()
        await readiness.close()

    run(tried())


def test_a_part_that_goes_silent_is_told_within_seconds_and_its_return_at_once() -> None:
    async def tried() -> None:
        takes_s = 0.0
        readiness = Readiness({"database": part(lambda: takes_s)})
        fresh = asyncio.create_task(readiness.keep_fresh())
        assert (await asked(readiness))[1]
        takes_s = 100.0
        await time_passes(PROBE_S + 3.0)
        waited_s, is_ready = await asked(readiness)
        assert waited_s <= MAX_WAIT_S + 0.1 and not is_ready
        takes_s = 0.1
        await time_passes(PROBE_S + 1.0)
        assert (await asked(readiness))[1]
        fresh.cancel()
        await readiness.close()

    run(tried())


def test_nobody_is_asked_for_the_sake_of_nobody() -> None:
    async def tried() -> None:
        count = 0

        def counted() -> float:
            nonlocal count
            count += 1
            return 0.0

        readiness = Readiness({"database": part(counted)})
        fresh = asyncio.create_task(readiness.keep_fresh())
        await time_passes(100.0)
        assert count == 0
        await asked(readiness)
        await time_passes(1_000.0)
        assert 20 <= count <= 40
        fresh.cancel()
        await readiness.close()

    run(tried())
