"""The codes and words by which vendors say what is wrong: the lists that the rules of `error_map.py` are made of.

Each pattern is matched at the beginning of a message in the vendor's own envelope (`error_envelope.py`), and ends
before any text that a server could have quoted. Codes are lower-case.

Sources: openai/openai-openapi 2026-08, openai-python 3.52, vLLM, Ollama, llama.cpp, text-embeddings-inference 1.9.3 and
Infinity by their source (2026-08 to 2026-10), the replies of vLLM 0.32, Infinity 0.0.78 and llama.cpp b10434 (2026-11),
cohere-developer-experience 2026-08, voyageai-python 0.5, botocore 1.44, LiteLLM 1.109, recorded bodies of public
issues. M marks words from memory.
"""

from __future__ import annotations

import re

Words = tuple[re.Pattern[str], ...]


def words(*patterns: str) -> Words:
    """Patterns without regard to case."""
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# A model's name, with or without quotes.
_NAME = r"[`'\"]?[\w./:@-]{1,200}[`'\"]?"
# What vendors write before the sentence that matters.
_DASHSCOPE = r"(?:<400> )?(?:InternalError\.Algo\.InvalidParameter: )?(?:Value error, )?"
_COHERE = r"(?:invalid request: )?"
_TEI = r"(?:Input validation error: )?"
_BEDROCK = r"Malformed input request: (?:#[\w/]*: )?"
_VOYAGE = r"(?:Request to model '[^']{1,200}' failed\. )?"

# --- Words ------------------------------------------------------------------------------------------------------------

