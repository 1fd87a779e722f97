"""Reads `providerOptions.gateway`: options that have an effect, options that are ignored, and options that are refused.

Other gateways have options that embedmill does not have. An option that only tunes is ignored, and the reply says so in
`warnings`. An option that promises something (where data goes, what is kept, who may serve) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from engine.config.suggestions import did_you_mean
from models.errors import InvalidInput, UnsupportedParameter

# In a caller's list: names, and characters of one. Each named route may cost a call.
MAX_NAMES = 8
MAX_NAME_CHARS = 256
FIELD = "providerOptions.gateway"
# The options of Vercel, OpenRouter, Portkey and LiteLLM (November 2026) that only tune, compared by letters and digits
# alone. Any other unknown option may be a promise or a typing error, and is refused.
HINTS = frozenset(
    {"caching", "cachecontrol", "metadata", "traceid", "sessionid", "generationname", "providertimeouts",
     "timeout", "requesttimeout", "retry", "retries", "numretries", "maxretries", "loggingmetadata", "strategy"}
)  # fmt: skip


class GatewayOptions(msgspec.Struct):
    """The options that have an effect, and three that are accepted and ignored: tags, user, cache."""

    order: list[str] = []  # providers to try first, in this order
    only: list[str] = []  # the only providers that may be used
    models: list[str] = []  # other aliases of the same space that may serve instead
    tags: list[str] = []
    user: str | None = None
    cache: bool | None = None
    sort: Literal["cost", "latency"] | None = None  # the order of the routes
    strict: bool | None = None  # an option that cannot be honoured is an error, not a warning


def read(value: object) -> GatewayOptions:
    """The options, checked. Raises InvalidInput or UnsupportedParameter that names the field."""
    _check_lists(value)
    try:
        options = msgspec.convert(value, GatewayOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid '{FIELD}': {error}.", param=FIELD, code="invalid_value") from error
    if isinstance(value, Mapping):
        known = GatewayOptions.__struct_fields__
        for name, option in value.items():
            # An option that is switched off promises nothing.
            if name not in known and not _is_hint(name) and option not in (None, False):
                where = f"{FIELD}.{name[:100]}"
                raise UnsupportedParameter(
                    f"'{where}' is not supported, and is not left out in silence: it may promise something."
                    f"{did_you_mean(name, known)} Leave it out; known are {', '.join(known)}.",
                    param=where,
                    code="unsupported_parameter",
                )
    return options


def ignored(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of field and reason for the options of a section, read before, that have no effect."""
    for name in section:
        if name not in GatewayOptions.__struct_fields__:
            yield f"{FIELD}.{name[:100]}", "this gateway has no such option: it was left out"
    if section.get("cache") is True:
        yield f"{FIELD}.cache", "this gateway keeps no vectors of earlier calls: the call was made"


def _is_hint(name: str) -> bool:
    return "".join(filter(str.isalnum, name[:100])).lower() in HINTS


def _check_lists(value: object) -> None:
    """Raise InvalidInput for a list of names that is too long or repeats a name."""
    if not isinstance(value, Mapping):
        return
    for field in ("models", "order", "only", "tags"):
        names = value.get(field)
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
