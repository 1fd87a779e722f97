"""Maps error replies of OpenAI's wire format to our errors: one table; the first rule that matches decides.

Structured codes and statuses come before words, and words count only at the beginning of a message in the vendor's own
envelope (`providers/error_envelope.py`): whatever a caller can make a server quote decides nothing.

Sources: openai/openai-openapi 2026-08, openai-python 3.52, vLLM, Ollama, llama.cpp, text-embeddings-inference 1.9.3 and
Infinity by their source (2026-08 to 2026-10), LiteLLM 1.109, recorded bodies of public issues.
"""

from __future__ import annotations

import re
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
from providers.error_envelope import ErrorFacts
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
    words: tuple[re.Pattern[str], ...] = ()

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
    return next(rule.build(facts, headers) for rule in OPENAI_RULES if rule.fits(facts))


def _error(kind: type[UpstreamError], message: str, advice: str = "", **fields: Any) -> Build:
    return lambda facts, headers: kind(message, status=facts.status, advice=advice, **fields)


def _later(kind: type[UpstreamError], message: str) -> Build:
    def build(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
        delay = {"retry-after": facts.retry_delay} if facts.retry_delay and "retry-after" not in headers else {}
        wait_s = retry_after_s({**headers, **delay}, facts.message)
        return kind(message.format(status=facts.status), status=facts.status, retry_after_s=wait_s)

    return build


# The quota that a 429 names: OpenAI's error type, and the words that OpenAI, Azure, Voyage and others use.
_OF_TOKENS = re.compile(r"tokens? (?:per min|rate limit)|\bTPM\b", re.I)
_OF_REQUESTS = re.compile(r"(?:requests?|calls?) (?:per min|rate limit)|\bRPM\b", re.I)


def _rate_limited(facts: ErrorFacts, headers: Mapping[str, str]) -> UpstreamError:
    error = _later(UpstreamRateLimited, "the provider's rate limit is reached")(facts, headers)
    assert isinstance(error, UpstreamRateLimited)
    tokens = "tokens" in facts.codes or _OF_TOKENS.search(facts.message) is not None
    requests = "requests" in facts.codes or _OF_REQUESTS.search(facts.message) is not None
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
    for pattern in TOO_LONG:
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


def _words(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# A model's name, with or without quotes.
_NAME = r"[`'\"]?[\w./:@-]{1,200}[`'\"]?"

# Of one input. `limit` and `count` are tokens, in the provider's own figures.
TOO_LONG = _words(
    # OpenAI, Azure, vLLM
    r"This model's maximum context length is (?P<limit>\d+) tokens"
    r"(?:[.,] however,? you requested (?P<count>\d+) tokens)?",
    r"Invalid 'input(?:\[\d+\])?': maximum input length is (?P<limit>\d+) tokens",
    r"Invalid 'input(?:\[\d+\])?': (?:string|array) too long\. Expected a (?:string|token array)",
    r"The (?:\w+ )?prompt \((?:total )?length (?P<count>\d+)\) is longer than the maximum model length"
    r" of (?P<limit>\d+)",
    # NVIDIA NIM, SGLang
    r"Input length \(?(?P<count>\d+)(?: tokens)?\)? exceeds (?:the )?(?:model's )?maximum (?:allowed )?"
    r"(?:token size|context length|sequence length|length) \(?(?P<limit>\d+)",
    r"The input \((?P<count>\d+) tokens\) is longer than the model's context length \((?P<limit>\d+) tokens\)",
    # Ollama
    r"(?:the )?input (?:length )?exceeds (?:the |maximum ){1,2}context length",
    # llama.cpp, LM Studio
    r"input (?:\((?P<count>\d+) tokens\) )?is too large to process"
    r"(?:\. increase the physical batch size \(current batch size: (?P<limit>\d+)\))?",
    r"(?:the )?request (?:\((?P<count>\d+) tokens\) )?exceeds the available context size"
    r"(?: \((?P<limit>\d+) tokens\))?",
    r"input is larger than the max context size",
    # text-embeddings-inference
    r"(?:Input validation error: )?`?inputs`? must have less than (?P<limit>\d+) tokens(?:\. Given: (?P<count>\d+))?",
    r"(?:Input validation error: )?`?inputs`? must have less than \d+ characters",
    # Bedrock and Cohere behind a gateway, Mistral, DashScope, Jina
    r"(?:400 Bad Request: )?Too many input tokens\. Max input tokens: (?P<limit>\d+)"
    r", request input token count: (?P<count>\d+)",
    r"Input is too long\b",
    r"Malformed input request: (?:#/\w+: )?expected maxLength: \d+, actual: \d+",
    r"too many tokens: ",
    r"(?:<400> )?(?:InternalError\.Algo\.InvalidParameter: )?Range of input length should be \[\d+, ?(?P<limit>\d+)\]",
    r"Input text exceeds (?:the )?(?:model's )?maximum\b",
)
CANNOT_EMBED = _words(
    rf"(?:The |This )?(?:model|server|endpoint|deployment)?:? ?(?:{_NAME} )?"
    r"(?:does not|doesn't|cannot|can't) (?:support|generate|create|produce|do|handle) (?:the )?(?:text )?embeddings?\b",
    rf"(?:The |This )?(?:model|server)?:? ?(?:{_NAME} )?is not an embeddings? model",
    r"You are not allowed to generate embeddings from this model",  # OpenAI, 403
    r"The embeddings operation does not work with the specified model",  # Azure
    r"(?:models/)?[\w./-]{1,200} is not found for API version \w+, or is not supported for embedContent",  # Google
    r"Embeddings? (?:API )?(?:is|are) not (?:supported|enabled|available)\b",
    r"Pooling type '?none'? is not OAI compatible",  # llama.cpp
)
BAD_KEY = _words(
    r"API key (?:not valid|expired|not found)",  # Google, with status 400
    r"(?:Incorrect|Invalid) API[ -]?(?:key|token)",
    r"No API key\b",
    r"User location is not supported",  # Google
)
NO_SUCH_MODEL = _words(r"Invalid model\b", rf"(?:The )?model {_NAME} (?:does not exist|not found)")
CALL_HAS_TOO_MANY_TOKENS = _words(
    r"(?:Invalid 'input': )?maximum request size is",  # OpenAI
    r"Requested \d+ tokens, (?:max|maximum request size is) \d+",
    r"Too many tokens (?:in batch|overall)",  # Mistral
    r"Request to model '[^']{1,200}' failed\. The max allowed tokens per",  # Voyage
    r"Unable to submit request because the input token count is",  # Vertex
)
CALL_HAS_TOO_MANY_INPUTS = _words(
    r"batch size\b",  # text-embeddings-inference
    r"'\$\.input' is invalid\. The array length must be \d+ or less",  # OpenAI
    r"(?:Invalid 'input': )?array too long",
    r"Too many inputs in request",  # Mistral
    r"\* ?\w+\.requests: at most \d+ requests",  # Google
    r"Unable to submit request because it has a batchSize value of",  # Vertex
    r"\d+ instance\(s\) is allowed per prediction",
    r"(?:invalid request: )?total number of texts must be at most",  # Cohere
    r"(?:<400> )?(?:InternalError\.Algo\.InvalidParameter: )?(?:Value error, )?batch size is invalid",  # DashScope
)
ENCODING_REFUSED = _words(
    r"(?:Invalid|Unsupported|Unknown) (?:value for |value |parameter:? |field:? )?[`'\"]?encoding_format\b",
    r"[`'\"]?encoding_format[`'\"]? ",
    r"(?:the )?base64 (?:encoding |format )?(?:is )?not supported",
    r"The format to return the embeddings in",  # llama.cpp
    r"(?:unknown|unsupported) (?:variant|encoding|encoding format) [`'\"]?base64\b",
)
PARAMETER_REFUSED = _words(
    r"-?\d+ is less than the minimum of \d+ - 'dimensions'",  # OpenAI
    r"Invalid value for 'dimensions'",
    rf"(?:(?:This|The) )?model (?:{_NAME} )?does not support (?:specifying |changing )?(?:the )?(?:output )?"
    r"(?:dimensions|matryoshka)",  # vLLM
    r"[`'\"]?dimensions[`'\"]? (?:must|is|are|should|has to|parameter)\b",
    r"'input_type' parameter is required",  # NVIDIA NIM
    r"Unknown parameter: '",
    r"(?:Unrecognized request|Extra inputs are not permitted)",
)

_NO_CREDIT = frozenset(
    {"insufficient_quota", "insufficient_balance", "billing_hard_limit_reached", "billing_not_active"}
)
_BAD_KEY = frozenset(
    {
        "invalid_api_key", "api_key_invalid", "api_key_expired", "invalid_authentication", "authentication_error",
        "authenticationerror", "unauthenticated", "permission_denied", "permissiondeniederror",
    }
)  # fmt: skip
_UNKNOWN_MODEL = frozenset(
    {
        "model_not_found", "deploymentnotfound", "notfounderror", "not_found_error", "not_found", "invalid_model",
        "input_model_not_found", "model_not_found_error",
    }
)  # fmt: skip
_INPUT_TOO_LONG = frozenset(
    {
        "context_length_exceeded", "string_above_max_length", "exceed_context_size_error", "input_too_long",
        "contextwindowexceedederror",
    }
)  # fmt: skip
_PARAMETER = frozenset({"unknown_parameter", "unsupported_parameter", "unsupportedparamserror"})

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

OPENAI_RULES = (
    # Codes, and statuses that leave no doubt.
    Rule(_CREDIT, range(400, 500), codes=_NO_CREDIT),
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
    Rule(_NO_EMBEDDINGS, (*REFUSALS, 403, 404, 405, 500, 501), words=CANNOT_EMBED),
    # Some servers fail on what they do not have.
    Rule(_ENCODING, range(500, 600), words=ENCODING_REFUSED),
    Rule(_ENCODING, range(500, 600), fields=frozenset({"encoding_format"})),
    Rule(_NO_EMBEDDINGS, (501,)),
    Rule(_CREDENTIAL, (401, 403)),
    Rule(_CREDENTIAL, range(400, 429), codes=_BAD_KEY),
    Rule(_MODEL, range(400, 500), codes=_UNKNOWN_MODEL),
    Rule(_MODEL, (404,)),
    Rule(_too_large("tokens"), codes=frozenset({"max_tokens_per_request"})),
    Rule(_too_large("inputs"), codes=frozenset({"array_above_max_length"})),
    Rule(_too_long, range(400, 600), codes=_INPUT_TOO_LONG),
    Rule(_ENCODING, REFUSALS, fields=frozenset({"encoding_format"})),
    Rule(_REFUSED_PARAMETER, REFUSALS, codes=_PARAMETER),
    Rule(_REFUSED_PARAMETER, REFUSALS, fields=frozenset({"dimensions"})),
    # Words of vendors that give nothing else.
    Rule(_CREDIT, (429,), words=_words(r"You exceeded your current quota")),
    Rule(_rate_limited, (425, 429)),
    Rule(_CREDENTIAL, REFUSALS, words=BAD_KEY),
    Rule(_MODEL, REFUSALS, words=NO_SUCH_MODEL),
    Rule(_too_long, (*REFUSALS, 500), words=TOO_LONG),
    Rule(_too_large("tokens"), REFUSALS, words=CALL_HAS_TOO_MANY_TOKENS),
    Rule(_too_large("inputs"), REFUSALS, words=CALL_HAS_TOO_MANY_INPUTS),
    Rule(_ENCODING, REFUSALS, words=ENCODING_REFUSED),
    Rule(_REFUSED_PARAMETER, REFUSALS, words=PARAMETER_REFUSED),
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
