"""The meaning of an input: a provider's field, or the model's own words around the text; never dropped in silence."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from engine.config.config_file import parse
from engine.planning import packing, tokens
from engine.planning.templates import added_bytes, with_room_for_templates
from engine.routing.model_choice import choose_model
from engine.routing.option_warnings import OptionWarning, option_warnings
from engine.upstream.route_batch import batch_for as batch_and_windows
from models.embedding import Account, Alias, Batch, Limits, Options, Route
from models.errors import ConfigError, InvalidInput, UnsupportedParameter

E5 = {"query": "query: {text}", "document": "passage: {text}"}


def route(kind: str = "vllm", **fields: Any) -> Route:
    return Route(Account("box", kind, "http://up"), "m", 8, Limits(), Decimal(0), **fields)


def batch(*inputs: str | list[int], input_type: str | None = None) -> Batch:
    return Batch(list(inputs), range(len(inputs)), 9, 8, Options(input_type=input_type), bytes=30)


def batch_for(asked: Batch, by: Route) -> Batch:
    return batch_and_windows(asked, by)[0]


def configured(models: str, kind: str = "vllm") -> dict[str, Alias]:
    return parse(tomllib.loads(f'[providers.box]\nkind = "{kind}"\nbase_url = "http://up"\n{models}'), {})


def model(upstream: str, extra: str = "", route_extra: str = "") -> str:
    route = f'[[models.m.routes]]\nprovider = "box"\nmodel = "{upstream}"\n{route_extra}'
    return f"[models.m]\ndimensions = 8\n{extra}\n{route}"


@pytest.mark.parametrize(
    ("upstream", "input_type", "sent"),
    [
        ("intfloat/e5-base-v2", "query", "query: red"),
        ("intfloat/multilingual-e5-large", "document", "passage: red"),
        ("BAAI/bge-base-en-v1.5", "query", "Represent this sentence for searching relevant passages: red"),
        ("BAAI/bge-base-en-v1.5", "document", "red"),
        ("nomic-embed-text:latest", "clustering", "clustering: red"),
        ("nomic-ai/nomic-embed-text-v1.5", "document", "search_document: red"),
        ("Qwen/Qwen3-Embedding-0.6B", "document", "red"),
        ("google/embeddinggemma-300m", "query", "task: search result | query: red"),
        ("BAAI/bge-m3", "query", "red"),
    ],
)
def test_a_model_gets_its_own_words(upstream: str, input_type: str, sent: str) -> None:
    alias = configured(model(upstream))["m"]
    assert list(batch_for(batch("red", input_type=input_type), alias.routes[0]).inputs) == [sent]


def test_words_of_the_configuration_win_and_those_of_a_route_over_the_models() -> None:
    extra, own = 'query_template = "Q {text}"\ndocument_template = "D {text}"', 'query_template = "R {text}"'
    (one,) = configured(model("intfloat/e5-base-v2", extra, own))["m"].routes
    assert (one.templates["query"], one.templates["document"]) == ("R {text}", "D {text}")


@pytest.mark.parametrize("template", ["no place", "{text} and {text}", ""])
def test_a_template_has_one_place_for_the_text(template: str) -> None:
    with pytest.raises(ConfigError, match="query_template"):
        configured(model("m", f'query_template = "{template}"'))


def test_a_providers_field_is_used_where_it_has_one() -> None:
    """Nomic's own API has a field; the same model on a server of ours has none."""
    (one,) = configured(model("nomic-embed-text-v1.5"), kind="voyage")["m"].routes
    assert one.templates == {} and one.is_asymmetric
    assert batch_for(batch("red", input_type="query"), one).options.input_type == "query"


def test_the_words_say_it_alone() -> None:
    """A field beside them would say it twice."""
    assert batch_for(batch("red", input_type="query"), route(templates=E5)).options.input_type is None


def test_nothing_changes_without_a_meaning() -> None:
    asked = batch("red", "blue")
    assert batch_for(asked, route(templates=E5)) is asked


