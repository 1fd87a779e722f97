"""Google's two APIs: Gemini's batchEmbedContents, and Vertex AI's predict. Vectors come in the order of the texts.

Oddities: `no_usage` (001 counts no tokens), `list_errors` (the error inside of a list), `expired_token` (Vertex: the
first call is refused as of an expired token, the ones after it are served).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.embedding import Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors
from providers.fake.rate_limit import Refusal, SlidingWindow

TASK_TYPES = frozenset[object](
    {
        "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING", "RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY",
        "QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY",
    }
)  # fmt: skip
_ARGUMENT = "INVALID_ARGUMENT"
_BAD_KEY = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
_DAY = [
    {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": "EmbedContentRequestsPerDayPerUserPerProjectPerModel-FreeTier"}],
    }
]
_EXCEEDED = "You exceeded your current quota, please check your plan and billing details."
_ERRORS = VendorErrors(
    bad_body=VendorError(400, "Invalid JSON payload received.", _ARGUMENT),
    bad_path=VendorError(404, "Not Found", "NOT_FOUND"),
    bad_method=VendorError(405, "Method not allowed", _ARGUMENT),
    bad_key=VendorError(400, "API key not valid. Please pass a valid API key.", _ARGUMENT, details=_BAD_KEY),
    unknown_model=VendorError(404, "The model is not found.", "NOT_FOUND"),
    unknown_field=VendorError(400, 'Invalid JSON payload received. Unknown name "{field}".', _ARGUMENT),
    missing_field=VendorError(400, "* BatchEmbedContentsRequest.{field}: is required", _ARGUMENT),
    bad_value=VendorError(400, "* BatchEmbedContentsRequest.{field}: unexpected value", _ARGUMENT),
    bad_width=VendorError(
        400, "Unable to submit request because it has an outputDimensionality value of {value}.", _ARGUMENT
    ),
    fixed_width=VendorError(
        400, "Unable to submit request because it has an outputDimensionality value of {value}.", _ARGUMENT
    ),
    empty_input=VendorError(400, "EmbedContentRequest.content contains an empty Part.", _ARGUMENT),
    too_many_inputs=VendorError(
        400, "* BatchEmbedContentsRequest.requests: at most {cap} requests can be in one batch", _ARGUMENT
    ),
    too_long=VendorError(400, "Input is too long: {count} tokens, the model takes {cap}.", _ARGUMENT),
    rate_limited=VendorError(429, _EXCEEDED, "RESOURCE_EXHAUSTED"),
    no_credit=VendorError(429, _EXCEEDED, "RESOURCE_EXHAUSTED", details=_DAY),
    no_permission=VendorError(403, "The caller does not have permission", "PERMISSION_DENIED"),
    failed=VendorError(500, "An internal error has occurred.", "INTERNAL"),
    overloaded=VendorError(503, "The model is overloaded. Please try again later.", "UNAVAILABLE"),
)
GOOGLE = Profile(
    "google",
    path=r"/models/(?P<model>[^/]+):batchEmbedContents$",
    base_path="/v1beta",
    key_header="x-goog-api-key",
    max_inputs=100,
    max_input_tokens=2048,
    fields=frozenset({"requests"}),
    required=("requests",),
    width_field="outputDimensionality",
    encoding_field=None,
    purpose_field="taskType",
    cuts=True,
    narrowing="slice",
    has_index=False,
    waits_in="text",
    envelope=envelopes.google,
    errors=_ERRORS,
)
VERTEX = Profile(
    "vertex",
    path=r"/publishers/google/models/(?P<model>[^/]+):(?:predict|batchEmbedContents)$",
    base_path="/v1/projects/p/locations/us-central1",
    max_inputs=250,
    max_input_tokens=2048,
    max_call_tokens=20_000,
    fields=frozenset({"instances", "parameters", "requests"}),
    width_field="outputDimensionality",
    encoding_field=None,
    purpose_field="task_type",
    cut_field="autoTruncate",
    cuts=True,
    narrowing="slice",
    has_index=False,
    waits_in="text",
    envelope=envelopes.google,
    errors=replace(
        _ERRORS,
        bad_key=VendorError(401, "Request had invalid authentication credentials.", "UNAUTHENTICATED"),
        too_many_inputs=VendorError(
            400,
            "Unable to submit request because it has a batchSize value of {count} but the supported range is from 1 "
            "(inclusive) to 251 (exclusive).",
            _ARGUMENT,
        ),
        too_many_tokens=VendorError(
            400,
            "Unable to submit request because the input token count is {count} but the model supports up to {cap}",
            _ARGUMENT,
        ),
    ),
)
_REQUEST_FIELDS = {"model", "content", "taskType", "title", "outputDimensionality"}
_SECOND = "gemini-embedding-2"
_SECOND_TOKENS = 8192


class GoogleFormat(JsonFormat):
    """POST /models/{model}:batchEmbedContents."""

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """One text in each request. All requests name the model of the path, and take the first one's options."""
        requests = document.get("requests")
        if not isinstance(requests, list) or not all(isinstance(each, dict) for each in requests) or model is None:
            return self.refuse(self.profile.errors.bad_value, field="requests")
        if not requests:
            return self.refuse(self.profile.errors.empty_input)
        if any(each.get("model", f"models/{model}") != f"models/{model}" for each in requests):
            return self.refuse(self.profile.errors.bad_value, field="requests[0].model")
        return self.call_of(model, requests, requests[0])

    def call_of(
        self, model: str, requests: Sequence[dict[str, Any]], options: Mapping[str, Any]
    ) -> FakeCall | UpstreamReply:
        """The call of these requests."""
        known = _REQUEST_FIELDS | ({"embedContentConfig"} if self.kind == "vertex" else set())
        if unknown := sorted({name for each in requests for name in each} - known):
            return self.refuse(self.profile.errors.unknown_field, field=unknown[0])
        texts = [_text_of(each.get("content")) for each in requests]
        if None in texts:
            return self.refuse(self.profile.errors.bad_value, field="requests.content")
        task = options.get("taskType")
        if task is not None and task not in TASK_TYPES:
            return self.refuse(self.profile.errors.bad_value, field="requests.task_type")
        if is_second(model):  # it ignores the task, and cuts no text
            options = {name: value for name, value in options.items() if name != "taskType"}
        return self.call(
            model, [text or "" for text in texts], options, requests, cuts=False if is_second(model) else None
        )

    def max_input_tokens(self, model: str) -> int | None:
        """More for the second generation."""
        return _SECOND_TOKENS if is_second(model) else super().max_input_tokens(model)

    def width_of(self, call: FakeCall, width: int) -> int:
        """The second generation narrows well."""
        return call.width or width if is_second(call.model) else super().width_of(call, width)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`embeddings`, and the tokens where it counts them."""
        document: dict[str, Any] = {"embeddings": [{"values": row} for row in rows]}
        if tokens is not None:
            details = [{"modality": "TEXT", "tokenCount": sum(tokens)}]
            document["usageMetadata"] = {"promptTokenCount": sum(tokens), "promptTokenDetails": details}
        return document, {}

    def refuse(self, error: VendorError, headers: Mapping[str, str] | None = None, **values: object) -> UpstreamReply:
        """The error, inside of a list where the oddity says so."""
        if "list_errors" in self.oddities:
            error = replace(error, envelope=envelopes.google_list)
        return super().refuse(error, headers, **values)

    def rate_limited(
        self, refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float
    ) -> UpstreamReply:
        """The 429, whose details say the quota and the wait."""
        unit = "Requests" if refusal.kind == "requests" else "InputTokens"
        details: list[dict[str, Any]] = [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": f"EmbedContent{unit}PerMinutePerProjectPerModel"}],
            }
        ]
        if quota is None or quota.rate.states_wait:
            delay = f"{refusal.wait_s:.3f}s"
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
        return self.refuse(replace(self.profile.errors.rate_limited, details=details))


class VertexFormat(GoogleFormat):
    """POST …/models/{model}:predict; batchEmbedContents for gemini-embedding-2."""

    def __init__(self, profile: Profile, oddities: frozenset[str] = frozenset()) -> None:
        super().__init__(profile, oddities)
        self._has_expired = "expired_token" in oddities

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """The call; or once the refusal of an expired token."""
        if self._has_expired:
            self._has_expired = False
            return self.refuse(self.profile.errors.bad_key)
        return super().read(request, path)

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """Instances with one text each, and parameters; the first instance's task holds for all."""
        requests = document.get("requests")
        if model is not None and isinstance(requests, list) and requests and isinstance(requests[0], dict):
            return self.call_of(model, requests, requests[0].get("embedContentConfig") or {})
        instances, parameters = document.get("instances"), document.get("parameters") or {}
        if model is None or not isinstance(instances, list) or not isinstance(parameters, dict):
            return self.refuse(self.profile.errors.bad_value, field="instances")
        contents = [each.get("content") if isinstance(each, dict) else None for each in instances]
        texts = [content for content in contents if isinstance(content, str)]
        if not texts or len(texts) != len(contents):
            return self.refuse(self.profile.errors.bad_value, field="instances.content")
        unknown = {name for each in instances for name in each} - {"content", "task_type", "title"}
        unknown |= parameters.keys() - {"outputDimensionality", "autoTruncate"}
        if unknown:
            return self.refuse(self.profile.errors.unknown_field, field=min(unknown))
        fields = {**parameters, "task_type": instances[0].get("task_type")}
        return self.call(model, texts, fields, instances)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`predictions`, each with its tokens, as floats, and whether its text was cut."""
        if is_second(call.model):
            return super().body(call, rows, indexes, tokens)
        predictions = []
        for position, row in enumerate(rows):
            embeddings: dict[str, Any] = {"values": row}
            if tokens is not None:
                count = float(tokens[min(position, len(tokens) - 1)])
                embeddings["statistics"] = {"token_count": count, "truncated": position in call.truncated}
            predictions.append({"embeddings": embeddings})
        characters = sum(len(item) for item in call.inputs)
        return {"predictions": predictions, "metadata": {"billableCharacterCount": characters}}, {}


def is_second(model: str) -> bool:
    """True for gemini-embedding-2."""
    return model.startswith(_SECOND)


def _text_of(content: object) -> str | None:
    """The text of a content. Several parts are one text."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    texts = [part.get("text") for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None