# Of one input. `limit` and `count` are tokens, in the provider's own figures.
TOO_LONG = words(
    # OpenAI, Azure, vLLM (0.32 counts an input's characters or its tokens)
    r"This model's maximum context length is (?P<limit>\d+) tokens"
    r"(?:[.,] however,? (?:you requested|your prompt contains) (?P<count>\d+) (?:input )?tokens)?",
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
    r"input (?:\((?P<count>\d+) tokens\) )?is larger than the max context size(?: \((?P<limit>\d+) tokens\))?",
    # text-embeddings-inference
    _TEI + r"`?inputs`? must have less than (?P<limit>\d+) tokens(?:\. Given: (?P<count>\d+))?",
    _TEI + r"`?inputs`? must have less than \d+ characters",
    # Bedrock, Cohere, Mistral, DashScope, Jina, Voyage (M)
    r"(?:400 Bad Request: )?Too many input tokens\. Max input tokens: (?P<limit>\d+)"
    r", request input token count: (?P<count>\d+)",
    r"Input is too long\b",
    _BEDROCK + r"expected maxLength: \d+, actual: \d+",
    _COHERE + r"too many tokens: ",
    _DASHSCOPE + r"Range of input length should be \[\d+, ?(?P<limit>\d+)\]",
    r"Input text exceeds (?:the )?(?:model's )?maximum\b",
    _VOYAGE + r"The example at index \d+ in your batch has too many tokens and does not fit into the model's context "
    r"window of (?P<limit>\d+) tokens",
)
CANNOT_EMBED = words(
    rf"(?:The |This )?(?:model|server|endpoint|deployment)?:? ?(?:{_NAME} )?"
    r"(?:does not|doesn't|cannot|can't) (?:support|generate|create|produce|do|handle) (?:the )?(?:text )?embeddings?\b",
    rf"(?:The |This )?(?:model|server)?:? ?(?:{_NAME} )?is not an embeddings? model",
    r"You are not allowed to generate embeddings from this model",  # OpenAI, 403
    r"The embeddings operation does not work with the specified model",  # Azure
    r"(?:models/)?[\w./-]{1,200} is not found for API version \w+, or is not supported for embedContent",  # Google
    r"Embeddings? (?:API )?(?:is|are) not (?:supported|enabled|available)\b",
    r"Pooling type '?none'? is not OAI compatible",  # llama.cpp
)
NO_CREDIT = words(
    r"You exceeded your current quota",  # OpenAI
    r"You are using a Trial key, which is limited to [\d,]+ API calls ?/ ?month",  # Cohere
    r"(?:monthly )?trial (?:key )?(?:monthly |calls? )?limit (?:per month|reached|exceeded)\b",  # Cohere
    r"AUTHZ_INSUFFICIENT_BALANCE\b",  # Jina, 403
    r"(?:Lack of sufficient|Insufficient) (?:account )?(?:balance|credits?)\b",
    r"(?:billing limit reached|you have used up your daily free allocation)",  # Cohere; Cloudflare
)
BAD_KEY = words(
    r"API key (?:not valid|expired|not found)",  # Google, with status 400
    r"(?:Incorrect|Invalid) API[ -]?(?:key|token)",
    r"No API key\b",
    r"User location is not supported",  # Google
)
NO_SUCH_MODEL = words(
    r"(?:/[\w/]{1,40}: )?Invalid model\b",  # LiteLLM names the path
    r"(?:unknown model|model not exist|no such model)\b",  # Snowflake, DashScope, Cloudflare (M)
    rf"(?:The )?model {_NAME} (?:does not exist|not found|is not supported)\b",  # OpenAI, Ollama; Voyage
    r"The provided model identifier is invalid",  # Bedrock
    r"INPUT_MODEL_NOT_FOUND\b",  # Jina
)
CALL_HAS_TOO_MANY_TOKENS = words(
    r"(?:Invalid 'input': )?maximum request size is",  # OpenAI
    r"Requested \d+ tokens, (?:max|maximum request size is) \d+",
    r"Too many tokens (?:in batch|overall)",  # Mistral
    _VOYAGE + r"(?:The max allowed tokens per|TOO_MANY_TOKENS_IN_BATCH\b)",
    r"Unable to submit request because the input token count is",  # Vertex
)
CALL_HAS_TOO_MANY_INPUTS = words(
    _VOYAGE + r"(?:The )?(?:max(?:imum)? )?batch size\b",  # text-embeddings-inference; Voyage (M)
    r"'\$\.input' is invalid\. The array length must be \d+ or less",  # OpenAI
    r"(?:Invalid 'input': )?array too long",
    r"Too many inputs in request",  # Mistral
    r"\* ?\w+\.requests: at most \d+ requests",  # Google
    r"Unable to submit request because it has a batchSize value of",  # Vertex
    r"\d+ instance\(s\) is allowed per prediction",
    _COHERE + r"total number of texts must be at most",
    r"(?:Validation error: '[^']{1,200}' )?Each input list can contain at most \d+ items",  # Jina
    r"input length is larger than the largest allowed size",
    _BEDROCK + r"expected maximum item count: ",  # M
    _DASHSCOPE + r"batch size is invalid",
)
ENCODING_REFUSED = words(
    r"(?:Invalid|Unsupported|Unknown) (?:value for |value |parameter:? |field:? )?[`'\"]?encoding_format\b",
    r"[`'\"]?encoding_format[`'\"]? ",
    r"(?:the )?base64 (?:encoding |format )?(?:is )?not supported",
    r"The format to return the embeddings in",  # llama.cpp
    r"(?:unknown|unsupported) (?:variant|encoding|encoding format) [`'\"]?base64\b",
    _VOYAGE + r"(?:Value '[^']{1,40}' supplied for argument|Argument) 'encoding_format'",  # M
)
PARAMETER_REFUSED = words(
    r"-?\d+ is less than the minimum of \d+ - 'dimensions'",  # OpenAI
    r"Invalid value for 'dimensions'",
    rf"(?:(?:This|The) )?model (?:{_NAME} )?does not support (?:specifying |changing )?(?:the )?(?:output )?"
    r"(?:dimensions|matryoshka)",  # vLLM
    _TEI + r"[`'\"]?dimensions[`'\"]? (?:must|is|are|should|has to|cannot|exceeds?|parameter)\b",
    r"(?:<class '[\w.]{1,80}'> -> )?(?:invalid )?matryoshka[_ ]dim",  # Infinity 0.0.78, which names the class
    # vLLM 0.32 and SGLang 0.5.23; the next two are SGLang's
    rf"Model {_NAME} only supports (?:\[[\d, ]{{1,400}}\] )?(?:matryoshka )?dimensions\b",
    r"Requested dimensions must be greater than 0",
    r"Provided dimensions are greater than max embedding dimension",
    r"'input_type' parameter is required",  # NVIDIA NIM
    r"Unsupported input_type '",  # vLLM at Cohere's path
    _COHERE + r"(?:valid input_type must be provided|[`'\"]?output_dimension[`'\"]? )",
    _BEDROCK + r"extraneous key \[",
    r"Unable to submit request because it has an? outputDimensionality value of",  # Vertex (M)
    _VOYAGE + r"(?:Value '[^']{1,40}' supplied for argument|Argument) '(?!input')",  # M
    r"Unknown parameter: '",
    r"(?:Unrecognized request|Extra inputs are not permitted)",
)
# The vectors of some input hold numbers that are none: the call fails for that input, and will again.
NOT_A_NUMBER = words(
    r"(?:the )?embedding contains (?:NaN|Inf)",  # Ollama, 400
    r"failed to encode response: json: unsupported value: (?:NaN|[+-]?Inf)",  # Ollama before 2026, 500
)