def test_the_words_are_counted_and_fit_the_model() -> None:
    routes = (route(templates=E5), route())
    alias = Alias("m", 8, frozenset({8}), 100, "s", routes, Decimal(0))
    options = Options(input_type="document")
    assert added_bytes(routes, options) == len("passage: ") and added_bytes(routes, Options()) == 0
    roomy = with_room_for_templates(alias, options)
    assert (
        roomy.max_input_tokens == 100 - tokens.count("passage:  ")
        and with_room_for_templates(alias, Options()) is alias
    )
    (packed,) = packing.pack(["ab", "c"], [0, 1], Limits(), 8, options, added_bytes=9)
    (plain,) = packing.pack(["ab", "c"], [0, 1], Limits(), 8, options)
    assert packed.bytes == plain.bytes + 18 and packed.tokens > plain.tokens
    assert packing.select(packed, [1]).bytes == 1 + 9


def test_words_count_against_the_limits_of_a_call() -> None:
    limits = Limits(tokens_per_call=40, bytes_per_call=100_000)
    texts = ["word"] * 10
    with_words = list(packing.pack(texts, range(10), limits, 8, Options(input_type="query"), added_bytes=40))
    assert len(with_words) > len(list(packing.pack(texts, range(10), limits, 8, Options())))
    assert [index for part in with_words for index in part.indexes] == list(range(10))


def test_token_arrays_become_texts_before_the_words() -> None:
    ids = [11, 22]
    decoded = batch_for(batch(ids, input_type="query"), route(templates=E5, token_arrays="cl100k")).inputs
    assert decoded == [f"query: {tokens.decode(ids)}"]


@pytest.mark.parametrize(
    ("served_by", "input_type", "expected"),
    [
        (route(), "query", ("unsupported", "input_type")),
        (route(templates=E5), "query", None),
        (route(templates=E5), "clustering", ("unsupported", "input_type")),
        (route(templates=E5, is_asymmetric=True), None, ("compatibility", "input_type")),
        (route("voyage", is_asymmetric=True), "document", None),
        (route("voyage", is_asymmetric=True), "similarity", ("unsupported", "input_type")),
        (route("openai"), None, None),
    ],
)
def test_what_is_left_out_or_lacking_is_said(
    served_by: Route, input_type: str | None, expected: tuple[str, str] | None
) -> None:
    found = [each[:2] for each in option_warnings(Options(input_type=input_type), [served_by])]
    assert found == ([] if expected is None else [expected])


def test_a_user_that_is_not_sent_is_said() -> None:
    (warning,) = option_warnings(Options(user="u"), [route()])
    assert isinstance(warning, OptionWarning) and warning.feature == "user"
    assert list(option_warnings(Options(user="u"), [route("openai")])) == []


def test_strict_is_an_error_or_another_route() -> None:
    plain, wordy = route(), replace(route(templates=E5), account=Account("other", "vllm", "http://up"))
    strict = Options(input_type="query", provider_options={"gateway": {"strict": True}})
    both = Alias("m", 8, frozenset({8}), 100, "s", (plain, wordy), Decimal(0))
    chosen, _ = choose_model({}, both, strict)
    assert [each.provider for each in chosen.routes] == ["other"]
    with pytest.raises(UnsupportedParameter) as refused:
        choose_model({}, replace(both, routes=(plain,)), strict)
    assert refused.value.param == "input_type" and "strict" in refused.value.message
    lax = replace(strict, provider_options={"gateway": {"strict": False}})
    assert choose_model({}, both, lax)[0].routes == (plain, wordy)


def test_words_go_around_no_token_arrays_unless_they_are_decoded() -> None:
    """They were decoded as cl100k's in silence, whatever tokenizer the ids were of."""
    query = Options(input_type="query")
    wordy = Alias("m", 8, frozenset({8}), 100, "s", (route(templates=E5, accepts_tokens=True),), Decimal(0))
    with pytest.raises(InvalidInput, match="text only"):
        packing.validate_input([1, 2], wordy, query)
    packing.validate_input([1, 2], wordy, Options())
    decoding = replace(wordy, routes=(replace(wordy.routes[0], token_arrays="cl100k"),))
    packing.validate_input([11, 22], decoding, query)
