"""The errors of a vendor: what it refuses, in its own words, and the envelope that it puts them in.

Texts in braces are filled in by whoever refuses: {count}, {cap}, {index}, {field}, {value}, {model}, {width}, {key},
{wait} and {unit}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Envelope = Callable[[int, str, "VendorError"], object]
"""Makes the body of a status, a message and the error: JSON, or bytes."""


@dataclass(frozen=True, slots=True)
class VendorError:
    """One error. `code` and `kind` are the vendor's, `param` the field that it names."""

    status: int
    message: str
    code: str | int | None = None
    kind: str | None = None
    param: str | None = None
    envelope: Envelope | None = None  # where this error has another than the vendor's others
    headers: Mapping[str, str] | None = None
    details: object = None  # beside the message: Google's details, the fields of llama.cpp


BAD = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class VendorErrors:
    """What a vendor says, by cause; OpenAI's words where a row gives none."""

    bad_body: VendorError = VendorError(400, "We could not parse the JSON body of your request.", kind=BAD)
    bad_path: VendorError = VendorError(404, "Invalid URL", kind=BAD)
    bad_method: VendorError = VendorError(405, "Method not allowed", kind=BAD)
    bad_key: VendorError = VendorError(401, "Incorrect API key provided: {key}***.", "invalid_api_key", BAD)
    unknown_model: VendorError = VendorError(
        404, "The model `{model}` does not exist or you do not have access to it.", "model_not_found", BAD
    )
    unknown_field: VendorError = VendorError(400, "Unknown parameter: '{field}'.", "unknown_parameter", BAD, "{field}")
    missing_field: VendorError = VendorError(
        400, "Missing required parameter: '{field}'.", "missing_required_parameter", BAD, "{field}"
    )
    bad_value: VendorError = VendorError(400, "Invalid value for '{field}'.", "invalid_value", BAD, "{field}")
    bad_width: VendorError = VendorError(400, "Invalid value for 'dimensions' = {value}.", None, BAD)
    fixed_width: VendorError = VendorError(400, "This model does not support specifying dimensions.", None, BAD)
    empty_input: VendorError = VendorError(400, "'$.input' is invalid.", None, BAD)
    too_many_inputs: VendorError = VendorError(
        400, "'$.input' is invalid. The array length must be {cap} or less.", None, BAD
    )
    too_long: VendorError = VendorError(
        400,
        "This model's maximum context length is {cap} tokens, however you requested {count} tokens "
        "({count} in your prompt; 0 for the completion). Please reduce your prompt; or completion length.",
        None,
        BAD,
    )
    too_many_tokens: VendorError = VendorError(
        400,
        "Requested {count} tokens, max {cap} tokens per request",
        "max_tokens_per_request",
        "max_tokens_per_request",
    )
    rate_limited: VendorError = VendorError(429, "Rate limit reached for {unit}.", "rate_limit_exceeded", "{unit}")
    no_credit: VendorError = VendorError(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    )
    no_permission: VendorError = VendorError(403, "You do not have access to this.", None, BAD)
    too_many_bytes: VendorError = VendorError(413, "Request body too large.", None, BAD)
    failed: VendorError = VendorError(500, "The server had an error while processing your request.", None, SERVER)
    overloaded: VendorError = VendorError(503, "The server is overloaded or not ready yet.", None, SERVER)

    def of_status(self, status: int) -> VendorError:
        """What the vendor says with a status that a script asks for."""
        known = {
            401: self.bad_key,
            403: self.no_permission,
            404: self.unknown_model,
            413: self.too_many_bytes,
            429: self.rate_limited,
            500: self.failed,
            503: self.overloaded,
        }
        return known.get(status) or VendorError(status, "We could not process the request.", kind=BAD)


def nested(status: int, message: str, error: VendorError) -> object:
    """OpenAI's envelope."""
    return {"error": {"message": message, "type": error.kind, "param": error.param, "code": error.code}}


def numbered(status: int, message: str, error: VendorError) -> object:
    """The same with the status as its code: vLLM today, llama.cpp, OpenRouter."""
    fields: dict[str, Any] = dict(error.details) if isinstance(error.details, dict) else {}
    return {"error": {"message": message, "type": error.kind, "param": error.param, "code": status, **fields}}


def coded(status: int, message: str, error: VendorError) -> object:
    """Azure: a code, which may be the status, and a message."""
    return {"error": {"code": f"{error.code or status}", "message": message}}


def flat(status: int, message: str, error: VendorError) -> object:
    """Without a wrapper: Mistral, NIM, vLLM before 2026."""
    return {"object": "error", "message": message, "type": error.kind, "param": None, "code": error.code}


def flat_numbered(status: int, message: str, error: VendorError) -> object:
    """The same with the status as its code."""
    return {"object": "error", "message": message, "type": error.kind, "param": None, "code": status}


def typed(status: int, message: str, error: VendorError) -> object:
    """Mixedbread."""
    return {"type": error.kind, "url": "https://www.mixedbread.com/docs", "message": message, "details": None}


def detail(status: int, message: str, error: VendorError) -> object:
    """Voyage, Jina, Nomic, and what FastAPI says by itself."""
    return {"detail": message}


def detail_error(status: int, message: str, error: VendorError) -> object:
    """DeepInfra."""
    return {"detail": {"error": message}}


def finding(status: int, message: str, error: VendorError) -> object:
    """A finding of FastAPI's validator: `kind` is its type, `param` the place, with dots."""
    loc = [int(part) if part.isdigit() else part for part in (error.param or "").split(".")]
    return {"detail": [{"loc": ["body", *loc], "msg": message, "type": error.kind, "input": None}]}


def finding_inside(status: int, message: str, error: VendorError) -> object:
    """Mistral, which puts the finding into its flat envelope."""
    return {"object": "error", "message": finding(status, message, error), "type": BAD, "param": None, "code": None}


def text(status: int, message: str, error: VendorError) -> object:
    """`error` is a text: Ollama, LM Studio, Together, Hugging Face."""
    return {"error": message}


def message_only(status: int, message: str, error: VendorError) -> object:
    """Cohere, Bedrock, Snowflake."""
    return {"message": message}


def error_coded(status: int, message: str, error: VendorError) -> object:
    """Databricks."""
    return {"error_code": error.code or "BAD_REQUEST", "message": message}


def google(status: int, message: str, error: VendorError) -> object:
    """Google's status words and details."""
    details = error.details if isinstance(error.details, list) else []
    return {"error": {"code": status, "message": message, "status": error.code, "details": details}}


def google_list(status: int, message: str, error: VendorError) -> object:
    """The same inside of a list, as Google sometimes does."""
    return [google(status, message, error)]


def requested(status: int, message: str, error: VendorError) -> object:
    """DashScope."""
    return {"code": error.code or "InvalidParameter", "message": message, "request_id": "fake"}


def cloudflare(status: int, message: str, error: VendorError) -> object:
    """Cloudflare's wrapper."""
    return {"result": None, "success": False, "errors": [{"code": error.code, "message": message}], "messages": []}


def tei(status: int, message: str, error: VendorError) -> object:
    """text-embeddings-inference, natively."""
    return {"error": message, "error_type": error.kind}


def tei_openai(status: int, message: str, error: VendorError) -> object:
    """The same server at its OpenAI-like path: without a wrapper, with the status as its code."""
    return {"message": message, "code": status, "type": error.kind}


def empty(status: int, message: str, error: VendorError) -> object:
    """No body."""
    return b""
