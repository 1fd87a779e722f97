"""Without a configuration file, an account appears for each well-known key in the environment."""

from __future__ import annotations

import pytest

from engine.config.config_file import bare_names, load, parse
from models.errors import ConfigError


def test_without_keys_there_is_the_local_model_alone() -> None:
    assert set(load("", {})) == {"local/wordllama-256"}


@pytest.mark.parametrize(
    ("environ", "model", "base_url"),
    [
        ({"OPENAI_API_KEY": "k"}, "openai/text-embedding-3-small", "https://api.openai.com/v1"),
        ({"COHERE_API_KEY": "k"}, "cohere/embed-v4.0", "https://api.cohere.com"),
        ({"CO_API_KEY": "k"}, "cohere/embed-v4.0", "https://api.cohere.com"),
        ({"VOYAGE_API_KEY": "pa-k"}, "voyage/voyage-4", "https://api.voyageai.com/v1"),
        ({"VOYAGE_API_KEY": "al-k"}, "voyage/voyage-4", "https://ai.mongodb.com/v1"),
        ({"MISTRAL_API_KEY": "k"}, "mistral/mistral-embed", "https://api.mistral.ai/v1"),
        ({"JINA_API_KEY": "k"}, "jina/jina-embeddings-v3", "https://api.jina.ai/v1"),
        ({"TOGETHER_API_KEY": "k"}, "BAAI/bge-base-en-v1.5", "https://api.together.ai/v1"),
        (
            {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://acme.openai.azure.com/"},
            "openai/text-embedding-3-small",
            "https://acme.openai.azure.com/openai",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "eu-west-1"},
            "amazon/titan-embed-text-v2",
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
        ),
        (
            {"AWS_BEARER_TOKEN_BEDROCK": "k", "AWS_DEFAULT_REGION": "us-east-1"},
            "amazon/titan-embed-text-v2",
            "https://bedrock-runtime.us-east-1.amazonaws.com",
        ),
    ],
)
def test_a_well_known_key_is_an_account(environ: dict[str, str], model: str, base_url: str) -> None:
    aliases = load("", environ)
    assert aliases[model].routes[0].account.base_url == base_url and "local/wordllama-256" in aliases


