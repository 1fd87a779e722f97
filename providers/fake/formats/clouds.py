"""DashScope, Cloudflare, Snowflake and Perplexity. Oddities: `shuffle`, `no_index`, `no_usage`, as in the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.openai_shaped import OpenAIShapedFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors

_PARAMETER = "InvalidParameter"
_BATCH = (
    "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it should not be larger than {cap}."
)
DASHSCOPE = Profile(
    "dashscope",
    path=r"/services/embeddings/text-embedding/text-embedding$",
    base_path="",
    max_inputs=10,
    required=("model", "input"),
    encoding_field=None,
    width_field="dimension",
    purpose_field="text_type",
    usage="total",
    waits_in="nowhere",
    envelope=envelopes.requested,
    errors=VendorErrors(
        bad_key=VendorError(401, "Invalid API-key provided.", "InvalidApiKey"),
        unknown_model=VendorError(404, "Model not exist.", "ModelNotFound"),
        missing_field=VendorError(400, "Required parameter {field} is missing.", _PARAMETER),
        bad_value=VendorError(400, "Value error, {field} is invalid.", _PARAMETER),
        bad_width=VendorError(400, "dimension is invalid: {value}", "unsupported_parameter"),
        fixed_width=VendorError(400, "dimension is invalid: {value}", "unsupported_parameter"),
        empty_input=VendorError(400, "Value error, contents is neither str nor list of str.", _PARAMETER),
        too_many_inputs=VendorError(400, _BATCH, _PARAMETER),
        too_long=VendorError(400, "Range of input length should be [1, {cap}]", _PARAMETER),
        rate_limited=VendorError(429, "Requests rate limit exceeded.", "Throttling.RateQuota"),
        no_credit=VendorError(400, "Access denied, the account is in arrears.", "Arrearage"),
    ),
)
_OLDER = ("text-embedding-v1", "text-embedding-v2")
_OLDER_TEXTS, _OLDER_TOKENS = 25, 2048
CLOUDFLARE = Profile(
    "cloudflare",
    path=r"/ai/run/(?P<model>.+)$",
    base_path="/client/v4/accounts/fake",
    max_inputs=100,
    max_input_tokens=512,
    input_field="text",
    width_field=None,
    encoding_field=None,
    cuts=True,
    has_index=False,
    usage="none",
    waits_in="nowhere",
    envelope=envelopes.cloudflare,
    errors=VendorErrors(
        bad_key=VendorError(401, "Authentication error", 10000),
        bad_path=VendorError(404, "No route for that URI", 7000),
        unknown_model=VendorError(400, "No such model {model} or task", 5007),
        empty_input=VendorError(400, "AiError: Bad input", 5006),
        too_many_inputs=VendorError(400, "batch size must be at most {cap}", 5006),
        rate_limited=VendorError(429, "Capacity temporarily exceeded, please try again.", 3040),
        no_credit=VendorError(429, "you have used up your daily free allocation of 10,000 neurons", 3036),
    ),
)
SNOWFLAKE = Profile(
    "snowflake",
    path=r"/cortex/inference:embed$",
    base_path="",
    max_inputs=None,
    input_field="text",
    takes_text=False,
    required=("model", "text"),
    width_field=None,
    encoding_field=None,
    waits_in="nowhere",
    envelope=envelopes.message_only,
    errors=VendorErrors(
        bad_key=VendorError(401, "Programmatic access token is invalid."),
        unknown_model=VendorError(400, "unknown model {model}"),
        too_long=VendorError(400, "Input is too long: {count} tokens"),
        no_credit=VendorError(402, "The account has no credit left."),
        rate_limited=VendorError(429, "too many requests"),
    ),
)
PERPLEXITY = Profile(
    "perplexity",
    max_inputs=512,
    max_input_tokens=32_768,
    max_call_tokens=120_000,
    takes_text=True,
    fields=frozenset({"model", "input", "dimensions", "encoding_format"}),
    words={"encoding_format": frozenset({"base64_int8", "base64_binary"})},
    usage="cost",
    waits_in="nowhere",
)


class DashScopeFormat(JsonFormat):
    """POST /api/v1/services/embeddings/text-embedding/text-embedding."""

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """The texts of `input`, with the fields of `parameters`."""
        holder, parameters, name = document.get("input"), document.get("parameters") or {}, document.get("model")
        texts = self.inputs_of(holder.get("texts")) if isinstance(holder, dict) else None
        if texts is None or not isinstance(parameters, dict) or not isinstance(name, str):
            return self.refuse(self.profile.errors.bad_value, field="input.texts")
        return self.call(name, texts, parameters, None)

    def max_inputs(self, model: str) -> int | None:
        """More texts for the first two generations."""
        return _OLDER_TEXTS if model in _OLDER else super().max_inputs(model)

    def max_input_tokens(self, model: str) -> int | None:
        """Fewer tokens for the first two generations."""
        return _OLDER_TOKENS if model in _OLDER else super().max_input_tokens(model)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`output.embeddings` with their `text_index`."""
        embeddings: list[dict[str, Any]] = [
            {"embedding": row} if index is None else {"embedding": row, "text_index": index}
            for row, index in zip(rows, indexes, strict=True)
        ]
        document: dict[str, Any] = {"output": {"embeddings": embeddings}, "request_id": "fake"}
        if tokens is not None:
            document["usage"] = {"total_tokens": sum(tokens)}
        return document, {}


class CloudflareFormat(JsonFormat):
    """POST /ai/run/{model}."""

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`result.data`, without any usage."""
        result = {"shape": list(rows.shape), "data": list(rows), "pooling": "mean"}
        return {"result": result, "success": True, "errors": [], "messages": []}, {}


class SnowflakeFormat(OpenAIShapedFormat):
    """POST /api/v2/cortex/inference:embed."""

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """OpenAI's object, with a list around each vector."""
        document, headers = super().body(call, rows, indexes, tokens)
        assert isinstance(document, dict)
        for item in document["data"]:
            item["embedding"] = [item["embedding"]]
        return document, headers


class PerplexityFormat(OpenAIShapedFormat):
    """POST /v1/embeddings: vectors are bytes in base64, not of unit length."""

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """OpenAI's object, with one byte for each number. What is no number is 0."""
        document, headers = super().body(call, rows, indexes, tokens)
        assert isinstance(document, dict)
        for item, row in zip(document["data"], np.nan_to_num(rows), strict=True):
            largest = float(np.abs(row).max()) or 1.0
            item["embedding"] = pybase64.b64encode_as_string(np.rint(row * (127 / largest)).astype(np.int8).tobytes())
        return document, headers
