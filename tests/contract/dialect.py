"""What a dialect is: how one kind of provider answers, in the vectors and the errors of the contract's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply

Say = Callable[[Matrix, Sequence[int]], UpstreamReply]

SECRET = "sk-live-0123456789"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way in which one kind of provider answers."""

    name: str
    kind: str  # its key in providers.PROVIDERS
    say: Say  # vectors, each with its index, as a 200 of this provider
    errors: Mapping[int, UpstreamReply]  # a reply for every status that it can answer
    has_indexes: bool = True  # the reply names an index per vector, in whatever order it lists them
    has_bytes: bool = True  # its vectors are bytes of float32, not decimal numbers
    tokens: int | None = 7  # that the reply is read to report
    is_remote: bool = True  # its error bodies are another party's words, never to be shown to callers
    names_model: bool | None = None  # its replies name their model; None: those with indexes do
    model: str = "m"  # the upstream model, where its name decides the form
    inputs: int = 3  # in one call of the suite: 1 where the provider takes no more
    read_as: Callable[[Matrix], Matrix] = lambda vectors: vectors  # what it loses of the vectors that it is to say


def base64_text(row: Matrix) -> bytes:
    """The vector as a JSON string: base64 of its bytes."""
    return b'"%b"' % pybase64.b64encode(np.ascontiguousarray(row, dtype="<f4").tobytes())


def decimals(row: Matrix) -> bytes:
    """The vector as a JSON list."""
    # JSON has no NaN and no Infinity, yet careless servers print them.
    words = {"nan": "NaN", "inf": "Infinity"}
    return ("[" + ",".join(words.get(str(float(x)), repr(float(x))) for x in row) + "]").encode()


def errors(bodies: Mapping[int, object]) -> dict[int, UpstreamReply]:
    """A reply for each status, with its body as JSON."""
    return {
        status: UpstreamReply(status, {"content-type": "application/json"}, orjson.dumps(body))
        for status, body in bodies.items()
    }
