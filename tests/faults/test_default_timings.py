"""The marks for recovery, at the product's default timings: a machine that is lost, a broker that forgets."""

from __future__ import annotations

import pytest
import redis

from engine.config.settings import Settings
from tests.faults.conftest import FaultRun, StackFactory
from tests.system.oracle import REPEATS_PER_KILL
from tests.system.running_shards import started
from tests.system.stack import WORKER, Stack, seconds_until
from tests.waiting import wait_until

DEFAULT = Settings()


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    return make_stack(settings={"LEASE_S": f"{DEFAULT.lease_s:g}"})


@pytest.mark.fault(10)
@pytest.mark.timeout(200)
def test_flushall_is_made_good_within_35_seconds(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(500)
    job_id, texts = started(stack, "default flushall", 10_000)
    with redis.Redis.from_url(stack.broker_url) as client:
        client.flushall()
    lost = [row[0] for row in stack.query(f"SELECT id FROM shards WHERE job_id = '{job_id}' AND state = 'queued'")][:4]
    if lost:
        names = ", ".join(f"'{shard}'" for shard in lost)
        open_ = f"SELECT count(*) FROM shards WHERE id IN ({names}) AND attempt = 0"
        fault_run.recovered(
            seconds_until(lambda: stack.query(open_) == [(0,)], 60, "the forgotten shards"), within_s=35
        )
    stack.await_end(job_id, 120)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(1)
@pytest.mark.timeout(200)
def test_a_lost_machine_is_made_good_within_70_seconds(stack: Stack, fault_run: FaultRun) -> None:
    """Nobody can see that its processes are dead: only their leases tell."""
    elsewhere = ["unshare", "--uts", "sh", "-c", f"hostname elsewhere && exec {' '.join(WORKER)}"]
    stack.processes.start("machine", elsewhere)
    wait_until(lambda: elsewhere_slots(stack), 60, what="the other machine's workers")
    stack.latency(1_000)
    job_id, texts = started(stack, "lost machine", 6_000)
    text = f"SELECT id, fence FROM shards WHERE job_id = '{job_id}' AND state = 'running' AND worker LIKE 'elsewhere/%'"
    lost = wait_until(lambda: dict(stack.query(text)), 30, what="a shard on the other machine")
    stack.processes.kill("machine")
    stack.processes.forget("machine")

    def back() -> bool:
        names = ", ".join(f"'{shard}'" for shard in lost)
        rows = stack.query(f"SELECT id, fence, state FROM shards WHERE id IN ({names})")
        return all(fence > lost[shard] or state == "done" for shard, fence, state in rows)

    fault_run.recovered(seconds_until(back, 100, "the lost shards"), within_s=70)
    stack.await_end(job_id, 60)
    fault_run.judge(stack, job_id, texts, repeats=range(2 * REPEATS_PER_KILL))


def elsewhere_slots(stack: Stack) -> int:
    return int(stack.query("SELECT count(*) FROM workers WHERE id LIKE 'elsewhere/%'")[0][0])
