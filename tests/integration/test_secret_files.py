"""A key that changes in its file is used at once, in every process; one that was refused is tried again at once."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.jobs.render import job_object
from engine.account_check import check_account
from engine.jobs.execution.outage_waits import try_changed_secrets
from engine.jobs.reading.job_rows import get_job
from engine.routing.outages import Outages
from models.errors import StorageUnavailable, UpstreamAuthFailed
from models.job import JobStatus
from tests.integration.store import Store
from tests.integration.test_provider_wait import ONE_ROUTE, outages, run_due
from tests.running import run_shard

OLD, NEW = "sk-old-0123456789", "sk-new-0123456789"


def opened(database_url: str, folder: Path, reference: str) -> Store:
    store = Store.open(database_url, folder)
    (folder / "embedmill.toml").write_text(
        ONE_ROUTE.replace("[providers.one]", f'[providers.one]\napi_key = "{reference}"')
    )
    return store.another()


def accept(store: Store, key: str) -> None:
    """The provider takes this key only."""
    for upstream in store.runtime.upstream._in_process._fakes.values():
        upstream.api_key = key


def look_now(store: Store) -> None:
    """As if two seconds had passed."""
    store.runtime.upstream.secrets._look_at = 0.0


def replace_content(file: Path, content: bytes | None) -> None:
    file.unlink() if content is None else file.write_bytes(content)


def write_unseen(file: Path, text: str) -> None:
    state = file.stat()
    file.write_text(text)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key-of-one"
    file.write_text(OLD + "\n")
    return file


@pytest.fixture
async def store(database_url: str, tmp_path: Path, key_file: Path) -> AsyncIterator[Store]:
    store = opened(database_url, tmp_path, f"file:{key_file}")
    accept(store, OLD)
    yield store
    await store.close()


async def test_a_key_that_is_replaced_while_calls_are_made_is_no_outage(store: Store, key_file: Path) -> None:
    first, second = await store.shard_ids(job_id := await store.submit(20))
    await run_shard(store.runtime, first, "w")
    write(key_file, NEW)
    accept(store, NEW)
    await run_shard(store.runtime, second, "w")
    assert (await store.status(job_id), await outages(store)) == (JobStatus.COMPLETED, [])


async def test_a_refused_account_is_tried_again_as_soon_as_its_file_has_changed(store: Store, key_file: Path) -> None:
    """In every process, also in those that never called it: nobody waits for the next probe or the sweep."""
    other = store.another()
    for each in (store, other):
        accept(each, NEW)
    one, two = await store.submit(10), await store.submit(10, tag="other")
    await run_due(store, one)
    await outages(store)
    await run_due(other, two)
    assert job_object(await get_job(store.jobs, "p", two))["waiting"]["code"] == "upstream_auth_failed"
    for _ in range(5):  # it is refused again and again: the pauses between probes are at their longest
        store.runtime.router.outages.probe_failed(store.routes[0], _refusal())
    await outages(store)
    write(key_file, NEW)
    for each in (store, other):
        look_now(each)
        await try_changed_secrets(each.runtime.upstream.secrets, each.runtime.router.outages, each.dispatcher)
    assert [(await store.job(job)).not_before for job in (one, two)] == [None, None]
    await other.runtime.router.outages.refresh(max_age_s=0.0)
    await run_due(other, two)
    await run_due(store, one)
    assert [await store.status(job) for job in (one, two)] == [JobStatus.COMPLETED] * 2
    assert await outages(store) == []
    await other.close()


def _refusal() -> UpstreamAuthFailed:
    return UpstreamAuthFailed("the provider refused the key", status=401)


async def test_a_file_that_looks_the_same_is_read_after_a_refusal(store: Store, key_file: Path) -> None:
    """Written twice within one tick of the file system's clock, with a key of the same length."""
    await run_due(store, await store.submit(10))
    write_unseen(key_file, NEW + "\n")
    accept(store, NEW)
    await run_due(store, job_id := await store.submit(10, tag="again"))
    assert await store.status(job_id) == JobStatus.COMPLETED


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", None])
async def test_a_file_that_holds_no_secret_changes_nothing(
    store: Store, key_file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    await run_due(store, await store.submit(10))
    replace_content(key_file, content)
    for number in range(2):
        look_now(store)
        await run_due(store, job_id := await store.submit(10, tag=f"more {number}"))
        assert await store.status(job_id) == JobStatus.COMPLETED
    said = [record.getMessage() for record in caplog.records if "the former secret is used on" in record.getMessage()]
    assert len(said) == 1 and OLD not in said[0]


async def test_a_change_is_looked_for_every_two_seconds_and_not_with_each_call(store: Store, key_file: Path) -> None:
    await run_due(store, await store.submit(10))
    write(key_file, NEW)  # not refused: the old one still works
    await run_due(store, await store.submit(10, tag="soon"))
    assert store.runtime.upstream.secrets.version("one") == 0
    look_now(store)
    accept(store, NEW)
    await run_due(store, job_id := await store.submit(10, tag="later"))
    assert (store.runtime.upstream.secrets.version("one"), await store.status(job_id)) == (1, JobStatus.COMPLETED)


async def test_what_a_refused_key_needs_is_said(
    store: Store, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(store, NEW)
    await run_due(store, job_id := await store.submit(10))
    advice = job_object(await get_job(store.jobs, "p", job_id))["waiting"]["advice"]
    assert "A new key in its file is used within seconds." in advice
    monkeypatch.setenv("KEY_OF_ONE", OLD)
    of_env = opened(database_url, tmp_path, "env:KEY_OF_ONE")
    accept(of_env, NEW)
    cause = (await check_account(of_env.runtime, "one"))[0].cause
    assert cause is not None
    assert "environment variable: a new one needs a restart of API and workers" in cause.advice
    await of_env.close()


async def test_a_test_of_the_account_lets_jobs_of_all_processes_go_on_at_once(store: Store) -> None:
    """`embedmill providers test` is a process of its own; no sweep has been here."""
    operator = store.another()
    accept(store, NEW)
    await run_due(store, job_id := await store.submit(10))
    await outages(store)
    assert (await store.job(job_id)).not_before is not None
    accept(store, OLD)
    accept(operator, OLD)
    assert all(test.cause is None for test in await check_account(operator.runtime, "one"))
    assert (await store.job(job_id)).not_before is None
    await store.runtime.router.outages.refresh(max_age_s=0.0)
    await run_due(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED
    await operator.close()


class AbsentOutages(Outages):
    """Outages whose table cannot be written."""

    is_away = True

    async def probe_now(self, account: str) -> None:
        if self.is_away:
            raise StorageUnavailable("the database does not answer")


async def test_accounts_whose_keys_have_changed_are_tried_again_after_an_error(store: Store) -> None:
    store.runtime.router.outages = outages = AbsentOutages(store.runtime.database)
    secrets = store.runtime.upstream.secrets
    for account in ("one", "two"):
        secrets.note_changed(account)
    with pytest.raises(StorageUnavailable):
        await try_changed_secrets(secrets, outages, store.dispatcher)
    assert secrets._changed == {"one", "two"}
    outages.is_away = False
    await try_changed_secrets(secrets, outages, store.dispatcher)
    assert secrets._changed == set()