# --- Codes ------------------------------------------------------------------------------------------------------------

NO_CREDIT_CODES = frozenset(
    {
        "insufficient_quota", "insufficient_balance", "authz_insufficient_balance", "billing_hard_limit_reached",
        "billing_not_active", "servicequotaexceededexception", "arrearage",
    }
)  # fmt: skip
BAD_KEY_CODES = frozenset(
    {
        "invalid_api_key", "api_key_invalid", "api_key_expired", "invalid_authentication", "authentication_error",
        "authenticationerror", "unauthenticated", "permission_denied", "permissiondeniederror", "invalidapikey",
        "no_db_connection",  # LiteLLM without a database, of a key that it does not know
        # Bedrock
        "accessdeniedexception", "unrecognizedclientexception", "expiredtokenexception", "invalidsignatureexception",
        "missingauthenticationtoken", "missingauthenticationtokenexception",
    }
)  # fmt: skip
UNKNOWN_MODEL_CODES = frozenset(
    {
        "model_not_found", "deploymentnotfound", "notfounderror", "not_found_error", "not_found", "invalid_model",
        "input_model_not_found", "model_not_found_error", "modelnotfound", "resourcenotfoundexception",
    }
)  # fmt: skip
INPUT_TOO_LONG_CODES = frozenset(
    {
        "context_length_exceeded", "string_above_max_length", "exceed_context_size_error", "input_too_long",
        "contextwindowexceedederror",
    }
)  # fmt: skip
PARAMETER_CODES = frozenset({"unknown_parameter", "unsupported_parameter", "unsupportedparamserror", "extra_forbidden"})
CALL_TOKENS_CODES = frozenset({"max_tokens_per_request", "too_many_tokens_in_batch"})
# Fields of the body that an adapter sets alike for every input: a refusal of one is no input's fault.
PARAMETER_FIELDS = frozenset(
    {
        "dimensions", "output_dimension", "outputdimensionality", "dimensionality", "dimension", "embeddingdimension",
        "input_type", "task", "task_type", "truncate", "truncation",
    }
)  # fmt: skip
ENCODING_FIELDS = frozenset({"encoding_format", "embedding_type", "embedding_types"})
THROTTLED_CODES = frozenset({"throttlingexception", "throttling", "throttling.ratequota", "throttling.allocationquota"})
# The quota that a 429 names: OpenAI's error types, also read of Google's quota ids, and DashScope's codes.
TOKEN_QUOTA_CODES = frozenset({"tokens", "throttling.allocationquota"})
REQUEST_QUOTA_CODES = frozenset({"requests", "throttling.ratequota"})
# And the words that OpenAI, Azure, Voyage, Cohere, Vertex and others use.
TOKEN_QUOTA = re.compile(r"tokens?[ _]?(?:per min|per_|rate limit)|\bTPM\b", re.I)
REQUEST_QUOTA = re.compile(r"(?:requests?|calls?)(?: per min| ?/ ?min|_per_| rate limit)|\bRPM\b", re.I)
