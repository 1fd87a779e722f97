"""One recorded error reply of a vendor, and what it must be read as: the rows of the tests of error shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.errors import UpstreamError, UpstreamRateLimited, UpstreamRejected, UpstreamTooLarge
from providers import PROVIDERS
from providers.base import UpstreamReply
from providers.error_envelope import error_facts
from providers.error_map import error_from

DETAIL_IS_MESSAGE = frozenset({"voyage", "jina", "nomic", "deepinfra"})


@dataclass(frozen=True, slots=True)
class Row:
    """A reply of a kind, and its meaning. `body` is JSON, or raw bytes."""

    kind: str
    status: int
    body: Any
    means: type[UpstreamError]
    code: str | None = None  # None: the class's own
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float | None = None
    quota: str = ""
    limit: str = ""  # of UpstreamTooLarge
    numbers: tuple[int | None, int | None] = (None, None)  # token_limit and token_count
    position: int | None = None

    def __str__(self) -> str:
        """A name for the test."""
        return f"{self.kind}-{self.status}-{self.means.__name__}"


def check(row: Row) -> None:
    """The reply, through the adapter of its kind where there is one, is the error that the row says."""
    raw = row.body if isinstance(row.body, bytes) else orjson.dumps(row.body)
    if row.kind in PROVIDERS:
        assert PROVIDERS[row.kind].traits.detail_is_message is (row.kind in DETAIL_IS_MESSAGE)
        error = PROVIDERS[row.kind].error_from(UpstreamReply(row.status, row.headers, raw))
    else:
        detail_is_message = row.kind in DETAIL_IS_MESSAGE
        error = error_from(error_facts(row.status, raw, detail_is_message=detail_is_message), row.headers)
    assert type(error) is row.means, (error.message, raw)
    assert error.code == (row.code or row.means.code)
    assert (error.status, error.retry_after_s) == (row.status, row.wait_s)
    assert error.offending_position == row.position
    assert (error.quota if isinstance(error, UpstreamRateLimited) else "") == row.quota
    assert (error.limit if isinstance(error, UpstreamTooLarge) else "") == row.limit
    numbers = (error.token_limit, error.token_count) if isinstance(error, UpstreamRejected) else (None, None)
    assert numbers == row.numbers


def openai(message: str, kind: str = "invalid_request_error", **fields: Any) -> dict[str, Any]:
    """OpenAI's envelope."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None, **fields}}
