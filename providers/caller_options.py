"""Checks `providerOptions.<provider>`: the fields that a caller may add to the body of a provider call.

Options become fields of the upstream's body. A name that carries an address, a credential or a header would send the
call elsewhere where the upstream is a gateway (CVE-2024-6587's class); a name that the adapter sets itself would change
what the reply means. Both are refused by name, in any spelling and at any depth.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from models.embedding import Alias, Options, Route
from models.errors import InvalidInput, UnsupportedParameter
from providers.traits import Traits

# Compared by letters and digits alone, without case: `apiBase` is `api_base`.
_ADDRESSES_AND_CREDENTIALS = frozenset(
    {
        "apibase", "baseurl", "apiurl", "url", "uri", "endpoint", "host", "hostname", "proxy", "proxies", "httpproxy",
        "httpsproxy", "apikey", "apikeys", "key", "token", "accesstoken", "authtoken", "bearertoken", "authorization",
        "auth", "credential", "credentials", "secret", "password", "headers", "extraheaders", "defaultheaders",
        "requestheaders", "cookies", "extraquery", "query", "queryparams", "extrabody", "organization", "project",
        "apiversion", "apitype", "deploymentid", "azureendpoint", "azureadtoken", "awsaccesskeyid",
        "awssecretaccesskey", "awssessiontoken", "awsregionname", "awsrolename", "awsprofilename",
        "awsbedrockruntimeendpoint", "vertexcredentials", "vertexproject", "vertexlocation", "customllmprovider",
        "litellmparams", "litellmcredentialname", "modellist", "fallbacks", "contextwindowfallbacks", "mockresponse",
        "client", "callbacks", "successcallback", "failurecallback", "callbackurl", "webhook", "webhookurl",
        "userconfig", "sslverify", "tls", "clientcert", "httpclient", "router", "numretries", "maxretries",
        "regionname", "inputcostpertoken", "outputcostpertoken",
    }
)  # fmt: skip
# Also as a part of a longer name: `aws_sts_endpoint`, `x-api-key`, `langfuse_secret`.
_PARTS = (
    "apibase", "baseurl", "apikey", "accesskey", "endpoint", "credential", "secret", "password", "headers", "proxy",
    "webhook", "callback", "identitytoken",
)  # fmt: skip
# Names with these prefixes tell a gateway which provider and credential to use.
_BEGINNINGS = ("litellm", "aws", "azure", "vertex", "langfuse", "langsmith")
# Fields that an adapter sets, and others that would change the inputs or the form of the reply.
_ADAPTERS_OWN = frozenset(
    {
        "model", "models", "modelid", "input", "inputs", "texts", "content", "contents", "instances", "requests",
        "messages", "images", "encodingformat", "embeddingtype", "embeddingtypes", "outputdtype", "embeddtype",
        "endianness", "responseformat", "returnmultivector", "stream", "inputtext", "singleembeddingparams",
        "outputtype",
    }
)  # fmt: skip
_REFUSED = _ADDRESSES_AND_CREDENTIALS | _ADAPTERS_OWN
# They change how a server or a gateway treats other callers, or what the operator has agreed with it: only by
# `allowed_options` of the account.
_OPERATORS = frozenset(
    {
        "byok", "datacollection", "zdr", "enforcedistillabletext", "preset", "plugins", "servedmodelname", "priority",
        "servicetier", "kvtransferparams", "remotehost", "remoteport", "lorarequest", "lorapath", "chattemplate",
        "keepalive", "numgpu", "maingpu", "usemmap", "usemlock", "cachesalt",
    }
)  # fmt: skip
# The spellings of the width that providers use; the caller's is taken as `dimensions`.
_WIDTHS = frozenset({"dimensions", "dimension", "dimensionality", "outputdimensionality", "outputdimension"})
# Jina's: all inputs of a call become one context.
_SHARED_CONTEXT = frozenset({"latechunking"})
GATEWAY = "gateway"
MAX_DEPTH = 16


def checked_options(options: Options, alias: Alias, traits_of: Callable[[Route], Traits]) -> Options:
    """The options, with the width and the meaning that they request as `dimensions` and `input_type`.

    Both are taken out of the providers' sections. Raises InvalidInput or UnsupportedParameter that names the field: for
    a name that may not be set, a width or a meaning that contradicts the request's own, or one that there is not.
    """
    if not options.provider_options:
        return options
    names = {name: route for route in reversed(alias.routes) for name in (*_names_of(route), _owner(alias))}
    dimensions, input_type = options.dimensions, options.input_type
    checked: dict[str, Any] = {}
    for provider, section in options.provider_options.items():
        checked[provider] = section
        if provider == GATEWAY or not isinstance(section, dict):
            continue
        where = f"providerOptions.{provider[:100]}"
        allowed = names[provider].account.allowed_options if provider in names else None
        for path in _refused_paths(section):
            raise _may_not_be_set(f"{where}.{path}")
        for path in _refused_paths(section, refused=_is_operators):
            if allowed is None or path.partition(".")[0] not in allowed:
                raise _may_not_be_set(f"{where}.{path}")
        for name in section:
            if _plain(name) in _SHARED_CONTEXT and section[name]:
                raise UnsupportedParameter(
                    f"'{where}.{name[:100]}' is not supported: each vector would depend on the other inputs of its "
                    "call, and calls are packed from many requests. Leave it out.",
                    param=f"{where}.{name[:100]}",
                    code="unsupported_parameter",
                )
        if provider not in names:  # of a provider that does not serve this model: another model's may be in it
            continue
        traits = traits_of(names[provider])
        for name in section:
            if allowed is not None and name not in allowed and _plain(name) not in _WIDTHS:
                raise _may_not_be_set(f"{where}.{name[:100]}")
        for name in [name for name in section if _plain(name) in _WIDTHS]:
            dimensions = _agreed_width(section[name], dimensions, alias, f"{where}.{name}")
        for name in [name for name in section if _is_meaning(name, traits)]:
            input_type = _agreed_meaning(section[name], input_type, traits, f"{where}.{name[:100]}")
        for name in section:
            if any(_plain(name) == _plain(field) for field in traits.body):
                raise _may_not_be_set(f"{where}.{name[:100]}")
            if (of_request := _owned(name, traits)) is not None:
                raise UnsupportedParameter(
                    f"'{where}.{name[:100]}' may not be set: send '{of_request}' beside 'input', for any provider.",
                    param=f"{where}.{name[:100]}",
                    code="unsupported_parameter",
                )
        checked[provider] = {
            name: value
            for name, value in section.items()
            if _plain(name) not in _WIDTHS and not _is_meaning(name, traits)
        }
    return replace(options, dimensions=dimensions, input_type=input_type, provider_options=checked)


def sendable_options(provider_options: Mapping[str, Any], route: Route) -> dict[str, Any]:
    """The fields that go into the body of a call on this route.

    They were checked when the request came. Refused names are removed here again, for jobs that were accepted before a
    name was refused.
    """
    section = next((value for name in _names_of(route) if (value := provider_options.get(name))), None)
    if not isinstance(section, dict):
        return {}
    return {
        name: value
        for name, value in section.items()
        if _plain(name) not in _WIDTHS and next(_refused_paths({name: value}), None) is None
    }


def _names_of(route: Route) -> tuple[str, ...]:
    return route.account.section, route.account.kind


def _owner(alias: Alias) -> str:
    """The owner in the alias's name: "google" of "google/gemini-embedding-001"."""
    return alias.name.partition("/")[0]


