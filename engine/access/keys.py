"""API keys: created, shown once, stored as a keyed hash, and checked in constant time.

Form: `em_<id>_<secret><crc>`. The id finds the row, the secret is 256 random bits, and the checksum lets a leak scanner
(and us, before any database) tell a key from a random string.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import string
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import insert, select, update

from engine.config_checks import MAX_NOTE_CHARS, MAX_PROJECT_CHARS, check_name
from engine.process.data_folder import make_data_folder
from engine.storage.database import DATABASE_ERRORS, Database
from models.base import db_now
from models.errors import ConfigError, NotAuthenticated
from models.key import ApiKey, Scope

T = TypeVar("T")

ALPHABET = string.digits + string.ascii_letters
ID_CHARS, SECRET_CHARS, CRC_CHARS = 12, 43, 6
CACHE_S = 20.0
INVALID_CACHE_S = 5.0
MIN_PEPPER_CHARS = 16
CACHE_ENTRIES = 10_000
REFUSED = "Incorrect API key provided. Make one with `embedmill keys create`."


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller: its project and scopes."""

    key_id: str
    project: str
    scopes: frozenset[str]


VALID = ApiKey.revoked_at.is_(None) & (ApiKey.expires_at.is_(None) | (ApiKey.expires_at > db_now()))


class KeyAuthenticator:
    """Authenticates keys. Caches valid ones for a few seconds by their full digest."""

    def __init__(self, database: Database, pepper: bytes, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._seen: dict[bytes, tuple[float, Caller]] = {}
        self._refused: dict[bytes, float] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def caller(self, text: str) -> Caller:
        """The caller of this key. Raises NotAuthenticated, with one message for every invalid key."""
        digest = _digest(self._pepper, text)
        known = self._seen.get(digest)
        now = self._clock()
        if known is not None and known[0] > now:
            return known[1]
        key_id = _id_of(text)
        # Neither costs a database query: without a key anybody may send as many requests as they like.
        if key_id is None or self._refused.get(digest, 0.0) > now:
            raise NotAuthenticated(REFUSED)
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    select(
                        ApiKey.id,
                        ApiKey.project,
                        ApiKey.scopes,
                        ApiKey.digest,
                        VALID.label("valid"),
                        (ApiKey.expires_at - db_now()).label("expires_in_s"),
                    ).where(ApiKey.id == key_id)
                )
            ).one_or_none()
        # An unknown id is compared too, so that it takes as long as a known id.
        matches = hmac.compare_digest(row.digest if row else bytes(32), digest)
        if row is None or not matches or not row.valid:
            _remember(self._refused, digest, now + INVALID_CACHE_S)
            raise NotAuthenticated(REFUSED)
        caller = Caller(row.id, row.project, frozenset(row.scopes))
        # Counted from before the query: a key is never accepted for longer than it is valid.
        good_for_s = CACHE_S if row.expires_in_s is None else min(CACHE_S, row.expires_in_s)
        _remember(self._seen, digest, (now + good_for_s, caller))
        noting = asyncio.create_task(self._touch_last_used(row.id))
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)
        return caller

    async def recheck(self, caller: Caller) -> None:
        """Check in the database whether the caller's key is still valid. Raises NotAuthenticated.

        For what has taken long since the key was checked: an upload may go on for hours.
        """
        async with self._database.read() as connection:
            found = await connection.execute(select(ApiKey.id).where(ApiKey.id == caller.key_id, VALID))
            if found.first() is None:
                raise NotAuthenticated(REFUSED)

    async def close(self) -> None:
        """Wait for the writes under way; the database must still be open."""
        await asyncio.gather(*self._noting, return_exceptions=True)

    async def _touch_last_used(self, key_id: str) -> None:
        # At most one write a minute and key, in a task: a slow database delays no request.
        # The column is informational: an error does not fail the request.
        with contextlib.suppress(*DATABASE_ERRORS):
            await self._write_last_used(key_id)

    async def _write_last_used(self, key_id: str) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                update(ApiKey)
                .where(ApiKey.id == key_id, (ApiKey.last_used_at.is_(None)) | (ApiKey.last_used_at < db_now() - 60.0))
                .values(last_used_at=db_now())
            )


