"""Maps error replies of all wire formats to our errors: one table; the first rule that matches decides.

Structured codes and statuses come before words, and words count only at the beginning of a message in the vendor's own
envelope (`providers/error_envelope.py`): whatever a caller can make a server quote decides nothing. The codes and words
of each vendor are in `providers/error_words.py`, with their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import (
    EmbeddingsUnsupported,
    EncodingRefused,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers import error_words as vendor
from providers.error_envelope import DAILY_QUOTA, ErrorFacts
from providers.retry_hints import retry_after_s

Build = Callable[[ErrorFacts, Mapping[str, str]], UpstreamError]
REFUSALS = (400, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches when all its conditions do: status, code, field, and the start of the message, without regard to case."""

    build: Build
    statuses: tuple[int, ...] | range = ()
    codes: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    words: vendor.Words = ()

    def fits(self, facts: ErrorFacts) -> bool:
        """True when the error has all that the rule names."""
        return (
            (not self.statuses or facts.status in self.statuses)
            and (not self.codes or not self.codes.isdisjoint(facts.codes))
            and (not self.fields or not self.fields.isdisjoint(facts.fields))
            and (not self.words or any(pattern.match(facts.message) for pattern in self.words))
        )


def error_from(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
    """The error of a reply; its class carries the disposition."""
    return next(rule.build(facts, headers) for rule in RULES if rule.fits(facts))


def _error(kind: type[UpstreamError], message: str, advice: str = "", **fields: Any) -> Build:
    return lambda facts, headers: kind(message, status=facts.status, advice=advice, **fields)


def _later(kind: type[UpstreamError], message: str) -> Build:
    def build(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
        delay = {"retry-after": facts.retry_delay} if facts.retry_delay and "retry-after" not in headers else {}
        wait_s = retry_after_s({**(facts.headers or {}), **headers, **delay}, facts.message)
        return kind(message.format(status=facts.status), status=facts.status, retry_after_s=wait_s)

    return build


def _rate_limited(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
    error = _later(UpstreamRateLimited, "the provider's rate limit is reached")(facts, headers)
    assert isinstance(error, UpstreamRateLimited)
    codes, message = facts.codes, facts.message
    tokens = bool(vendor.TOKEN_QUOTA_CODES & codes or vendor.TOKEN_QUOTA.search(message))
    requests = bool(vendor.REQUEST_QUOTA_CODES & codes or vendor.REQUEST_QUOTA.search(message))
    if tokens != requests:  # a message that names both decides nothing
        error.quota = "tokens" if tokens else "requests"
    return error


def _too_large(limit: str) -> Build:
    return lambda facts, headers: UpstreamTooLarge(f"too many {limit} in one call", status=facts.status, limit=limit)


def _too_long(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
    error = UpstreamRejected(
        "the input is longer than the model takes",
        status=facts.status,
        code="input_too_long",
        offending_position=facts.position,
    )
    for pattern in vendor.TOO_LONG:
        if found := pattern.match(facts.message):
            numbers = found.groupdict()
            error.token_limit, error.token_count = (_number(numbers.get(name)) for name in ("limit", "count"))
            break
    if facts.numbers:
        error.token_limit = facts.numbers.get("n_ctx", error.token_limit)
        error.token_count = facts.numbers.get("n_prompt_tokens", error.token_count)
    return error


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 10 else None


def _rejected(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
    return UpstreamRejected("the provider refused the input", status=facts.status, offending_position=facts.position)


_CREDIT = _error(
    UpstreamAuthFailed,
    "the account at the provider has no credit left",
    "add credit at the provider, or give the account another api_key",
    code="upstream_quota",
)
_CREDENTIAL = _error(
    UpstreamAuthFailed,
    "the provider refused the account's credential",
    "check the account's api_key, and what it may use at the provider",
)
_MODEL = _error(
    UpstreamMisconfigured,
    "the provider does not know the upstream model or path",
    "check the account's base_url and the route's model",
)
_NO_EMBEDDINGS = _error(
    EmbeddingsUnsupported, "the provider cannot embed with this model", "name an embedding model in the route"
)
_ENCODING = _error(
    EncodingRefused,
    "the provider does not give vectors in the encoding that it was asked for",
    'set encoding = "float" for the account',
)
_REFUSED_PARAMETER = _error(
    UpstreamMisconfigured,
    "the provider refused a parameter of the call",
    'check dimensions and allowed_dimensions of the model; a server that cannot narrow needs narrowing = "cut"',
)

RULES = (
    # Codes, and statuses that leave no doubt.
    Rule(_CREDIT, range(400, 500), codes=vendor.NO_CREDIT_CODES),
    Rule(_CREDIT, (402,)),
    Rule(
        _error(
            UpstreamMisconfigured,
            "the proxy refused its credential",
            "check the user and password of the account's proxy",
        ),
        (407,),
    ),
    Rule(
        _error(
            UpstreamMisconfigured,
            "the provider answers with a redirect, which is not followed",
            "set base_url to the address that the provider redirects to",
        ),
        range(300, 400),
    ),
    Rule(_NO_EMBEDDINGS, codes=frozenset({"operationnotsupported", "not_supported_error"})),
    Rule(_NO_EMBEDDINGS, (*REFUSALS, 403, 404, 405, 500, 501), words=vendor.CANNOT_EMBED),
    # Some servers fail on what they do not have.
    Rule(_ENCODING, range(500, 600), words=vendor.ENCODING_REFUSED),
    Rule(_ENCODING, range(500, 600), fields=frozenset({"encoding_format"})),
    Rule(_NO_EMBEDDINGS, (501,)),
    # Google says "you exceeded your current quota" of a minute's quota too: its quota ids tell a day's from a minute's.
    Rule(_CREDIT, (429,), codes=frozenset({DAILY_QUOTA})),
    Rule(_rate_limited, (429,), codes=frozenset({"resource_exhausted"})),
    Rule(_CREDIT, (429,), codes=frozenset({"3036"})),  # Cloudflare's daily allocation
    Rule(
        _later(UpstreamOverloaded, "the provider loads the model"), (429,), codes=frozenset({"modelnotreadyexception"})
    ),
    Rule(_CREDIT, (403, 429), words=vendor.NO_CREDIT),
    Rule(_rate_limited, range(400, 500), codes=vendor.THROTTLED_CODES),
    Rule(_CREDENTIAL, (401, 403)),
    Rule(_CREDENTIAL, range(400, 429), codes=vendor.BAD_KEY_CODES),
    Rule(_MODEL, range(400, 500), codes=vendor.UNKNOWN_MODEL_CODES),
    Rule(_MODEL, (404,)),
    Rule(_too_large("tokens"), codes=vendor.CALL_TOKENS_CODES),
    Rule(_too_large("inputs"), codes=frozenset({"array_above_max_length"})),
    Rule(_too_long, range(400, 600), codes=vendor.INPUT_TOO_LONG_CODES),
    Rule(_ENCODING, REFUSALS, fields=vendor.ENCODING_FIELDS),
    Rule(_REFUSED_PARAMETER, REFUSALS, codes=vendor.PARAMETER_CODES),
    Rule(_REFUSED_PARAMETER, REFUSALS, fields=vendor.PARAMETER_FIELDS),
    Rule(_rate_limited, (425, 429)),
    # Words of vendors that give nothing else.
    Rule(_CREDENTIAL, REFUSALS, words=vendor.BAD_KEY),
    Rule(_CREDIT, (400,), codes=frozenset({"failed_precondition"})),  # Google's, where billing is not enabled
    Rule(_MODEL, REFUSALS, words=vendor.NO_SUCH_MODEL),
    Rule(_too_long, (*REFUSALS, 500), words=vendor.TOO_LONG),
    Rule(_too_large("tokens"), REFUSALS, words=vendor.CALL_HAS_TOO_MANY_TOKENS),
    Rule(_too_large("inputs"), REFUSALS, words=vendor.CALL_HAS_TOO_MANY_INPUTS),
    Rule(_too_large("tokens"), (400,), codes=frozenset({"3210"})),  # Mistral's, in words that are not known
    Rule(_ENCODING, REFUSALS, words=vendor.ENCODING_REFUSED),
    Rule(_REFUSED_PARAMETER, REFUSALS, words=vendor.PARAMETER_REFUSED),
    Rule(_rejected, (400, 500), words=vendor.NOT_A_NUMBER),
    # text-embeddings-inference before 1.9: its validator's 413 is no matter of bytes.
    Rule(_rejected, (413,), codes=frozenset({"validation"})),
    # Statuses.
    Rule(_too_large("bytes"), (413,)),
    Rule(
        _error(
            UpstreamMisconfigured,
            "the provider does not serve embeddings at this path",
            "check the account's base_url",
        ),
        (405, 415),
    ),
    Rule(_error(UpstreamTimeout, "the provider ran out of time"), (408, 499, 504, 524)),
    Rule(_rejected, (400, 422, 498)),
    Rule(_later(UpstreamOverloaded, "the provider failed with status {status}"), (503, 529)),
    Rule(_later(UpstreamUnavailable, "the provider failed with status {status}")),
)