def _agreed_width(value: object, dimensions: int | None, alias: Alias, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(
            f"Invalid '{where}': expected a whole number of 1 or more.", param=where, code="invalid_value"
        )
    if dimensions is not None and dimensions != value:
        raise InvalidInput(
            f"Invalid '{where}': {value} contradicts the {dimensions} that the request asks for elsewhere. "
            "Set 'dimensions' alone.",
            param=where,
            code="invalid_value",
        )
    if value != alias.width and value not in alias.allowed_dimensions:
        raise UnsupportedParameter(
            f"Invalid '{where}': {value} is not a width of the model {alias.name}. "
            f"GET /v1/models/{alias.name} lists them.",
            param=where,
            code="invalid_value",
        )
    return value


def is_adapters_own(name: str) -> bool:
    """True for a field that adapters set in each call, in any spelling."""
    return _plain(name) in _ADAPTERS_OWN


def _is_meaning(name: str, traits: Traits) -> bool:
    return traits.input_type is not None and _plain(name) == _plain(traits.input_type.name)


def _agreed_meaning(value: object, input_type: str | None, traits: Traits, where: str) -> str:
    """Our word for the provider's."""
    pairs = [] if traits.input_type is None else [*traits.input_type.values.items()]
    words: dict[object, str] = {word: ours for ours, word in reversed(pairs)}  # of two with one word, the first
    meaning = words.get(value) if isinstance(value, str) else None
    if meaning is None:
        raise InvalidInput(
            f"Invalid '{where}': expected one of {', '.join(map(str, words))}.", param=where, code="invalid_value"
        )
    if input_type is not None and meaning != input_type:
        raise InvalidInput(
            f"Invalid '{where}': {value} contradicts the input_type {input_type[:100]} of the request. "
            "Set 'input_type' alone.",
            param=where,
            code="invalid_value",
        )
    return meaning


def _owned(name: str, traits: Traits) -> str | None:
    """The request's own field for what the provider's field says; None: the adapter does not set that one."""
    pairs = (
        (traits.truncate.name if traits.truncate else None, "truncate"),
        (traits.user_field, "user"),
        (traits.base64[0] if traits.base64 else None, "encoding_format"),
        (traits.floats[0] if traits.floats else None, "encoding_format"),
    )
    return next((ours for field, ours in pairs if field is not None and _plain(field) == _plain(name)), None)


def _may_not_be_set(where: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"'{where}' may not be set: the gateway decides where a call goes, with which credential and in which form. "
        "Leave it out.",
        param=where,
        code="unsupported_parameter",
    )


def _refused_paths(
    section: Mapping[str, Any], depth: int = 0, *, refused: Callable[[str], bool] | None = None
) -> Iterator[str]:
    """Paths of refused names, the first of each branch."""
    for name, value in section.items():
        if (refused or _is_refused)(_plain(name)) or depth > MAX_DEPTH:
            yield name[:100]
            continue
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, dict):
                for path in _refused_paths(each, depth + 1, refused=refused):
                    yield f"{name[:100]}.{path}"
            elif isinstance(each, list):
                for path in _refused_paths({name: each}, depth + 1, refused=refused):
                    yield path


def _is_operators(plain: str) -> bool:
    return plain in _OPERATORS


def _is_refused(plain: str) -> bool:
    return plain in _REFUSED or plain.startswith(_BEGINNINGS) or any(part in plain for part in _PARTS)


def _plain(name: str) -> str:
    """Lower-case letters and digits of the name, in their plain forms (NFKC), as servers read them."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name))).lower()
