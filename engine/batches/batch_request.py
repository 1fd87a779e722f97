"""The request for a batch, without its lines: its fields, and the rules for each of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.batches.lines import ENDPOINT
from engine.config.settings import Settings
from models.errors import InvalidInput

MAX_METADATA_PAIRS = 16
MAX_KEY_CHARS, MAX_VALUE_CHARS = 64, 512
VALIDATION = "embedmill_validation"
LENIENT = "lenient"
DEFAULT_WINDOW = "24h"
MIN_WINDOW_S = 60
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
MAX_ID_CHARS = 64
MAX_MODEL_CHARS = 256
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([hm])\Z")


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/batches, without `requests`."""

    endpoint: str
    input_file_id: str | None = None
    completion_window: str | None = None
    metadata: dict[str, Any] | None = None
    output_expires_after: dict[str, Any] | None = None
    model: str | None = None  # for requests in the body whose own body names none
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """A request for a batch, checked. `window_s`: of `completion_window`, in seconds."""

    input_file_id: str | None
    completion_window: str
    window_s: int
    metadata: dict[str, str] | None
    is_lenient: bool
    output_expires_after_s: int | None
    default_model: str | None
    callback_url: str | None


def check_request(request: BatchRequest, settings: Settings, *, is_inline: bool) -> BatchSpec:
    """Check all fields. `is_inline`: the body has `requests`. Raises InvalidInput that names the field."""
    if request.endpoint != ENDPOINT:
        raise _invalid(f"Invalid value: '{request.endpoint[:100]}'. Supported values are: '{ENDPOINT}'.", "endpoint")
    if not is_inline:
        _check_file_form(request)
    elif request.input_file_id is not None:
        raise _invalid("'requests' and 'input_file_id' exclude each other: send one of them.", "input_file_id")
    _check_model(request.model)
    window = request.completion_window or DEFAULT_WINDOW
    return BatchSpec(
        input_file_id=request.input_file_id,
        completion_window=window,
        window_s=window_seconds(window, settings.job_deadline_days),
        metadata=_check_metadata(request.metadata),
        is_lenient=_is_lenient(request.metadata),
        output_expires_after_s=_check_expiry(request.output_expires_after),
        default_model=request.model,
        callback_url=request.callback_url,
    )


def _check_file_form(request: BatchRequest) -> None:
    for name in ("input_file_id", "completion_window"):
        if not getattr(request, name):
            raise InvalidInput(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    assert request.input_file_id is not None
    if len(request.input_file_id) > MAX_ID_CHARS or not request.input_file_id.isprintable():
        raise _invalid("Invalid 'input_file_id': not the id of a file. GET /v1/files lists them.", "input_file_id")
    if request.model is not None:
        raise InvalidInput(
            "Unknown parameter: 'model'. Leave it out: in a file, each line names its model.",
            param="model",
            code="unknown_parameter",
        )


def _check_model(model: str | None) -> None:
    if model is not None and (not 1 <= len(model) <= MAX_MODEL_CHARS or "\0" in model):
        raise _invalid(
            f"Invalid 'model': expected a name of 1 to {MAX_MODEL_CHARS} characters. GET /v1/models lists them.",
            "model",
        )


def window_seconds(text: str, max_days: float) -> int:
    """Seconds of a completion window: hours or minutes. Raises InvalidInput."""
    found = _WINDOW.match(text)
    seconds = 0 if found is None else int(found[1]) * (3600 if found[2] == "h" else 60)
    max_hours = int(max_days * 24)
    if not MIN_WINDOW_S <= seconds <= max_hours * 3600:
        raise _invalid(
            f"Invalid 'completion_window': '{text[:40]}'. Send '24h', or another number of hours or minutes, "
            f"from '1m' to '{max_hours}h'.",
            "completion_window",
        )
    return seconds


def _check_metadata(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    if metadata is None:
        return None
    if len(metadata) > MAX_METADATA_PAIRS:
        raise _invalid(f"Invalid 'metadata': at most {MAX_METADATA_PAIRS} pairs, but got {len(metadata)}.", "metadata")
    for key, value in metadata.items():
        where = f"metadata.{key[:MAX_KEY_CHARS]}"
        if not isinstance(value, str):
            raise InvalidInput(
                f"Invalid type for '{where}': expected a string, but got {_kind_of(value)} instead.",
                param=where,
                code="invalid_type",
            )
        if not key or len(key) > MAX_KEY_CHARS:
            raise _invalid(f"Invalid '{where}': a key has 1 to {MAX_KEY_CHARS} characters.", where)
        if len(value) > MAX_VALUE_CHARS:
            raise _invalid(f"Invalid '{where}': a value has at most {MAX_VALUE_CHARS} characters.", where)
    return metadata


def _is_lenient(metadata: dict[str, Any] | None) -> bool:
    value = (metadata or {}).get(VALIDATION)
    if value not in (None, LENIENT):
        where = f"metadata.{VALIDATION}"
        raise _invalid(f"Invalid value: '{value[:40]}'. Supported values are: '{LENIENT}'.", where)
    return value is not None


def _check_expiry(value: dict[str, Any] | None) -> int | None:
    if value is None:
        return None
    name = "output_expires_after"
    for key in value:
        if key not in ("anchor", "seconds"):
            where = f"{name}.{key[:100]}"
            raise InvalidInput(
                f"Unknown parameter: '{where}'. Leave it out; known are anchor, seconds.",
                param=where,
                code="unknown_parameter",
            )
    for key in ("anchor", "seconds"):
        if key not in value:
            raise InvalidInput(
                f"Missing required parameter: '{name}.{key}'.",
                param=f"{name}.{key}",
                code="missing_required_parameter",
            )
    if value["anchor"] != "created_at":
        raise _invalid(f"Invalid '{name}.anchor'. Supported values are: 'created_at'.", f"{name}.anchor")
    seconds = value["seconds"]
    if type(seconds) is not int or not MIN_EXPIRY_S <= seconds <= MAX_EXPIRY_S:
        raise _invalid(
            f"Invalid '{name}.seconds': expected a whole number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}.",
            f"{name}.seconds",
        )
    return seconds


def _kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _invalid(message: str, param: str) -> InvalidInput:
    return InvalidInput(message, param=param, code="invalid_value")
