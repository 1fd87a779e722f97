"""The rows of the hosted vendors whose format is OpenAI's: limits, names of fields, errors. The facts are those of
`providers/openai_compatible.py`, whose sources they share; where a vendor's words are not known they are OpenAI's.
"""

from __future__ import annotations

from dataclasses import replace

from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import BAD, VendorError, VendorErrors

_ENCODINGS = {"encoding_format": frozenset[object]({"float", "base64"})}
_OPENAI_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
_VALIDATOR = {
    "unknown_field": VendorError(
        422, "Extra inputs are not permitted", kind="extra_forbidden", param="{field}", envelope=envelopes.finding
    ),
    "missing_field": VendorError(422, "Field required", kind="missing", param="{field}", envelope=envelopes.finding),
    "bad_value": VendorError(422, "Input should be …", kind="enum", param="{field}", envelope=envelopes.finding),
}

AZURE = Profile(
    "azure",
    path=r"(?:/deployments/(?P<model>[^/]+))?/embeddings$",
    base_path="/openai",
    key_header="api-key",
    max_call_tokens=300_000,
    takes_tokens=True,
    fields=_OPENAI_FIELDS,
    words=_ENCODINGS,
    waits_in="text",
    errors=VendorErrors(
        bad_path=VendorError(404, "Resource not found", "404", envelope=envelopes.coded),
        bad_key=VendorError(
            401,
            "Unauthorized. Access token is missing, invalid, audience is incorrect.",
            envelope=lambda status, message, error: {"statusCode": status, "message": message},
        ),
        unknown_model=VendorError(
            404,
            "The API deployment for this resource does not exist. If you created the deployment within the last 5 "
            "minutes, please wait a moment and try again.",
            "DeploymentNotFound",
            envelope=envelopes.coded,
        ),
        rate_limited=VendorError(
            429,
            "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded call "
            "rate limit of your current OpenAI S0 pricing tier. Please retry after {wait} seconds.",
            envelope=envelopes.coded,
        ),
    ),
)

_VOYAGE_CAPS = {
    **dict.fromkeys(("voyage-4-lite", "voyage-3.5-lite"), 1_000_000),
    **dict.fromkeys(("voyage-4", "voyage-3.5", "voyage-2"), 320_000),
}
_FAILED = "Request to model '{model}' failed. "
VOYAGE = Profile(
    "voyage",
    max_inputs=1000,
    max_input_tokens=32_000,
    max_call_tokens=120_000,
    call_tokens_of=_VOYAGE_CAPS,
    fields=frozenset(
        {"model", "input", "input_type", "truncation", "output_dimension", "output_dtype", "encoding_format"}
    ),
    words={"encoding_format": frozenset({"base64"}), "input_type": frozenset({"query", "document"})},
    width_field="output_dimension",
    purpose_field="input_type",
    cut_field="truncation",
    cuts=True,
    usage="total",
    waits_in="seconds",
    envelope=envelopes.detail,
    errors=VendorErrors(
        bad_key=VendorError(401, "Provided API key is invalid."),
        unknown_model=VendorError(400, "Model {model} is not supported."),
        unknown_field=VendorError(400, "Argument '{field}' is not supported by our API"),
        bad_value=VendorError(400, "Value '…' supplied for argument '{field}' is not valid"),
        bad_width=VendorError(400, "Value '{value}' supplied for argument 'output_dimension' is not valid"),
        fixed_width=VendorError(400, "Value '{value}' supplied for argument 'output_dimension' is not valid"),
        empty_input=VendorError(400, "Input cannot contain empty strings or empty lists"),
        too_many_inputs=VendorError(400, _FAILED + "The batch size limit is {cap}. Your batch size is {count}."),
        too_long=VendorError(
            400,
            _FAILED + "The example at index {index} in your batch has too many tokens and does not fit into the "
            "model's context window of {cap} tokens. Please lower the number of tokens in the listed example(s) or "
            "use truncation.",
        ),
        too_many_tokens=VendorError(
            400,
            _FAILED + "The max allowed tokens per submitted batch is {cap}. Your batch has {count} tokens after "
            "truncation. Please lower the number of tokens in the batch.",
        ),
        no_credit=VendorError(402, "The account has no credit left."),
    ),
)

