"""What a wire format of the fake upstream is: it reads calls and writes replies; all else is common to all formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.embedding import Input, Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.rate_limit import Refusal, SlidingWindow
from providers.fake.script import Action


@dataclass(frozen=True, slots=True)
class FakeCall:
    """A call that was read, in the terms that all formats share."""

    model: str
    inputs: Sequence[Input]
    width: int | None = None  # that the vectors are narrowed to
    encoding: str | None = None  # that the vectors are asked for in; None: the format's own
    is_query: bool = False  # the vectors of queries are others than those of documents
    truncated: Sequence[int] = ()  # positions of the inputs of which only the beginning is embedded
    scale: float = 1.0  # the vectors' length
    document: Any = None  # the body, where the format needs more of it


class FakeFormat(Protocol):
    """One vendor's wire format, with the vendor's limits and errors."""

    kind: str
    base_path: str  # of the addresses that a client is given
    headers: Mapping[str, str]  # of its replies

    def admit(self, request: UpstreamRequest, path: str, api_key: str | None) -> UpstreamReply | None:
        """The answer to what is no call for vectors, or has a wrong key; None: it is a call to be read."""

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """The call of a request, or the vendor's refusal of its form."""

    def unknown_model(self, model: str) -> UpstreamReply:
        """The refusal of a model that is not served."""

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """The refusal of a well-formed call that the vendor would not serve; None when it would."""

    def width_of(self, call: FakeCall, width: int) -> int:
        """How wide the unit vectors are made, of which `rows_of` makes the vendor's. `width` is the native one."""

    def rows_of(self, call: FakeCall, rows: Matrix) -> Matrix:
        """The vectors as the vendor gives them, from unit vectors."""

    def write(self, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]) -> UpstreamReply:
        """A good reply."""

    def malformed(
        self, action: Action, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]
    ) -> UpstreamReply:
        """A reply with the defect that the script asks for."""

    def scripted_error(self, action: Action) -> UpstreamReply:
        """The error that the script asks for, in the vendor's words where the script has none."""

    def rate_limited(
        self, refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float
    ) -> UpstreamReply:
        """The refusal of a call over its quota."""
