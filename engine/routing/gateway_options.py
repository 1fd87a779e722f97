"""What a caller may say under `providerOptions.gateway`: what is honoured, what is left out, and what is refused.

Other gateways have options that we do not. One that only tunes is left out, and the answer says so in `warnings`. One
that promises something (where data goes, what is kept, who may serve) is never left out: it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from engine.config.suggestions import did_you_mean
from models.errors import InvalidInput, UnsupportedParameter

# Names in a list of a caller's, and characters in one: each route may cost a call.
MAX_NAMES = 8
MAX_NAME_CHARS = 256
FIELD = "providerOptions.gateway"
# Of Vercel's, OpenRouter's, Portkey's and LiteLLM's options (November 2026) those that only tune, compared by letters
# and digits alone. Whatever else is unknown may be a promise, or a slip of the pen, and is refused.
HINTS = frozenset(
    {"sort", "caching", "cachecontrol", "metadata", "traceid", "sessionid", "generationname", "providertimeouts",
     "timeout", "requesttimeout", "retry", "retries", "numretries", "maxretries", "loggingmetadata", "strategy"}
)  # fmt: skip


class GatewayOptions(msgspec.Struct):
    """What is honoured."""

    order: list[str] = []  # providers to try first, in this order
    only: list[str] = []  # providers that may be used at all
    models: list[str] = []  # other aliases of the same space that may stand in
    tags: list[str] = []
    user: str | None = None
    cache: bool | None = None


def read(given: object) -> GatewayOptions:
    """The options, checked. Raises InvalidInput or UnsupportedParameter that names the field."""
    _bound(given)
    try:
        asked = msgspec.convert(given, GatewayOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid '{FIELD}': {error}.", param=FIELD, code="invalid_value") from error
    if isinstance(given, Mapping):
        known = GatewayOptions.__struct_fields__
        for name, value in given.items():
            if name not in known and not _is_hint(name) and value not in (None, False):  # what is off promises nothing
                where = f"{FIELD}.{name[:100]}"
                raise UnsupportedParameter(
                    f"'{where}' is not supported, and is not left out in silence: it may promise something."
                    f"{did_you_mean(name, known)} Leave it out; known are {', '.join(known)}.",
                    param=where,
                    code="unsupported_parameter",
                )
    return asked


def left_out(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is not honoured of options that have been read: the field, and why."""
    for name in given:
        if name not in GatewayOptions.__struct_fields__:
            yield f"{FIELD}.{name[:100]}", "this gateway has no such option: it was left out"
    if given.get("cache") is True:
        yield f"{FIELD}.cache", "this gateway keeps no vectors of earlier calls: the call was made"


def _is_hint(name: str) -> bool:
    return "".join(filter(str.isalnum, name[:100])).lower() in HINTS


def _bound(given: object) -> None:
    """Raise InvalidInput for a list of names that is too long, or has one twice, before anything is done with it."""
    if not isinstance(given, Mapping):
        return
    for field in ("models", "order", "only", "tags"):
        names = given.get(field)
        if not isinstance(names, list):
            continue
        where = f"{FIELD}.{field}"
        problem = None
        if len(names) > MAX_NAMES:
            problem = f"at most {MAX_NAMES} names, but got {len(names)}"
        elif any(isinstance(name, str) and len(name) > MAX_NAME_CHARS for name in names):
            problem = f"a name has at most {MAX_NAME_CHARS} characters"
        elif any(name in names[:i] for i, name in enumerate(names)):
            problem = "each name at most once"
        if problem:
            raise InvalidInput(f"Invalid '{where}': {problem}.", param=where, code="invalid_value")
