"""What all dialects share: the route's guard, the rows of the table, and words with one meaning in each format."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http.auth import GuardedRoute
from api.http.openapi import JSON, operation, path_param
from api.openai.client_fields import CLIENT_FIELDS
from api.openai.embedding_call import CallWarning, EmbeddingOutcome
from api.openai.embeddings_response import headers_of, warnings_of
from models.errors import InvalidInput, UnsupportedParameter
from models.key import Scope

TAG = "Compatibility"
ANY_OBJECT = {"schema": {"type": "object"}}
MAX_NAMED = 20  # of cut inputs


class DialectRoute(GuardedRoute):
    """A route in another client's format. A subclass sets how errors are written, and where keys are read."""

    tells_limits = True
    required_scope = Scope.EMBEDDINGS


@dataclass(frozen=True, slots=True)
class DialectPath:
    """One row of the table: a path of a dialect."""

    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    route_class: type[DialectRoute]
    summary: str
    parameters: Sequence[dict[str, Any]] = field(default=())  # beside those of the path

    def documentation(self) -> dict[str, Any]:
        """Its part of the OpenAPI document."""
        in_path = [path_param(name, "Name of the model") for name in re.findall(r"\{(\w+)", self.path)]
        extra: dict[str, Any] = {"parameters": [*in_path, *self.parameters]}
        if self.method == "POST":
            extra["requestBody"] = {"required": True, "content": {JSON: ANY_OBJECT}}
        options = operation(self.summary, TAG, extra=extra)
        failure = {"description": "An error, in the client's format", "content": {JSON: {"schema": {}}}}
        options["responses"] |= {"4XX": failure, "5XX": failure}
        return options


def meaning_of(name: str, value: str | bool, words: Mapping[Any, str] | None = None) -> str:
    """What a value of a client's field means here, without regard to case.

    `words`: what the values mean; by default those of the field in the table of clients' fields. Raises InvalidInput
    for a value without a counterpart.
    """
    words = words or CLIENT_FIELDS[name].words or {}
    for word, meaning in words.items():
        if str(word).lower() == str(value).lower() and type(word) is type(value):
            return meaning
    supported = ", ".join(str(word) for word in words)
    raise InvalidInput(
        f"Invalid '{name}': '{str(value)[:40]}' has no counterpart here. Supported: {supported}.",
        param=name,
        code="invalid_value",
    )


def width(value: int | None, name: str) -> int | None:
    """A number of dimensions; 0 is as good as absent. Raises InvalidInput."""
    if value is not None and value < 0:
        raise InvalidInput(f"Invalid '{name}': expected a whole number of 1 or more.", param=name, code="invalid_value")
    return value or None


def refuse(name: str, value: object, advice: str) -> None:
    """Raises UnsupportedParameter where the field is there."""
    if value is not None:
        raise UnsupportedParameter(f"'{name}' is not supported: {advice}.", param=name, code="unsupported_parameter")


def left_out(name: str, value: object) -> list[CallWarning]:
    """The warning for a field without an effect, where it is there."""
    return [] if value is None else [CallWarning("unsupported", name, "it has no effect here: it was left out")]


def all_warnings(outcome: EmbeddingOutcome) -> list[CallWarning]:
    """The warnings of the call, and one that names the inputs that were cut: these formats mark no vector."""
    warnings = warnings_of(outcome)
    if cut := sorted(outcome.truncated):
        names = ", ".join(map(str, cut[:MAX_NAMED])) + (", …" if len(cut) > MAX_NAMED else "")
        details = f"too long for the model, so that their ends were cut off: {len(cut)} inputs ({names})"
        warnings.append(CallWarning("other", outcome.call.input_field, details))
    return warnings


def array(rows: Sequence[bytes], opening: bytes = b"", closing: bytes = b"") -> list[bytes]:
    """The pieces of a JSON array of encoded rows, each between `opening` and `closing`: they are copied once, later."""
    pieces = [closing + b"," + opening] * (2 * len(rows) + 1)
    pieces[0] = b"[" + opening
    pieces[1::2] = rows
    pieces[-1] = closing + b"]"
    return pieces


def reply(outcome: EmbeddingOutcome, pieces: Sequence[bytes]) -> Response:
    """The response of these pieces, with the headers of the sync call."""
    response = Response(b"".join(pieces))
    response.raw_headers += headers_of(outcome.route.provider, outcome.alias.space)
    return response
