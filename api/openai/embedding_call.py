"""A sync call between its parts: what parsing gives to the run, and what the run gives to rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from api.http import json_body
from engine.embedding.collector import OutcomeCollector
from models.embedding import Alias, Call, Input, Matrix, Options, Route


class CallWarning(NamedTuple):
    """What a caller should know of an answer. `feature`: the field of the request."""

    type: str  # unsupported | compatibility | deprecated | other
    feature: str
    details: str


class UnreadInputs(NamedTuple):
    """The inputs of a large JSON body: they are read from it a piece at a time."""

    body: bytes
    span: json_body.Span


@dataclass(slots=True)
class EmbeddingCall:
    """A sync call as it was parsed, whatever the format of the request: its inputs are not validated yet.

    Takes part in no other call: the run may change the list of inputs.
    """

    model: str
    input: str | list[Any]  # a text, texts, the ids of one token array, or token arrays
    options: Options
    base64: bool = False  # the format of the vectors in the answer
    warnings: Sequence[CallWarning] = ()  # of the parsing
    input_field: str = "input"  # its name in the request, for errors
    body_bytes: int = 0  # size of the request's body
    unread: UnreadInputs | None = None  # in place of `input`


@dataclass(slots=True)
class EmbeddingOutcome:
    """A sync call whose inputs all have a vector."""

    call: EmbeddingCall
    alias: Alias
    options: Options  # as sent
    inputs: Sequence[Input]
    upstream_calls: Sequence[Call]
    collector: OutcomeCollector
    route: Route  # that gave the first vectors
    generation_id: str  # of the call, and of its rows in the ledger
    truncated_here: set[int] = field(default_factory=set)

    def rows(self) -> list[Matrix]:
        """The vectors in the order of the inputs: one-dimensional, float32."""
        return [row for block in self.collector.vectors_in_order() for row in block]

    @property
    def tokens(self) -> int:
        """Tokens of all upstream calls."""
        return sum(part.tokens for part in self.collector.outcomes)

    @property
    def tokens_estimated(self) -> bool:
        """True when a provider reported no number of tokens, or none that is believed."""
        return any(part.tokens_estimated for part in self.collector.outcomes)

    @property
    def cost_usd(self) -> Decimal:
        """Cost of all upstream calls."""
        return sum((part.cost_usd for part in self.collector.outcomes), Decimal(0))

    @property
    def truncated(self) -> set[int]:
        """Indexes of the inputs that were not embedded whole."""
        return self.truncated_here | self.collector.truncated()
