"""Keys: their form, their checksum, and one answer for every key that is wrong."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from cli.__main__ import run
from engine.access.keys import (
    ALPHABET,
    CRC_CHARS,
    REFUSED,
    KeyAuthenticator,
    create_key,
    list_keys,
    load_pepper,
    revoke_key,
)
from engine.storage.database import Database
from models.errors import ConfigError, NotAuthenticated
from models.key import ApiKey, Scope

PEPPER = b"0123456789abcdef"


@pytest.fixture
async def database(data_dir: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{data_dir / 'embedmill.db'}")
    yield database
    await database.close()


@pytest.fixture
async def ring(database: Database) -> AsyncIterator[KeyAuthenticator]:
    ring = KeyAuthenticator(database, PEPPER)
    yield ring
    await ring.close()


def crc_of(body: str) -> str:
    """The checksum, worked out again here: base 62, most significant digit first."""
    value, digits = zlib.crc32(body.encode()), ""
    while len(digits) < CRC_CHARS:
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits


async def test_the_form_of_a_key(database: Database) -> None:
    key_id, key = await create_key(database, PEPPER)
    assert re.fullmatch(rf"em_{key_id}_[0-9A-Za-z]{{49}}", key) and len(key_id) == 12
    assert key[-CRC_CHARS:] == crc_of(key[:-CRC_CHARS])
    assert (await create_key(database, PEPPER))[1] != key


async def test_who_a_key_belongs_to(database: Database, ring: KeyAuthenticator) -> None:
    key_id, key = await create_key(database, PEPPER, project="p", scopes=[Scope.JOBS])
    caller = await ring.caller(key)
    assert (caller.key_id, caller.project, caller.scopes) == (key_id, "p", frozenset({"jobs"}))


async def test_only_a_keyed_digest_is_stored(database: Database) -> None:
    _, key = await create_key(database, PEPPER, name="a note")
    secret = key.split("_")[2][:-CRC_CHARS]
    async with database.read() as connection:
        row = (await connection.execute(select(ApiKey.__table__))).one()
    assert not any(secret in str(value) for value in row) and len(row.digest) == 32
    with pytest.raises(NotAuthenticated):  # the same key under another pepper is another digest
        await KeyAuthenticator(database, b"another pepper 16").caller(key)


async def test_every_wrong_key_gets_the_same_answer(database: Database, ring: KeyAuthenticator) -> None:
    key_id, key = await create_key(database, PEPPER)
    _, expired = await create_key(database, PEPPER, expires_at=time.time() - 1)
    gone_id, revoked = await create_key(database, PEPPER)
    assert await revoke_key(database, gone_id)
    stranger = f"em_{'0' * 12}_" + "0" * 43
    flipped = key[:-7] + ("0" if key[-7] != "0" else "1")  # another secret of this id, with its right checksum
    wrong = [
        "", " ", "x", "em_", "em__", key_id, key[:-1], key + "0", key.upper(), f" {key}", f"{key}\n",
        key[:20] + ("0" if key[20] != "0" else "1") + key[21:], expired, revoked, stranger + crc_of(stranger),
        flipped + crc_of(flipped), f"em_{key_id}_{'é' * 49}", "\ud800", "em_" + "x" * 100_000,
    ]  # fmt: skip
    for text in wrong:
        with pytest.raises(NotAuthenticated) as refused:
            await ring.caller(text)
        assert (refused.value.message, refused.value.code) == (REFUSED, "invalid_api_key"), text
    assert (await ring.caller(key)).key_id == key_id


async def test_a_key_that_expires_later_is_good_until_then(database: Database, ring: KeyAuthenticator) -> None:
    _, key = await create_key(database, PEPPER, expires_at=time.time() + 3600)
    assert (await ring.caller(key)).project == "default"


async def test_a_good_key_is_remembered_and_a_revoked_one_soon_forgotten(
    database: Database, ring: KeyAuthenticator
) -> None:
    key_id, key = await create_key(database, PEPPER)
    first = await ring.caller(key)
    assert await revoke_key(database, key_id) and not await revoke_key(database, key_id)
    assert await ring.caller(key) is first  # from memory: nothing was asked of the database
    with pytest.raises(NotAuthenticated):
        await KeyAuthenticator(database, PEPPER).caller(key)


async def test_a_revoked_key_is_refused_by_every_process_within_twenty_seconds(database: Database) -> None:
    now = 1000.0
    authenticator = KeyAuthenticator(database, PEPPER, clock=lambda: now)
    key_id, key = await create_key(database, PEPPER)
    await authenticator.caller(key)
    assert await revoke_key(database, key_id)
    now = 1019.9
    assert (await authenticator.caller(key)).key_id == key_id
    now = 1020.1
    with pytest.raises(NotAuthenticated):
        await authenticator.caller(key)
    await authenticator.close()


async def test_a_wrong_key_is_not_remembered(ring: KeyAuthenticator) -> None:
    body = f"em_{'a' * 12}_{'b' * 43}"
    for _ in range(50):
        with pytest.raises(NotAuthenticated):
            await ring.caller(body + crc_of(body))
    assert ring._seen == {}


async def test_use_is_noted_and_keys_are_listed_newest_first(database: Database, ring: KeyAuthenticator) -> None:
    ids = [(await create_key(database, PEPPER, name=name))[0] for name in "ab"]
    _, key = await create_key(database, PEPPER, name="c")
    await ring.caller(key)
    await ring.close()
    keys = await list_keys(database)
    # Two of one millisecond may stand in either order.
    assert sorted(keys, key=lambda each: each.created_at, reverse=True) == list(keys)
    by_name = {each.name: each for each in keys}
    assert by_name.keys() == {"a", "b", "c"} and by_name["b"].id == ids[1]
    used_at = by_name["c"].last_used_at
    assert used_at is not None and abs(used_at - time.time()) < 60
    assert by_name["b"].last_used_at is None


def test_the_pepper_is_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    pepper = load_pepper("", folder)
    assert len(pepper) == 64 and load_pepper("", folder) == pepper
    assert (folder / "pepper").stat().st_mode & 0o777 == 0o600 and [p.name for p in folder.iterdir()] == ["pepper"]
    assert load_pepper("configured, 16 chars", folder) == b"configured, 16 chars"
    with pytest.raises(ConfigError, match="16 characters"):
        load_pepper("too short", folder)


@pytest.mark.parametrize(("left_s", "cached_s"), [(2.0, 2.0), (4.0, 4.0), (1_000.0, 20.0), (None, 20.0)])
async def test_the_cache_never_outlives_a_key(
    database: Database, ring: KeyAuthenticator, left_s: float | None, cached_s: float
) -> None:
    _, key = await create_key(database, PEPPER, expires_at=None if left_s is None else time.time() + left_s)
    await ring.caller(key)
    ((until, _),) = ring._seen.values()
    assert until <= time.monotonic() + cached_s
    if left_s == 2.0:
        async with asyncio.timeout(30):
            with pytest.raises(NotAuthenticated):
                while True:
                    await ring.caller(key)
                    await asyncio.sleep(0.02)


async def test_a_key_that_is_like_another_for_its_first_half_is_another(
    database: Database, ring: KeyAuthenticator
) -> None:
    _, key = await create_key(database, PEPPER)
    await ring.caller(key)
    for kept in (16, 17, 20, 24, 32, 40, 58):
        middle = "".join(sorted(ALPHABET, reverse=True, key=lambda char: (char != key[kept], char)))
        body = key[:kept] + middle[: len(key) - CRC_CHARS - kept]
        other = body + crc_of(body)
        assert len(other) == len(key) and other[:kept] == key[:kept] and other != key
        with pytest.raises(NotAuthenticated):
            await ring.caller(other)


async def test_a_key_is_checked_again_without_the_cache(database: Database, ring: KeyAuthenticator) -> None:
    key_id, key = await create_key(database, PEPPER)
    caller = await ring.caller(key)
    await ring.recheck(caller)
    await revoke_key(database, key_id)
    assert await ring.caller(key) == caller, "for 20 s, as documented"
    with pytest.raises(NotAuthenticated):
        await ring.recheck(caller)


@pytest.mark.parametrize("text", ["", "\n", " " * 40, "short"])
def test_a_pepper_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pepper").write_text(text)
    with pytest.raises(ConfigError, match="pepper holds fewer than 16"):
        load_pepper("", tmp_path)
    if text.strip() or not text:
        return
    with pytest.raises(ConfigError, match="16 characters"):
        load_pepper(text * 2, tmp_path)


async def test_a_revocation_says_when_it_takes_effect(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key_id, _ = await create_key(database, PEPPER)
    monkeypatch.setenv("EMBEDMILL_DATABASE_URL", database.url)
    monkeypatch.chdir(tmp_path)
    assert await asyncio.to_thread(run, ["keys", "revoke", key_id]) == 0
    assert "every process refuses it within 20 seconds" in capsys.readouterr().out


def test_the_manual_names_the_same_time() -> None:
    operations = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    assert "A revoked key is refused everywhere within 20 seconds" in operations
