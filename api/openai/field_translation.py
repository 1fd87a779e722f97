"""Reads a body with fields of other clients: each becomes ours, is left out with a warning, or is refused by name.

Only a body that OpenAI's format does not allow comes here, so that other calls do not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from api.openai.client_fields import CLIENT_FIELDS, IGNORED_FIELDS, INPUT_TYPE_WORDS, TAGS, ClientField
from api.openai.embedding_call import CallWarning
from engine.corpus.double_keys import double_key
from engine.embedding.body_errors import decode, double_key_error
from engine.embedding.request_body import EmbeddingRequest
from models.errors import InvalidInput, RequestError
from providers.caller_options import GATEWAY

MAX_WARNINGS = 16
OWN_FIELDS = frozenset(EmbeddingRequest.__struct_fields__)
# Codes of errors that another client's field may be the cause of.
_CAUSES = frozenset({"unknown_parameter", "invalid_type", "invalid_value", "missing_required_parameter"})
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REQUEST = msgspec.json.Decoder(EmbeddingRequest)
_NULL = b"null"
_NOT_JSON = "The body is not valid JSON: check quotes, commas and encoding (UTF-8)."
_REQUIRED = frozenset({"model", "input"})


def decode_request(body: bytes, model: str | None, warn: bool) -> tuple[EmbeddingRequest, tuple[CallWarning, ...]]:
    """The request, with the warnings for what was left out of it.

    `model`: that of the path, which stands in for the body's. `warn`: unknown fields are left out. Raises InvalidInput
    or UnsupportedParameter that names the field.
    """
    try:
        request = decode(_REQUEST, body)
    except RequestError as error:
        if error.code not in _CAUSES or error.param is None or error.param.startswith(("input[", "input.")):
            raise
        return _translated(body, model, warn=warn)
    if model is not None:
        request.model = model
    return request, ()


def _translated(body: bytes, model: str | None, *, warn: bool) -> tuple[EmbeddingRequest, tuple[CallWarning, ...]]:
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(_NOT_JSON, code="invalid_json") from None
    if (key := double_key(body)) is not None:
        raise double_key_error(key)
    if model is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    ours, warnings = translate(fields, warn=warn)
    members = [msgspec.json.encode(name) + b":" + bytes(value) for name, value in ours.items()]
    return decode(_REQUEST, b"{" + b",".join(members) + b"}"), tuple(warnings)


def translate(fields: Mapping[str, msgspec.Raw], *, warn: bool) -> tuple[dict[str, msgspec.Raw], list[CallWarning]]:
    """Our fields for those of a client, and what was left out. Raises InvalidInput that names the client's field."""
    ours = _OurFields()
    warnings: list[CallWarning] = []
    for name, value in fields.items():
        if bytes(value) == _NULL and name not in _REQUIRED:  # as if it were not there
            continue
        if (field := CLIENT_FIELDS.get(name)) is not None:
            meaning = _meaning(field, value)
            if meaning is not None and field.means is not None:
                ours.put(field.means, meaning, name)
        elif name == "input_type":
            ours.put(name, _own_input_type(value), name)
        elif name in IGNORED_FIELDS:
            warnings.append(CallWarning("unsupported", name, "it has no effect on a call: it was left out"))
        elif name in OWN_FIELDS or name == TAGS or not warn:  # an unknown one is refused when they are decoded
            ours.put(name, value, name)
        elif len(warnings) < MAX_WARNINGS:
            warnings.append(CallWarning("unsupported", name[:100], "no such parameter is known: it was left out"))
    ours.move_tags()
    return ours.values, warnings


class _OurFields:
    """The fields of the request as they are found, and the client's name of each."""

    def __init__(self) -> None:
        self.values: dict[str, msgspec.Raw] = {}
        self._sources: dict[str, str] = {}

    def put(self, field: str, value: msgspec.Raw, source: str) -> None:
        """Set a field. Raises InvalidInput where another of the client's fields has set it to something else."""
        if field in self.values and bytes(self.values[field]) != bytes(value):
            raise InvalidInput(
                f"Invalid '{source}': it contradicts '{self._sources[field]}'. Send one of them.",
                param=source,
                code="invalid_value",
            )
        self.values[field], self._sources[field] = value, source

    def move_tags(self) -> None:
        """Tags beside the input belong into `providerOptions.gateway`. Raises InvalidInput for two lists of them."""
        raw = self.values.pop(TAGS, None)
        if raw is None:
            return
        tags, options = _value(raw), _value(self.values.get("providerOptions", msgspec.Raw(b"{}")))
        if not isinstance(options, dict) or not isinstance(options.get(GATEWAY, {}), dict):
            return  # refused when the fields are decoded
        section = {TAGS: tags} | options.get(GATEWAY, {})
        if section[TAGS] != tags:
            raise InvalidInput(
                f"Invalid '{TAGS}': it contradicts 'providerOptions.{GATEWAY}.{TAGS}'. Send one of them.",
                param=TAGS,
                code="invalid_value",
            )
        self.values["providerOptions"] = msgspec.Raw(msgspec.json.encode(options | {GATEWAY: section}))


def _meaning(field: ClientField, raw: msgspec.Raw) -> msgspec.Raw | None:
    """What a value means; None: nothing that is not done anyway. Raises InvalidInput for one without a counterpart."""
    value = _value(raw)
    if field.words is None:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value == 0:
            return None
        if field.name not in OWN_FIELDS and (not is_number or value < 0):  # of our own the schema says what is wrong
            raise InvalidInput(
                f"Invalid '{field.name}': expected a whole number of 1 or more.", param=field.name, code="invalid_value"
            )
        return raw
    # By their JSON: in Python, True is 1.
    words = {msgspec.json.encode(word).lower(): meaning for word, meaning in field.words.items()}
    meaning = words.get(msgspec.json.encode(value).lower())
    if meaning is None:
        supported = ", ".join(word.decode() for word in words)
        reason = f"{field.otherwise}. " if field.otherwise else ""
        raise InvalidInput(
            f"Invalid '{field.name}': {reason}Supported: {supported}.", param=field.name, code="invalid_value"
        )
    return msgspec.Raw(msgspec.json.encode(meaning))


def _own_input_type(raw: msgspec.Raw) -> msgspec.Raw:
    value = _value(raw)
    return msgspec.Raw(msgspec.json.encode(INPUT_TYPE_WORDS.get(value, value) if isinstance(value, str) else value))


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(_NOT_JSON, code="invalid_json") from None