MISTRAL = Profile(
    "mistral",
    max_inputs=512,
    max_call_tokens=16_384,
    fields=frozenset({"model", "input", "output_dimension", "output_dtype", "encoding_format", "metadata"}),
    words=_ENCODINGS,
    width_field="output_dimension",
    usage="mistral",
    waits_in="seconds",
    envelope=envelopes.flat,
    errors=VendorErrors(
        bad_key=VendorError(401, "Unauthorized", envelope=envelopes.message_only),
        unknown_model=VendorError(400, "Invalid model: {model}", "1500", "invalid_model"),
        unknown_field=replace(_VALIDATOR["unknown_field"], envelope=envelopes.finding_inside),
        missing_field=replace(_VALIDATOR["missing_field"], envelope=envelopes.finding_inside),
        bad_value=_VALIDATOR["bad_value"],
        bad_width=replace(_VALIDATOR["bad_value"], param="output_dimension"),
        fixed_width=replace(_VALIDATOR["bad_value"], param="output_dimension"),
        empty_input=VendorError(
            422, "String should have at least 1 character", None, "string_too_short", "input.{index}", envelopes.finding
        ),
        too_many_inputs=VendorError(
            400, "Too many inputs in request, split into more batches.", "3210", "invalid_request_prompt"
        ),
        too_long=VendorError(400, "Input is too long: {count} tokens, the model takes {cap}.", None, BAD),
        too_many_tokens=VendorError(
            400, "Too many tokens overall, split into more batches.", "3210", "invalid_request_prompt"
        ),
        rate_limited=VendorError(429, "Requests rate limit exceeded", "1300", "rate_limited"),
    ),
)

JINA = Profile(
    "jina",
    max_inputs=512,
    max_input_tokens=8192,
    fields=frozenset(
        {
            "model", "input", "task", "dimensions", "embedding_type", "normalized", "late_chunking", "truncate",
            "return_multivector",
        }
    ),
    words={"embedding_type": frozenset({"float", "base64", "binary", "ubinary"})},
    encoding_field="embedding_type",
    purpose_field="task",
    cut_field="truncate",
    unit_field="normalized",
    waits_in="nowhere",
    envelope=envelopes.detail,
    errors=VendorErrors(
        bad_key=VendorError(401, "[RID: fake] AUTH_INVALID_API_KEY: the API key is invalid."),
        unknown_model=VendorError(400, "[RID: fake] INPUT_MODEL_NOT_FOUND: {model}"),
        unknown_field=VendorError(400, "[RID: fake] Unknown parameter: '{field}'."),
        missing_field=_VALIDATOR["missing_field"],
        bad_value=_VALIDATOR["bad_value"],
        bad_width=replace(_VALIDATOR["bad_value"], param="dimensions"),
        fixed_width=replace(_VALIDATOR["bad_value"], param="dimensions"),
        empty_input=VendorError(400, "[RID: fake] Input cannot be empty."),
        too_many_inputs=VendorError(
            400,
            "[RID: fake] Validation error: 'body -> {model}' Each input list can contain at most {cap} items.",
        ),
        too_long=VendorError(400, "[RID: fake] Input text exceeds the model's maximum of {cap} tokens."),
        no_credit=VendorError(403, "[RID: fake] AUTHZ_INSUFFICIENT_BALANCE: the account's balance is used up."),
        rate_limited=VendorError(429, "[RID: fake] Rate limit exceeded"),
    ),
)  # fmt: skip

TOGETHER = Profile(
    "together",
    max_inputs=None,
    fields=frozenset({"model", "input"}),
    width_field=None,
    encoding_field=None,
    usage="none",
    errors=VendorErrors(
        bad_key=VendorError(401, "Invalid API key provided.", "invalid_api_key", BAD),
        too_long=VendorError(400, "Input is too long.", envelope=envelopes.text),
    ),
)

