"""A refused credential is found out by one call: those that wait for its end are not made."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.cancellation import CancellationToken
from engine.route_state.credential_probe import CredentialProbe
from models.errors import UpstreamAuthFailed, UpstreamError, UpstreamMisconfigured, UpstreamUnavailable
from tests.fakes import run


async def calls_at_once(first_error: UpstreamError | None) -> tuple[int, list[BaseException | None]]:
    """Five calls at once to one route, of which the first ends so: how many were made, and what each has raised."""
    probe = CredentialProbe()
    made = 0

    async def call() -> None:
        nonlocal made
        async with probe.guard(time.monotonic() + 60.0, CancellationToken()):
            made += 1
            is_first = made == 1
            await asyncio.sleep(0.1)
            if is_first and first_error is not None:
                raise first_error

    raised = await asyncio.gather(*(call() for _ in range(5)), return_exceptions=True)
    return made, list(raised)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamAuthFailed("the key is refused", status=401, sent=True),
        UpstreamMisconfigured("there is no such model", status=404, sent=True, route_fault=True),
    ],
    ids=["credential", "route"],
)
def test_what_the_first_call_meets_the_waiting_calls_raise_unsent(error: UpstreamError) -> None:
    made, raised = run(calls_at_once(error))
    assert made == 1
    assert raised[0] is error
    for other in raised[1:]:
        assert type(other) is type(error) and isinstance(other, UpstreamError)
        assert (other.status, other.message, other.sent) == (error.status, error.message, False)


@pytest.mark.parametrize("error", [None, UpstreamUnavailable("500", status=500, sent=True)], ids=["success", "500"])
def test_after_any_other_answer_all_calls_are_made(error: UpstreamError | None) -> None:
    made, raised = run(calls_at_once(error))
    assert made == 5 and raised == [error, None, None, None, None]
