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
from api.openai.embedding_call import CallWarning
from models.errors import InvalidInput, UnsupportedParameter
from models.key import Scope

TAG = "Compatibility"
ANY_OBJECT = {"schema": {"type": "object"}}
NO_PARTS: Mapping[str, Any] = {}


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


def meaning_of(field_name: str, value: Any, name: str | None = None) -> str | None:
    """What a value of a client's field means here; None: nothing that is not done anyway.

    `field_name`: in the table of clients' fields. `name`: as the body has it. Raises InvalidInput for a value without a
    counterpart.
    """
    known = CLIENT_FIELDS[field_name]
    assert known.words is not None
    for word, meaning in known.words.items():
        if word == value and isinstance(word, bool) == isinstance(value, bool):
            return meaning or None
        if isinstance(word, str) and isinstance(value, str) and word.lower() == value.lower():
            return meaning or None
    supported = ", ".join(str(word) for word in known.words)
    reason = f"{known.otherwise}. " if known.otherwise else ""
    name = name or field_name
    raise InvalidInput(f"Invalid '{name}': {reason}Supported: {supported}.", param=name, code="invalid_value")


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


def joined(rows: Sequence[bytes], opening: bytes = b"", closing: bytes = b"") -> bytes:
    """Encoded rows as one JSON array; each of them between `opening` and `closing`."""
    return b"[" + opening + (closing + b"," + opening).join(rows) + closing + b"]"
