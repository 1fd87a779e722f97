"""Amazon Bedrock's InvokeModel: Titan (one text), Cohere (96 texts), Nova (one text), told apart by the model's name.

Oddities: `no_usage` (no header with the tokens, and no count in the body).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from models.embedding import Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.cohere import INPUT_TYPES
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors
from providers.sigv4 import signed

TITAN_CHARACTERS = 50_000
COHERE_V3_CHARACTERS = 2048
COHERE_TEXTS = 96
COHERE_TOKENS = 128_000
NOVA_TOKENS = 8172

SECRET_ACCESS_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # noqa: S105  # AWS's own example
_SIGNATURE = re.compile(r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/bedrock/aws4_request, ")
_VALIDATION = "ValidationException"
_AGAIN = ", please reformat your input and try again."
_EXTRANEOUS = VendorError(
    400, "Malformed input request: #: extraneous key [{field}] is not permitted" + _AGAIN, _VALIDATION
)
BEDROCK = Profile(
    "bedrock",
    path=r"/model/(?P<model>[^/]+)/invoke$",
    base_path="",
    max_inputs=1,
    encoding_field=None,
    has_index=False,
    waits_in="nowhere",
    envelope=envelopes.message_only,
    errors=VendorErrors(
        bad_body=VendorError(400, "Malformed input request, please reformat your input and try again.", _VALIDATION),
        bad_path=VendorError(404, "Not found", "UnknownOperationException"),
        bad_method=VendorError(405, "Method not allowed", "UnknownOperationException"),
        bad_key=VendorError(
            403, "The security token included in the request is invalid.", "UnrecognizedClientException"
        ),
        unknown_model=VendorError(400, "The provided model identifier is invalid.", _VALIDATION),
        unknown_field=_EXTRANEOUS,
        missing_field=VendorError(
            400, "Malformed input request: #: required key [{field}] not found" + _AGAIN, _VALIDATION
        ),
        bad_value=VendorError(400, "Malformed input request: #/{field}: unexpected value" + _AGAIN, _VALIDATION),
        bad_width=replace(_EXTRANEOUS, message=_EXTRANEOUS.message.replace("{field}", "dimensions")),
        fixed_width=replace(_EXTRANEOUS, message=_EXTRANEOUS.message.replace("{field}", "dimensions")),
        empty_input=VendorError(400, "Malformed input request: expected minLength: 1, actual: 0" + _AGAIN, _VALIDATION),
        too_many_inputs=VendorError(
            400,
            "Malformed input request: #/texts: expected maximum item count: {cap}, found: {count}" + _AGAIN,
            _VALIDATION,
        ),
        too_long=VendorError(
            400,
            "400 Bad Request: Too many input tokens. Max input tokens: {cap}, request input token count: {count}",
            _VALIDATION,
        ),
        rate_limited=VendorError(429, "Too many requests, please wait before trying again.", "ThrottlingException"),
        no_credit=VendorError(400, "You have exceeded your service quota.", "ServiceQuotaExceededException"),
        no_permission=VendorError(403, "You don't have access to the model.", "AccessDeniedException"),
        failed=VendorError(500, "The system encountered an unexpected error.", "InternalServerException"),
        overloaded=VendorError(503, "The service is unavailable.", "ServiceUnavailableException"),
    ),
)
_TOO_MANY_CHARACTERS = VendorError(
    400, "Malformed input request: expected maxLength: {cap}, actual: {count}" + _AGAIN, _VALIDATION
)
_TOO_LONG_FOR_COHERE = VendorError(400, "Input is too long for requested model.", _VALIDATION)
_TITAN_FIELDS = frozenset({"inputText", "dimensions", "normalize", "embeddingTypes"})
_COHERE_FIELDS = frozenset({"texts", "input_type", "truncate", "embedding_types"})
_COHERE_V4_FIELDS = _COHERE_FIELDS | {"output_dimension", "max_tokens", "inputs", "images"}


class BedrockFormat(JsonFormat):
    """POST /model/{model}/invoke. A signed call is checked with SECRET_ACCESS_KEY, whatever its access key is."""

    def has_key(self, request: UpstreamRequest, api_key: str) -> bool:
        """True for the Bedrock API key, and for a request that is signed with the secret."""
        signature = _SIGNATURE.match(request.headers.get("authorization", ""))
        if signature is None:
            return super().has_key(request, api_key)
        instant = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%S%z")
        again = signed(
            request,
            access_key_id=signature["key"],
            secret_access_key=SECRET_ACCESS_KEY,
            session_token=request.headers.get("x-amz-security-token"),
            region=signature["region"],
            service="bedrock",
            now_s=instant.timestamp(),
        )
        return again.headers["authorization"] == request.headers["authorization"]

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """The body of the model's family."""
        if model is not None and "titan-embed" in model:
            return self._titan(document, model)
        if model is not None and "cohere.embed" in model:
            return self._cohere(document, model)
        if model is not None and "nova-2-multimodal-embeddings" in model:
            return self._nova(document, model)
        return self.unknown_model(model or "")

    def _titan(self, document: dict[str, Any], model: str) -> FakeCall | UpstreamReply:
        fields = frozenset({"inputText"}) if "titan-embed-text-v2" not in model else _TITAN_FIELDS
        refused = self._unknown(document, fields)
        text = document.get("inputText")
        if refused is not None or not isinstance(text, str):
            return refused or self.refuse(self.profile.errors.missing_field, field="inputText")
        call = self.call(model, [text], {}, document)
        scale = 1.0 if document.get("normalize", True) else 3.0
        return replace(call, width=_whole(document.get("dimensions")), scale=scale)

    def _cohere(self, document: dict[str, Any], model: str) -> FakeCall | UpstreamReply:
        refused = self._unknown(document, _COHERE_V4_FIELDS if _is_v4(model) else _COHERE_FIELDS)
        texts = self.inputs_of(document.get("texts"))
        if refused is not None or texts is None or document.get("input_type") not in INPUT_TYPES:
            name = "texts" if texts is None else "input_type"
            return refused or self.refuse(self.profile.errors.missing_field, field=name)
        cuts = document.get("truncate", "NONE") != "NONE"
        call = self.call(model, texts, {}, document, cuts=cuts and _is_v4(model))
        if cuts and not _is_v4(model):  # the older models count characters
            call = replace(call, inputs=[text[:COHERE_V3_CHARACTERS] for text in texts if isinstance(text, str)])
        is_query = document.get("input_type") == "search_query"
        return replace(call, width=_whole(document.get("output_dimension")), is_query=is_query)

    def _nova(self, document: dict[str, Any], model: str) -> FakeCall | UpstreamReply:
        refused = self._unknown(document, frozenset({"schemaVersion", "taskType", "singleEmbeddingParams"}))
        parameters = _object(document.get("singleEmbeddingParams"))
        text = _object(parameters.get("text"))
        value, mode = text.get("value"), text.get("truncationMode")
        if refused is not None or not isinstance(value, str) or mode is None:
            return refused or self.refuse(self.profile.errors.missing_field, field="singleEmbeddingParams")
        call = self.call(model, [value], {}, document, cuts=mode != "NONE")
        is_query = str(parameters.get("embeddingPurpose")).endswith("_RETRIEVAL")
        return replace(call, width=_whole(parameters.get("embeddingDimension")), is_query=is_query)

    def _unknown(self, document: Mapping[str, Any], fields: frozenset[str]) -> UpstreamReply | None:
        unknown = sorted(document.keys() - fields)
        return self.refuse(self.profile.errors.unknown_field, field=unknown[0]) if unknown else None

    def max_inputs(self, model: str) -> int | None:
        """96 texts for Cohere's models, one for the others."""
        return COHERE_TEXTS if "cohere" in model else super().max_inputs(model)

    def max_input_tokens(self, model: str) -> int | None:
        """None for Cohere's older models, which count characters."""
        if "cohere" in model:
            return COHERE_TOKENS if _is_v4(model) else None
        return NOVA_TOKENS if "nova" in model else super().max_input_tokens(model)

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """Characters first, where the model counts them."""
        cap = _characters_of(call.model)
        longest = max((len(item) for item in call.inputs), default=0)
        if cap is not None and longest > cap:
            return self.refuse(_TOO_MANY_CHARACTERS, cap=cap, count=longest)
        if _is_v4(call.model) and max(tokens, default=0) > COHERE_TOKENS:
            return self.refuse(_TOO_LONG_FOR_COHERE)
        return super().over_limits(call, tokens, width)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """The family's reply. The tokens are in a header, and in the body of all but Cohere's models."""
        count = None if tokens is None else sum(tokens)
        headers = {"x-amzn-requestid": "fake"}
        if count is not None:
            headers["x-amzn-bedrock-input-token-count"] = f"{count}"
        if "cohere" in call.model:
            embeddings: object = {"float": list(rows)} if "embedding_types" in call.document else list(rows)
            return {"embeddings": embeddings, "id": "fake", "texts": list(call.inputs)}, headers
        if "nova" in call.model:
            vectors = [{"embeddingType": "TEXT", "embedding": row} for row in rows]
            return {"embeddings": vectors, **({} if count is None else {"inputTokenCount": count})}, headers
        vector = rows[0].tolist() if len(rows) == 1 else [] if not len(rows) else rows.ravel().tolist()
        document: dict[str, Any] = {"embedding": vector, "embeddingsByType": {"float": vector}}
        if count is not None:
            document["inputTextTokenCount"] = count
        return document, headers

    def refuse(self, error: VendorError, headers: Mapping[str, str] | None = None, **values: object) -> UpstreamReply:
        """The error, with its type in a header, behind which AWS puts an address."""
        kind = {"x-amzn-errortype": f"{error.code}:http://internal.amazon.com/coral/com.amazon.bedrock/"}
        return super().refuse(error, {**kind, **(headers or {})}, **values)


def _is_v4(model: str) -> bool:
    return "cohere.embed-v4" in model


def _characters_of(model: str) -> int | None:
    if "titan" in model:
        return TITAN_CHARACTERS
    return COHERE_V3_CHARACTERS if "cohere" in model and not _is_v4(model) else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value else None
