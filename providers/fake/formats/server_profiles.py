"""The rows of the servers that people run themselves and whose format is OpenAI's. The facts are those of
`providers/openai_compatible.py`, whose sources they share.
"""

from __future__ import annotations

from dataclasses import replace

from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import BAD, SERVER, VendorError, VendorErrors

_BAD_REQUEST = "BadRequestError"
_ENCODINGS = {"encoding_format": frozenset[object]({"float", "base64"})}

VLLM = Profile(
    "vllm",
    max_inputs=None,
    max_input_tokens=512,
    takes_tokens=True,
    words={"encoding_format": frozenset({"float", "base64", "bytes", "bytes_only"})},
    cut_field="truncate_prompt_tokens",
    waits_in="nowhere",
    envelope=envelopes.numbered,
    errors=VendorErrors(
        bad_key=VendorError(401, "Unauthorized", envelope=envelopes.text),
        unknown_model=VendorError(404, "The model `{model}` does not exist.", kind="NotFoundError"),
        empty_input=VendorError(400, "You must pass at least one prompt", kind=_BAD_REQUEST),
        fixed_width=VendorError(
            400,
            "Model '{model}' does not support Matryoshka embeddings; dimensions must be unset (received "
            "dimensions={value}).",
            kind=_BAD_REQUEST,
        ),
        bad_width=VendorError(
            400, "Model '{model}' only supports dimensions in range [1, {width}], got {value}.", kind=_BAD_REQUEST
        ),
        too_long=VendorError(
            400,
            "This model's maximum context length is {cap} tokens. However, your prompt contains {count} input tokens, "
            "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
            "(parameter=input_tokens, value={count})",
            kind=_BAD_REQUEST,
            param="input_tokens",
        ),
    ),
)
VLLM_BEFORE_2026 = replace(VLLM, envelope=envelopes.flat_numbered)

SGLANG = Profile(
    "sglang",
    max_inputs=None,
    takes_tokens=True,
    words=_ENCODINGS,
    waits_in="nowhere",
    envelope=envelopes.flat_numbered,
    errors=VendorErrors(
        bad_value=VendorError(400, "encoding_format must be either 'float' or 'base64'", kind=_BAD_REQUEST),
        empty_input=VendorError(400, "Input at index {index} cannot be empty or whitespace only", kind=_BAD_REQUEST),
        fixed_width=VendorError(
            400,
            "Model '{model}' does not support matryoshka representation, changing output dimensions will lead to poor "
            "results.",
            kind=_BAD_REQUEST,
        ),
        bad_width=VendorError(
            400, "Provided dimensions are greater than max embedding dimension: {width}", kind=_BAD_REQUEST
        ),
        too_long=VendorError(
            400,
            "The input ({count} tokens) is longer than the model's context length ({cap} tokens).",
            kind=_BAD_REQUEST,
        ),
    ),
)

# As infinity-emb 0.0.78 answered. An empty text has a vector there, and a server of one model takes any name for it.
_INFINITY_INPUTS = "text.input.list[constrained-str]"
_INFINITY_WIDTH = VendorError(
    400,
    "<class 'infinity_emb.primitives.MatryoshkaDimError'> -> matryoshka_dim={value} is not in a valid range. Select "
    "between 1 and {width}.",
)
INFINITY = Profile(
    "infinity",
    base_path="",
    max_input_tokens=512,
    words=_ENCODINGS,
    embeds_empty=True,
    cuts=True,
    narrowing="slice",
    usage="characters",
    waits_in="nowhere",
    envelope=envelopes.numbered,
    errors=VendorErrors(
        bad_key=VendorError(401, "Unauthorized", envelope=envelopes.detail, headers={"www-authenticate": "Bearer"}),
        unknown_model=VendorError(
            400, "Invalid model: Engine for model name `{model}` not found. Available model names are ['m']"
        ),
        bad_value=VendorError(422, "Input should be …", None, "enum", "text.{field}", envelopes.finding),
        bad_width=_INFINITY_WIDTH,
        fixed_width=_INFINITY_WIDTH,
        too_many_inputs=VendorError(
            422,
            "List should have at most {cap} items after validation, not {count}",
            None,
            "too_long",
            _INFINITY_INPUTS,
            envelopes.finding,
        ),
        empty_input=VendorError(  # of an empty list
            422,
            "List should have at least 1 item after validation, not 0",
            None,
            "too_short",
            _INFINITY_INPUTS,
            envelopes.finding,
        ),
        rate_limited=VendorError(429, "model {model} is currently overloaded"),
    ),
)

_LLAMA_TOO_LONG = VendorError(
    500,
    "input ({count} tokens) is too large to process. increase the physical batch size (current batch size: {cap})",
    kind=SERVER,
)
_LLAMA_ERRORS = VendorErrors(
    bad_key=VendorError(401, "Invalid API Key", kind="authentication_error"),
    empty_input=VendorError(400, "Input content cannot be empty", kind=BAD),
    too_long=_LLAMA_TOO_LONG,
    bad_value=VendorError(400, "The format to return the embeddings in. Can be either float or base64", kind=BAD),
    overloaded=VendorError(503, "Loading model", kind="unavailable_error"),
)
LLAMACPP = Profile(
    "llamacpp",
    max_inputs=None,
    max_input_tokens=512,
    takes_tokens=True,
    words=_ENCODINGS,
    narrowing="ignore",
    waits_in="nowhere",
    envelope=envelopes.numbered,
    errors=_LLAMA_ERRORS,
)
LMSTUDIO = replace(
    LLAMACPP, kind="lmstudio", words={}, encoding_field=None, usage="zero", takes_tokens=False, envelope=envelopes.text
)

SERVERS = (VLLM, SGLANG, INFINITY, LMSTUDIO, LLAMACPP)
