"""Batches with three models of different widths, line by line, on a database; and what each vector must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from engine.batches.composition import step_worker_of
from engine.batches.worker import StepWorker
from engine.config.settings import Settings
from engine.jobs.reading import job_rows
from engine.jobs.reading.result_pages import IndexRange, read_pages
from engine.runtime import Runtime
from models.batch import JobVariant
from models.job import ShardInputs
from providers.fake import fake_vectors
from tests.integration.batches import request
from tests.integration.store import UPSTREAM_MODEL, RecordingNotifier, Store
from tests.running import run_next_shard

WIDTHS = {"three/8": 8, "three/16": 16, "three/24": 24}
MODELS = tuple(WIDTHS)
CONFIG = """
[providers.fake]
kind = "fake"
""" + "".join(
    f"""
[models."{name}"]
dimensions = {width}
max_input_tokens = 64
input_usd_per_million_tokens = "0.02"
verify_spaces = false
routes = [{{ provider = "fake", model = "{UPSTREAM_MODEL}" }}]
"""
    for name, width in WIDTHS.items()
)


def open_store(database_url: str, folder: Path, **settings: Any) -> Store:
    """A store with the three models."""
    config = folder / "three.toml"
    config.write_text(CONFIG)
    chosen = {"shard_inputs": 200, "batch_inputs": 64} | settings
    runtime = Runtime.open(Settings(data_dir=folder, database_url=database_url, config=str(config), **chosen))
    runtime.notifier = notifier = RecordingNotifier()
    return Store(runtime, notifier)


def text_at(line: int) -> str:
    """The text of a line; every 50th is that of the line before the last one with its model."""
    return f"text of line {line - 3 if line % 50 == 49 else line}"


def mixed_lines(count: int) -> list[bytes]:
    """Lines whose models alternate."""
    return [request(f"id-{line}", text_at(line), MODELS[line % 3]) for line in range(count)]


def steps_of(store: Store, name: str = "w") -> StepWorker:
    return step_worker_of(store.runtime, name)


async def run_all_shards(store: Store) -> None:
    while await run_next_shard(store.runtime):
        pass


async def vectors_by_variant(store: Store, job_id: str) -> dict[str, Any]:
    """All vectors of the job by the model of their variant, in the order of their indexes; NaN without one."""
    database = store.database
    job = await job_rows.get_job(store.jobs, "p", job_id)
    found: dict[str, Any] = {}
    async with database.read() as connection:
        variants = (await connection.execute(select(*JobVariant.__table__.columns))).all()
    for variant in variants:
        if variant.job_id != job_id or variant.error is not None:
            continue
        stop = variant.first_index + variant.inputs
        matrix = np.full((variant.inputs, variant.dimensions), np.nan, dtype=np.float32)
        indexes = IndexRange.of(job, variant.first_index, stop)
        async for page in read_pages(database, job, indexes, complete=False, with_ids=False):
            for first, rows in page.blocks:
                matrix[first - variant.first_index : first - variant.first_index + len(rows)] = rows
        found[variant.alias] = matrix
    return found


def expected_vectors(count: int) -> dict[str, Any]:
    """What the fake makes of the lines, by model, in the order of the file."""
    return {
        model: fake_vectors([text_at(line) for line in range(count) if line % 3 == number], width, UPSTREAM_MODEL)
        for number, (model, width) in enumerate(WIDTHS.items())
    }


async def assert_exact(store: Store, job_id: str, count: int) -> None:
    """Every vector is the fake's function of its text, at its index."""
    found = await vectors_by_variant(store, job_id)
    for model, expected in expected_vectors(count).items():
        assert np.array_equal(found[model], expected), model


async def caller_ids(store: Store, job_id: str) -> int:
    """The number of stored rows of inputs."""
    async with store.database.read() as connection:
        return len((await connection.execute(select(ShardInputs.shard_id))).all())
