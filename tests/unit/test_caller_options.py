"""What callers may send to a provider, what is refused by name, and the width that some ask for there."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from engine.routing.option_warnings import traits_of
from models.embedding import Account, Alias, Batch, Limits, Options, Route
from models.errors import EmbedmillError, InvalidInput, UnsupportedParameter
from providers.caller_options import checked_options
from providers.openai import OpenAIProvider

ACCOUNT = Account("main", "openai", "https://acme.test/v1", "sk-1")
COHERE = Account("main", "cohere", "https://acme.test", "k")
ROUTE = Route(ACCOUNT, "m", 16, Limits(), Decimal(1))


def alias(account: Account = ACCOUNT) -> Alias:
    return Alias("acme/m", 16, range(4, 17), 100, "s", (replace(ROUTE, account=account),), Decimal(1))


def checked(sections: dict[str, Any], dimensions: int | None = None, **fields: Any) -> Options:
    return checked_options(Options(dimensions=dimensions, provider_options=sections), alias(**fields), traits_of)


def refused(sections: dict[str, Any], dimensions: int | None = None, **fields: Any) -> EmbedmillError:
    with pytest.raises((InvalidInput, UnsupportedParameter)) as raised:
        checked(sections, dimensions, **fields)
    return raised.value


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"api_base": "http://evil"}, "api_base"),
        ({"apiBase": "http://evil"}, "apiBase"),
        ({"base_url": "http://evil"}, "base_url"),
        ({"baseURL": "http://evil"}, "baseURL"),
        ({"Base-Url": "http://evil"}, "Base-Url"),
        ({"api_key": "sk-2"}, "api_key"),
        ({"headers": {"authorization": "x"}}, "headers"),
        ({"extra_headers": {}}, "extra_headers"),
        ({"extra_body": {"seed": 1}}, "extra_body"),
        ({"extra_query": {}}, "extra_query"),
        ({"model": "other"}, "model"),
        ({"input": ["x"]}, "input"),
        ({"encoding_format": "float"}, "encoding_format"),
        ({"encodingFormat": "float"}, "encodingFormat"),
        ({"output_dtype": "int8"}, "output_dtype"),
        ({"endianness": "big"}, "endianness"),
        ({"messages": []}, "messages"),
        ({"litellm_params": {}}, "litellm_params"),
        ({"aws_secret_access_key": "x"}, "aws_secret_access_key"),
        ({"seed": 1, "options": {"deep": [{"api_base": "http://evil"}]}}, "options.deep.api_base"),
        ({"options": [[{"apiKey": "x"}]]}, "options.apiKey"),
        ({"api_base ": "http://evil"}, "api_base "),
        ({"api\u200b_base": "http://evil"}, "api\u200b_base"),
        ({"\uff41pi/base": "http://evil"}, "\uff41pi/base"),  # a full-width "a"
        ({"x-api-key": "sk-2"}, "x-api-key"),
        ({"aws_sts_endpoint": "http://evil"}, "aws_sts_endpoint"),
        ({"langfuse_host": "http://evil"}, "langfuse_host"),
        ({"input_cost_per_token": 0}, "input_cost_per_token"),
        ({"num_retries": 50}, "num_retries"),
    ],
)
@pytest.mark.parametrize("provider", ["main", "openai", "elsewhere"])
def test_addresses_credentials_and_what_the_adapter_sets_are_refused(
    options: dict[str, Any], path: str, provider: str
) -> None:
    error = refused({provider: options})
    assert error.param == f"providerOptions.{provider}.{path}" and "evil" not in error.message


def test_what_is_left_goes_into_the_body_as_it_is() -> None:
    options = checked({"main": {"seed": 3, "options": {"num_ctx": 2048}, "truncate": "END"}, "gateway": {"models": []}})
    body = orjson.loads(OpenAIProvider().request(Batch(["a"], [0], 1, 16, options), ROUTE).body)
    sent = {"seed": 3, "options": {"num_ctx": 2048}, "truncate": "END"}
    assert body == {"model": "m", "input": ["a"], "encoding_format": "base64", **sent}


@pytest.mark.parametrize("width", ["dimensions", "outputDimensionality", "outputDimension", "output_dimension"])
@pytest.mark.parametrize("provider", ["main", "openai", "acme"])
def test_a_width_under_a_provider_is_the_width(width: str, provider: str) -> None:
    options = checked({provider: {width: 8, "seed": 1}})
    assert options.dimensions == 8 and options.provider_options == {provider: {"seed": 1}}
    assert checked({provider: {width: 8}}, 8).dimensions == 8


@pytest.mark.parametrize(
    ("value", "root", "kind"),
    [
        (8, 4, InvalidInput),  # contradicts the root
        (8, 16, InvalidInput),
        (3, None, UnsupportedParameter),  # not a width of the model
        (17, None, UnsupportedParameter),
        (0, None, InvalidInput),
        (-1, None, InvalidInput),
        ("8", None, InvalidInput),
        (8.0, None, InvalidInput),
        (True, None, InvalidInput),
        (None, None, InvalidInput),
    ],
)
def test_a_width_that_cannot_be_names_its_field(value: object, root: int | None, kind: type[EmbedmillError]) -> None:
    error = refused({"openai": {"outputDimension": value}}, root)
    assert type(error) is kind and error.param == "providerOptions.openai.outputDimension"


def test_two_widths_that_differ_contradict_each_other() -> None:
    assert refused({"main": {"dimensions": 8, "output_dimension": 4}}).param == "providerOptions.main.output_dimension"
    assert (
        refused({"main": {"dimensions": 8}, "openai": {"dimensions": 4}}).param == "providerOptions.openai.dimensions"
    )


def test_the_options_of_providers_that_do_not_serve_the_model_say_nothing_of_it() -> None:
    options = checked({"google": {"outputDimensionality": 3}, "main": {"dimensions": 8}})
    assert options.dimensions == 8 and options.provider_options["google"] == {"outputDimensionality": 3}


def test_an_accounts_list_of_allowed_options() -> None:
    strict = replace(ACCOUNT, allowed_options=frozenset({"seed"}))
    assert checked({"main": {"seed": 1, "dimensions": 8}}, account=strict).dimensions == 8
    assert (
        refused({"openai": {"seed": 1, "truncate": "END"}}, account=strict).param == "providerOptions.openai.truncate"
    )
    nothing = replace(ACCOUNT, allowed_options=frozenset())
    assert refused({"main": {"seed": 1}}, account=nothing).param == "providerOptions.main.seed"


def test_options_that_were_taken_before_they_were_refused_are_not_sent() -> None:
    options = Options(provider_options={"main": {"api_base": "http://evil", "dimensions": 3, "seed": 1}})
    body = orjson.loads(OpenAIProvider().request(Batch(["a"], [0], 1, 16, options), ROUTE).body)
    assert body == {"model": "m", "input": ["a"], "encoding_format": "base64", "seed": 1}


@pytest.mark.parametrize(
    ("name", "word", "meaning"),
    [
        ("input_type", "search_query", "query"),
        ("inputType", "search_document", "document"),
        ("input_type", "clustering", "clustering"),
    ],
)
def test_a_providers_word_for_the_meaning_is_ours(name: str, word: str, meaning: str) -> None:
    """As SDKs of gateways send it: the space of the vectors must say what they are."""
    found = checked({"cohere": {name: word, "max_tokens": 3}}, account=COHERE)
    assert found.input_type == meaning and found.provider_options == {"cohere": {"max_tokens": 3}}


@pytest.mark.parametrize(
    ("section", "param", "said"),
    [
        ({"input_type": "image"}, "providerOptions.cohere.input_type", "search_query"),
        ({"input_type": 3}, "providerOptions.cohere.input_type", "expected one of"),
        ({"truncate": "START"}, "providerOptions.cohere.truncate", "send 'truncate'"),
    ],
)
def test_what_the_adapter_sets_is_asked_for_in_the_request(section: dict[str, Any], param: str, said: str) -> None:
    error = refused({"cohere": section}, account=COHERE)
    assert error.param == param and said in error.message


def test_two_meanings_contradict_each_other() -> None:
    options = Options(input_type="document", provider_options={"cohere": {"input_type": "search_query"}})
    with pytest.raises(InvalidInput, match="contradicts"):
        checked_options(options, alias(COHERE), traits_of)
    agreed = Options(input_type="query", provider_options={"cohere": {"input_type": "search_query"}})
    assert checked_options(agreed, alias(COHERE), traits_of).input_type == "query"


@pytest.mark.parametrize("name", ["late_chunking", "lateChunking"])
def test_inputs_that_share_a_context_are_refused_with_the_reason(name: str) -> None:
    error = refused({"jina": {name: True}}, account=replace(ACCOUNT, kind="jina"))
    assert error.param == f"providerOptions.jina.{name}" and "packed from many requests" in error.message
    assert checked({"jina": {name: False}}, account=replace(ACCOUNT, kind="jina")).provider_options["jina"] == {
        name: False
    }


def test_what_each_call_sets_may_not_be_set() -> None:
    """It was overridden in silence."""
    error = refused({"jina": {"normalized": False}}, account=replace(ACCOUNT, kind="jina"))
    assert error.param == "providerOptions.jina.normalized"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"priority": -100}, "priority"),
        ({"keep_alive": -1}, "keep_alive"),
        ({"options": {"num_gpu": 0}}, "options.num_gpu"),
        ({"kv_transfer_params": {"remote_host": "evil"}}, "kv_transfer_params"),
        ({"provider": {"only": ["a"], "data_collection": "allow"}}, "provider.data_collection"),
    ],
)
def test_what_would_change_other_callers_calls_is_the_operators(options: dict[str, Any], path: str) -> None:
    assert refused({"main": options}).param == f"providerOptions.main.{path}"
    name = next(iter(options))
    allowing = replace(ACCOUNT, allowed_options=frozenset({name, "options", "provider"}))
    assert checked({"main": options}, account=allowing).provider_options == {"main": options}
