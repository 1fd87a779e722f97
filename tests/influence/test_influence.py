"""Whatever one tenant does, another's answers are right: each hostile act beside a stream of calls and a job.

Nothing here is about time, but for bounds that only a hang exceeds; `python -m bench.influence` has the figures.
"""

from __future__ import annotations

import time

import pytest

from tests.influence.acts import ACTS, victims_key
from tests.influence.attacker import Attacker
from tests.influence.field import JOBS, Field
from tests.influence.victim import Victim
from tests.system import oracle
from tests.system.stack import MODEL, Stack

ACT_S = 0.8
JOB_INPUTS = 40
JOB_WITHIN_S = 60.0


def submit(stack: Stack, texts: list[str], key: str) -> str:
    reply = stack.api.post(JOBS, json={"model": MODEL, "input": texts}, headers={"idempotency-key": key})
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


@pytest.mark.parametrize("name", ACTS)
def test_another_tenant_is_served_right(field: Field, attacker: Attacker, name: str) -> None:
    stack, row = field.stack, ACTS[name]
    user = name.replace("'", "")
    texts = oracle.corpus(user, JOB_INPUTS)
    attacker.begin(name, ACT_S)
    ends_at = time.monotonic() + ACT_S
    job_id = submit(stack, texts, victims_key(name))
    victim = Victim(stack, callers=2, pause_s=0.005)
    calls = victim.stream(user, lambda: time.monotonic() >= ends_at)
    statuses = attacker.end()
    assert calls.wrong == []
    stack.await_end(job_id, JOB_WITHIN_S)
    oracle.check(stack, job_id, texts)
    victim.check_ledger(calls)
    assert field.route_faults() == []
    assert stack.api.get("/readyz").status_code == 200
    stack.processes.check()
    field.clear()
    assert row.must <= set(statuses) <= row.must | row.may, statuses