@pytest.mark.parametrize(
    "environ",
    [
        {"AZURE_OPENAI_API_KEY": "k"},
        {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"},
        {"AWS_REGION": "eu-west-1"},
        {"OPENAI_API_KEY": " "},
    ],
)
def test_half_of_an_account_is_none(environ: dict[str, str]) -> None:
    assert set(load("", environ)) == {"local/wordllama-256"}


def test_two_accounts_that_sell_one_model_stand_in_for_one_another() -> None:
    environ = {"OPENAI_API_KEY": "k", "OPENROUTER_API_KEY": "o"}
    routes = load("", environ)["openai/text-embedding-3-small"].routes
    assert [(each.provider, each.upstream_model, each.priority) for each in routes] == [
        ("openai", "text-embedding-3-small", 0),
        ("openrouter", "openai/text-embedding-3-small", 2),
    ]


def test_hosts_of_open_weights_do_not_stand_in_for_one_another_unasked() -> None:
    """They may be quantized or cut differently: whoever pairs them says so."""
    routes = load("", {"TOGETHER_API_KEY": "k", "DEEPINFRA_API_KEY": "d"})["BAAI/bge-base-en-v1.5"].routes
    assert [each.provider for each in routes] == ["together"]


def test_models_of_one_space_are_told_apart_from_others() -> None:
    aliases = load("", {"VOYAGE_API_KEY": "k"})
    assert aliases["voyage/voyage-4"].space == aliases["voyage/voyage-4-lite"].space == "voyage/voyage-4"
    assert aliases["voyage/voyage-3.5"].space == "voyage/voyage-3.5"


def test_a_bare_name_is_that_of_the_one_model_that_has_it() -> None:
    aliases = load("", {"OPENAI_API_KEY": "k", "FIREWORKS_API_KEY": "f", "NOMIC_API_KEY": "n"})
    names = bare_names(aliases)
    assert names["text-embedding-3-small"] == "openai/text-embedding-3-small"
    assert names["gte-base"] == "thenlper/gte-base"
    assert "openai/text-embedding-3-small" not in names


def test_a_kinds_setting_is_asked_for_with_its_meaning() -> None:
    with pytest.raises(ConfigError, match=r"providers.a.endpoint is missing.*https://NAME"):
        parse({"providers": {"a": {"kind": "azure"}}}, {})
    with pytest.raises(ConfigError, match=r"unknown key providers.a.endpiont; did you mean 'endpoint'"):
        parse({"providers": {"a": {"kind": "azure", "endpiont": "x"}}}, {})
    with pytest.raises(ConfigError, match="never the key itself"):
        parse({"providers": {"a": {"kind": "bedrock", "region": "r", "access_key_id": "AKIA"}}}, {})


def test_headers_names_and_fields_of_an_account() -> None:
    section = {
        "kind": "vllm", "base_url": "http://up", "headers": {"X-Team": "env:TEAM"},
        "strip_headers": ["Accept-Encoding"], "body": {"priority": 3}, "renames": {"dimensions": "dim"},
    }  # fmt: skip
    document = {"providers": {"box": section}, "models": {"m": {"dimensions": 8, "routes": [{"provider": "box"}]}}}
    account = parse(document, {"TEAM": "red"})["m"].routes[0].account
    assert account.headers == {"x-team": "red"} and account.strip_headers == {"accept-encoding"}
    assert account.body == {"priority": 3} and account.renames == {"dimensions": "dim"}
    for name in ("Host", "content-length", "bad name"):
        with pytest.raises(ConfigError, match="no header that may be set"):
            parse({**document, "providers": {"box": section | {"headers": {name: "x"}}}}, {})


def _keys(*keys: str, **fields: object) -> dict[str, object]:
    section = {"kind": "openai", "base_url": "http://up", "api_keys": list(keys), **fields}
    routes = [{"provider": "box", "priority": 1}, {"provider": "other"}]
    return {
        "providers": {"box": section, "other": {"kind": "vllm"}},
        "models": {"m": {"dimensions": 8, "routes": routes}},
    }


@pytest.mark.parametrize(("use", "priorities"), [("in-order", [2, 3, 0]), ("spread", [1, 1, 0])])
def test_several_keys_are_accounts_of_one_section(use: str, priorities: list[int]) -> None:
    routes = parse(_keys("env:A", "env:B", key_use=use), {"A": "first", "B": "second"})["m"].routes
    assert [(each.provider, each.account.section, each.account.api_key) for each in routes] == [
        ("box", "box", "first"), ("box#2", "box", "second"), ("other", "other", None),
    ]  # fmt: skip
    assert [each.priority for each in routes] == priorities


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (_keys("env:A", "env:A"), "each once"),
        (_keys("env:A", "sk-secret"), "never the key itself"),
        (_keys("env:A", api_key="env:B"), "api_key and api_keys"),
        (_keys("env:A", key_use="random"), "key_use"),
    ],
)
def test_keys_that_cannot_be_used_are_named(document: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(document, {"A": "a", "B": "b"})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"kind": "anthropic"}, "no embeddings API; it recommends Voyage"),
        ({"kind": "openai", "base_url": "http://user:secret@h/v1"}, "base_url must have no user"),
        ({"kind": "openai", "base_url": "https://h/v1?api_key=x"}, "base_url must have no user"),
        ({"kind": "openai", "headers": {"Authorization": "Bearer sk-x"}}, "never the key itself"),
        ({"kind": "openai", "body": {"model": "x"}}, "body names 'model'"),
        ({"kind": "openai", "renames": {"user": "input"}}, "renames names 'input'"),
        ({"kind": "openai", "ca_file": "/etc/hostname"}, "ca_file points at /etc/hostname"),
        ({"kind": "openai", "api_keys": ["env:A", "sk-leak"]}, r"api_keys\[1\]"),
        ({"kind": "azure", "endpoint": "acme"}, "endpoint must start with"),
        ({"kind": "bedrock", "region": "eu/../x#"}, "region may have"),
    ],
)
def test_an_account_that_could_not_work_is_refused_with_the_key(section: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"providers": {"a": section}}, {"A": "k"})


def test_the_name_of_the_gateways_options_is_no_account() -> None:
    with pytest.raises(ConfigError, match="gateway"):
        parse({"providers": {"gateway": {"kind": "local"}}}, {})
