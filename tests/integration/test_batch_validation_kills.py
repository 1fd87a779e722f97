"""kill -9 in the middle of a validation: another worker does it again, and there is one batch and one event."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.batches import request
from tests.integration.new_batches import new_batch
from tests.integration.store import Store

ROOT = Path(__file__).resolve().parents[2]
VALIDATE = """
import asyncio
from engine.batches.composition import step_parts_of
from engine.batches.steps import claim_step
from engine.batches.validate import validate_batch
from engine.config.settings import Settings
from engine.runtime import Runtime

async def main():
    runtime = Runtime.open(Settings.from_environment())
    step = await claim_step(runtime.store, "doomed")
    await validate_batch(step_parts_of(runtime), step)

asyncio.run(main())
"""


def run_worker(environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """A process that validates the next batch."""
    command = [sys.executable, "-c", VALIDATE]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=100, check=False)


@pytest.mark.parametrize("lines", ["good", "bad"])
@pytest.mark.parametrize("place", ["during_validation", "during_validation_end"])
async def test_a_killed_validation_is_done_again(store: Store, lines: str, place: str) -> None:
    body = [request(str(n), "x") for n in range(3000)] + ([] if lines == "good" else [b"nonsense"])
    batch = await new_batch(store, body, has_webhook=True)
    settings = store.runtime.settings
    ours = {
        "DATA_DIR": str(settings.data_dir),
        "CONFIG": settings.config,
        "DATABASE_URL": settings.database_url,
        "FAILPOINTS": f"{place}=kill,skip=1" if place == "during_validation" else f"{place}=kill",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    ended = run_worker(inherited | {f"EMBEDMILL_{name}": value for name, value in ours.items()})
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    step = await batch.step()
    assert (step.worker, step.kind) == ("doomed", "validate")
    assert (await batch.row()).status == "validating" and await batch.variants() == [] and await batch.events() == []
    await batch.let_lease_pass()
    row = await batch.validate()
    if lines == "good":
        assert (row.status, row.total, (await batch.job()).status) == ("in_progress", 3000, "in_progress")
        assert len(await batch.variants()) == 1 and await batch.events() == []
    else:
        assert (row.status, row.error_count, (await batch.job()).status) == ("failed", 1, "failed")
        assert await batch.events() == ["batch.failed"]