FIREWORKS = Profile(
    "fireworks",
    base_path="/inference/v1",
    fields=frozenset({"model", "input", "prompt_template", "dimensions", "return_logits", "normalize"}),
    encoding_field=None,
    unit_field="normalize",
    errors=VendorErrors(
        bad_key=VendorError(
            401,
            "Invalid ApiKey",
            envelope=lambda status, message, error: {
                "fault": {"faultstring": message, "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}
            },
        ),
        no_credit=VendorError(402, "The account is suspended.", envelope=envelopes.text),
    ),
)

DEEPINFRA = Profile(
    "deepinfra",
    base_path="/v1/openai",
    max_inputs=1024,
    max_input_tokens=512,
    words=_ENCODINGS,
    cuts=True,
    waits_in="nowhere",
    envelope=envelopes.detail_error,
    errors=VendorErrors(
        bad_key=VendorError(401, "Invalid API key"),
        too_many_inputs=VendorError(400, "Too many inputs in request: {count}, at most {cap}"),
        unknown_model=VendorError(404, "Model is not available"),
    ),
)

OPENROUTER = Profile(
    "openrouter",
    base_path="/api/v1",
    max_inputs=96,
    takes_tokens=True,
    words=_ENCODINGS,
    purpose_field="input_type",
    usage="cost",
    waits_in="seconds",
    envelope=envelopes.numbered,
    errors=VendorErrors(
        bad_key=VendorError(401, "No auth credentials found"),
        no_credit=VendorError(402, "Insufficient credits."),
        unknown_model=VendorError(404, "Model {model} does not exist"),
        too_many_inputs=VendorError(
            400, "invalid request: total number of texts must be at most {cap} - received {count}"
        ),
    ),
)

VERCEL = Profile("vercel", max_inputs=96, takes_tokens=True, words=_ENCODINGS)

MIXEDBREAD = Profile(
    "mixedbread",
    max_inputs=256,
    max_input_tokens=512,
    fields=frozenset({"model", "input", "dimensions", "prompt", "normalized", "encoding_format"}),
    words={"encoding_format": frozenset({"float", "float16", "base64", "binary", "ubinary", "int8", "uint8"})},
    cuts=True,
    envelope=envelopes.typed,
    errors=VendorErrors(
        bad_key=VendorError(401, "Invalid API key", kind="unauthorized_error"),
        unknown_model=VendorError(404, "The model does not exist.", kind="model_not_found_error"),
        too_many_inputs=VendorError(
            422, "List should have at most {cap} items", None, "too_long", "input", envelopes.finding
        ),
        rate_limited=VendorError(429, "Too many requests", kind="too_many_requests_error"),
    ),
)

NIM = Profile(
    "nim",
    max_inputs=50,
    max_input_tokens=512,
    fields=_OPENAI_FIELDS | {"input_type", "truncate", "embedding_type"},
    words={
        **_ENCODINGS,
        "input_type": frozenset({"query", "passage"}),
        "truncate": frozenset({"NONE", "START", "END"}),
    },
    required=("input_type",),
    purpose_field="input_type",
    cut_field="truncate",
    waits_in="nowhere",
    envelope=envelopes.flat,
    errors=VendorErrors(
        unknown_field=_VALIDATOR["unknown_field"],
        missing_field=VendorError(400, "'{field}' parameter is required", None, BAD),
        bad_value=_VALIDATOR["bad_value"],
        bad_width=replace(_VALIDATOR["unknown_field"], param="dimensions"),
        fixed_width=replace(_VALIDATOR["unknown_field"], param="dimensions"),
        too_many_inputs=VendorError(400, "batch size {count} is over the maximum of {cap}", None, BAD),
        too_long=VendorError(400, "Input length {count} exceeds maximum allowed token size {cap}", None, BAD),
        no_credit=VendorError(402, "Payment Required"),
    ),
)

DATABRICKS = Profile(
    "databricks",
    path=r"/serving-endpoints/(?P<model>[^/]+)/invocations$",
    base_path="",
    max_inputs=150,
    width_field=None,
    encoding_field=None,
    waits_in="nowhere",
    envelope=envelopes.error_coded,
    errors=VendorErrors(
        bad_key=VendorError(403, "Invalid access token.", "PERMISSION_DENIED"),
        unknown_model=VendorError(404, "The endpoint does not exist.", "RESOURCE_DOES_NOT_EXIST"),
        too_many_inputs=VendorError(400, "Too many inputs in request: {count}, at most {cap}"),
        too_long=VendorError(400, "Input is too long: {count} tokens"),
        rate_limited=VendorError(429, "The limit of requests is reached.", "REQUEST_LIMIT_EXCEEDED"),
    ),
)

HOSTED = (
    AZURE, VOYAGE, MISTRAL, JINA, TOGETHER, FIREWORKS, DEEPINFRA, OPENROUTER, VERCEL, MIXEDBREAD, NIM, DATABRICKS,
)  # fmt: skip
