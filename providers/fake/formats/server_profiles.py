"""The rows of the servers that people run themselves and whose format is OpenAI's. The facts are those of
`providers/openai_compatible.py`, whose sources they share.
"""

from __future__ import annotations

from dataclasses import replace

from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import BAD, SERVER, VendorError, VendorErrors

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
        fixed_width=VendorError(
            400,
            'Model "{model}" does not support matryoshka representation, changing output dimensions will lead to poor '
            "results.",
            kind="BadRequestError",
        ),
        bad_width=VendorError(400, "dimensions must be at most {width}", kind="BadRequestError", param="dimensions"),
        too_long=VendorError(
            400,
            "This model's maximum context length is {cap} tokens. However, you requested {count} tokens in the input "
            "for embedding generation. Please reduce the length of the input.",
            kind="BadRequestError",
        ),
    ),
)
VLLM_BEFORE_2026 = replace(VLLM, envelope=envelopes.flat_numbered)

SGLANG = Profile(
    "sglang",
    max_inputs=None,
    takes_tokens=True,
    encoding_field=None,
    waits_in="nowhere",
    envelope=envelopes.flat_numbered,
    errors=VendorErrors(
        too_long=VendorError(
            400, "The input ({count} tokens) is longer than the model's context length ({cap} tokens).", kind=BAD
        )
    ),
)

INFINITY = Profile(
    "infinity",
    base_path="",
    max_input_tokens=512,
    words=_ENCODINGS,
    cuts=True,
    narrowing="slice",
    usage="characters",
    waits_in="nowhere",
    errors=VendorErrors(
        bad_key=VendorError(401, "Unauthorized", envelope=envelopes.detail, headers={"www-authenticate": "Bearer"}),
        unknown_model=VendorError(400, "Invalid model: {model}", None, BAD),
        bad_width=VendorError(400, "matryoshka_dim {value} is over the width of the model", None, BAD),
        fixed_width=VendorError(400, "matryoshka_dim is not supported", None, BAD),
        too_many_inputs=VendorError(
            422, "List should have at most {cap} items", None, "too_long", "input", envelopes.finding
        ),
        empty_input=VendorError(
            422, "String should have at least 1 character", None, "string_too_short", "input.{index}", envelopes.finding
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