async def create_key(
    database: Database,
    pepper: bytes,
    *,
    project: str = "default",
    name: str = "",
    scopes: Sequence[str] = (Scope.EMBEDDINGS, Scope.JOBS, Scope.USAGE),
    expires_at: float | None = None,
) -> tuple[str, str]:
    """Make a key: its id, and its text, which exists nowhere afterwards."""
    check_name(project, "--project", max_chars=MAX_PROJECT_CHARS)
    if name:
        check_name(name, "--name", max_chars=MAX_NOTE_CHARS)
    key_id = _random(ID_CHARS)
    body = f"em_{key_id}_{_random(SECRET_CHARS)}"
    text = body + _crc(body)
    async with database.write() as connection:
        await connection.execute(
            insert(ApiKey).values(
                id=key_id,
                project=project,
                name=name,
                digest=_digest(pepper, text),
                scopes=[str(scope) for scope in scopes],
                created_at=db_now(),
                expires_at=expires_at,
            )
        )
    return key_id, text


async def list_keys(database: Database) -> Sequence[ApiKey]:
    """Every key, newest first; never its digest's origin."""
    async with database.read() as connection:
        rows = await connection.execute(select(ApiKey.__table__).order_by(ApiKey.created_at.desc()))
        return [ApiKey(**row._mapping) for row in rows]


async def revoke_key(database: Database, key_id: str) -> bool:
    """Revoke a key for good, everywhere within CACHE_S; False when there is none of this id, or no valid one."""
    async with database.write() as connection:
        done = await connection.execute(
            update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_now())
        )
        return bool(done.rowcount)


def load_pepper(configured: str, data_dir: Path) -> bytes:
    """The secret that keys are hashed under: as configured, or made once and kept in the data directory (mode 0600).

    Raises ConfigError.
    """
    if configured:
        if len(configured.strip()) < MIN_PEPPER_CHARS:
            raise ConfigError("EMBEDMILL_KEY_PEPPER must have 16 characters or more", param="EMBEDMILL_KEY_PEPPER")
        return configured.encode()
    path = data_dir / "pepper"
    make_data_folder(data_dir)
    try:
        pepper = _stored_pepper(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{path.absolute()} cannot be read or made: {reason}; let this user read and write it, or "
            "set EMBEDMILL_DATA_DIR to another folder",
            param="EMBEDMILL_DATA_DIR",
        ) from error
    if len(pepper) < MIN_PEPPER_CHARS:
        raise ConfigError(
            f"{path} holds fewer than {MIN_PEPPER_CHARS} characters: put its backup back, or remove it for a new one, "
            "after which every key must be made anew",
            param="EMBEDMILL_KEY_PEPPER",
        )
    return pepper.encode()


def _stored_pepper(path: Path) -> str:
    if not path.exists():
        fresh = path.with_name(f"pepper.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        try:
            os.link(fresh, path)  # fails when another process was first, whose secret then counts
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()


def _remember(cache: dict[bytes, T], digest: bytes, value: T) -> None:
    if len(cache) >= CACHE_ENTRIES:
        cache.clear()
    cache[digest] = value


def _digest(pepper: bytes, text: str) -> bytes:
    # Not `hmac.digest`: it lets go of the interpreter, and under load it takes far longer to get it back.
    return hmac.new(pepper, text.encode("utf-8", "surrogatepass"), "sha256").digest()


def _id_of(text: str) -> str | None:
    """The id in a well-formed key; None for anything else."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != "em" or len(parts[1]) != ID_CHARS:
        return None
    body, crc = text[:-CRC_CHARS], text[-CRC_CHARS:]
    if len(parts[2]) != SECRET_CHARS + CRC_CHARS or not text.isascii() or _crc(body) != crc:
        return None
    return parts[1]


def _random(count: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def _crc(body: str) -> str:
    value = zlib.crc32(body.encode("ascii", "replace"))
    digits = ""
    for _ in range(CRC_CHARS):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
