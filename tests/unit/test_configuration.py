"""embedmill.toml: each mistake is named by its key, secrets are references, and nothing prints them."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engine.config.catalog import load_catalog
from engine.config.config_file import load, parse
from models.embedding import Alias
from models.errors import ConfigError
from providers import PROVIDERS

ENVIRON = {"KEY": " sk-very-secret \n", "EMPTY": ""}
GOOD = """
[providers.main]
kind = "openai"
base_url = "https://api.acme.test/v1/"
api_key = "env:KEY"
[models.m]
dimensions = 16
[[models.m.routes]]
provider = "main"
"""


def read(text: str) -> dict[str, Alias]:
    return parse(tomllib.loads(text), ENVIRON)


def with_account(line: str, kind: str = "openai") -> str:
    return f'[providers.main]\nkind = "{kind}"\n{line}\n[models.m]\ndimensions = 16\nroutes = [{{provider = "main"}}]\n'


def with_model(line: str, route: str = 'provider = "main"') -> str:
    return f'[providers.main]\nkind = "openai"\n[models.m]\n{line}\n[[models.m.routes]]\n{route}\n'


def local(model: str = "dimensions = 256", *, route: str = "model = 'wordllama-256'", account: str = "") -> str:
    start = f"[providers.main]\nkind = 'local'\n{account}\n[models.m]\n{model}\n"
    return f"{start}[[models.m.routes]]\nprovider = 'main'\n{route}\n"


def test_the_model_in_this_process_has_any_name_and_is_narrowed_by_a_cut() -> None:
    (route,) = read(local("dimensions = 256\nallowed_dimensions = [64]"))["m"].routes
    assert (route.upstream_model, route.width, route.narrowing) == ("wordllama-256", 256, "cut")


def test_what_a_short_file_means() -> None:
    alias = read(GOOD)["m"]
    (route,) = alias.routes
    assert (alias.width, alias.max_input_tokens, alias.space) == (16, 8192, "m")
    assert alias.allowed_dimensions == frozenset({16})
    assert (route.upstream_model, route.width, route.provider, route.narrowing) == ("m", 16, "main", "native")
    assert (route.account.base_url, route.account.api_key) == ("https://api.acme.test/v1", "sk-very-secret")
    assert (route.limits, route.accepts_tokens) == (PROVIDERS["openai"].traits.limits, True)
    assert alias.usd_per_million_tokens == Decimal(0)


@pytest.mark.parametrize(
    ("text", "param", "said"),
    [
        ("provider = 1", "provider", "did you mean 'providers'"),
        ("", "providers", "no [providers.<name>]"),
        ("providers = 1", "providers", "must be a table"),
        ("[providers]\nmain = 1", "providers.main", "must be a table"),
        ("[providers.main]\nkind = 'opnai'", "providers.main.kind", "did you mean 'openai'"),
        ("[providers.main]\nbase_url = 'http://x'", "providers.main", "kind"),
        (with_account("bse_url = 'x'"), "providers.main.bse_url", "did you mean 'base_url'"),
        (with_account("max_concurrency = 'x'"), "providers.main", "max_concurrency"),
        (with_account("max_concurrency = 0"), "providers.main", "more than 0"),
        (with_account("timeout_s = 0"), "providers.main", "more than 0"),
        (with_account("base_url = 'ftp://x'"), "providers.main.base_url", "http"),
        (with_account("base_url = 'inproc://local'"), "providers.main.base_url", "http"),
        (with_account("latency_ms = 5"), "providers.main.script", "fake"),
        (with_account("api_key = 'sk-very-secret'"), "providers.main.api_key", "never the key itself"),
        (with_account("api_key = 'env:'"), "providers.main.api_key", "env:NAME"),
        (with_account("api_key = 'env:MISSING'"), "providers.main.api_key", "MISSING"),
        (with_account("api_key = 'env:EMPTY'"), "providers.main.api_key", "EMPTY"),
        (with_account("api_key = 'file:/no/such/file'"), "providers.main.api_key", "/no/such/file"),
        (with_model(""), "models.m.dimensions", "missing"),
        (with_model("dimensions = 0"), "models.m.dimensions", "missing"),
        (with_model("dimensions = 'x'"), "models.m", "dimensions"),
        (with_model("dimension = 16"), "models.m.dimension", "did you mean 'dimensions'"),
        (with_model("dimensions = 16\nallowed_dimensions = '1-16'"), "models.m.allowed_dimensions", "LOW..HIGH"),
        (with_model("dimensions = 16\nallowed_dimensions = '1..17'"), "models.m.allowed_dimensions", "1..16"),
        (with_model("dimensions = 16\nallowed_dimensions = '9..3'"), "models.m.allowed_dimensions", "1..16"),
        (with_model("dimensions = 16\nallowed_dimensions = [0]"), "models.m.allowed_dimensions", "1..16"),
        (
            with_model("dimensions = 16\ninput_usd_per_million_tokens = 'cheap'"),
            "models.m.input_usd_per_million_tokens",
            "not a number",
        ),
        (
            with_model("dimensions = 16\ninput_usd_per_million_tokens = -1"),
            "models.m.input_usd_per_million_tokens",
            "0 or more",
        ),
        (with_model("dimensions = 16", 'provider = "mian"'), "models.m.routes[0].provider", "did you mean 'main'"),
        (with_model("dimensions = 16", 'provider = "main"\nwieght = 2'), "models.m.routes[0].wieght", "'weight'"),
        (with_model("dimensions = 16", 'provider = "main"\nnarrowing = "x"'), "models.m.routes[0].narrowing", "cut"),
        (with_model("dimensions = 16", 'provider = "main"\nmax_tokens_per_call = -1'), "models.m.routes[0]", "limits"),
        ("[providers.main]\nkind = 'openai'\n[models.m]\ndimensions = 16\nroutes = []", "models.m.routes", "no [["),
        ("[providers.main]\nkind = 'openai'\n[models.m]\ndimensions = 16", "models.m", "routes"),
        ("[providers.main]\nkind = 'openai'\nbase_url = 'http://own'", "models", "no [models.<name>]"),
        (
            local(route="model = 'minilm'"),
            "models.m.routes[0].model",
            "'minilm' is no model that kind = \"local\" has: word",
        ),
        (local(route=""), "models.m.routes[0].model", "left out, and 'm' is no model"),
        (local(route="model = 'local/wordllama-256'"), "models.m.routes[0].model", "wordllama-256. Set"),
        (local("dimensions = 64"), "models.m.dimensions", "must be 256"),
        (local(route="model = 'wordllama-256'\nnarrowing = 'native'"), "models.m.routes[0].narrowing", "cut"),
        (local(account="base_url = 'http://127.0.0.1:9'"), "providers.main.base_url", 'no meaning for kind = "local"'),
        (local(account="proxy = 'http://127.0.0.1:9'"), "providers.main.proxy", 'no meaning for kind = "local"'),
    ],
)
def test_every_mistake_names_its_key(text: str, param: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert refused.value.param == param and said in refused.value.message
    assert "sk-very-secret" not in refused.value.message


def test_secrets_come_by_reference_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\n")
    from_file = parse(tomllib.loads(with_account(f"api_key = 'file:{file}'")), {})
    for aliases, secret in ((read(GOOD), "sk-very-secret"), (from_file, "sk-from-file")):
        assert aliases["m"].routes[0].account.api_key == secret
        assert secret not in repr(aliases) + str(aliases["m"].routes[0].account)


def test_an_account_at_the_vendor_serves_its_well_known_models() -> None:
    aliases = read('[providers.work]\nkind = "openai"\napi_key = "env:KEY"')
    small = aliases["openai/text-embedding-3-small"]
    assert (small.width, small.usd_per_million_tokens) == (1536, Decimal("0.02"))
    assert 512 in small.allowed_dimensions and 1537 not in small.allowed_dimensions
    assert small.routes[0].upstream_model == "text-embedding-3-small" and "local/wordllama-256" not in aliases


@pytest.mark.parametrize(("name", "serves"), [("openai", True), ("own", False)])
def test_a_compatible_server_serves_them_only_when_named_so(name: str, serves: bool) -> None:
    text = f'[providers.{name}]\nkind = "openai"\nbase_url = "http://own"\n[models.m]\ndimensions = 4\n'
    aliases = read(text + f'routes = [{{provider = "{name}"}}]')
    assert ("openai/text-embedding-3-small" in aliases) is serves


def test_two_accounts_of_a_kind_are_two_routes_and_a_section_replaces_them() -> None:
    text = '[providers.a]\nkind = "fake"\n[providers.b]\nkind = "fake"\n'
    assert [route.provider for route in read(text)["fake/embedding-1536"].routes] == ["a", "b"]
    own = text + '[models."fake/embedding-1536"]\nroutes = [{provider = "b"}]\ninput_usd_per_million_tokens = 3'
    alias = read(own)["fake/embedding-1536"]
    assert [route.provider for route in alias.routes] == ["b"] and alias.usd_per_million_tokens == 3
    assert (alias.width, alias.allowed_dimensions, alias.routes[0].upstream_model) == (
        1536,
        range(1, 1537),
        "fake-embedding",
    )


def test_routes_have_limits_and_prices_of_their_own() -> None:
    route = read(
        with_model(
            'dimensions = 16\nallowed_dimensions = [4, 8]\ninput_usd_per_million_tokens = "0.1"\nmax_input_tokens = 99',
            'provider = "main"\nmodel = "up"\nmax_inputs_per_call = 7\ninput_usd_per_million_tokens = 0\npriority = 2',
        )
    )["m"]
    (only,) = route.routes
    assert route.allowed_dimensions == frozenset({4, 8, 16}) and route.usd_per_million_tokens == Decimal("0.1")
    assert (only.upstream_model, only.usd_per_million_tokens, only.priority) == ("up", Decimal(0), 2)
    assert (only.limits.inputs_per_call, only.limits.tokens_per_input) == (7, 99)


def test_without_a_file_the_local_model_is_served() -> None:
    assert list(load("", {})) == ["local/wordllama-256"]


@pytest.mark.parametrize("content", [None, b"[[", b"\xff"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "embedmill.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(file)):
        load(str(file), {})


def test_the_example_file_is_a_good_configuration() -> None:
    example = Path(__file__).resolve().parents[2] / "embedmill.example.toml"
    assert example.is_file(), "embedmill.example.toml is missing"
    document: dict[str, Any] = tomllib.loads(example.read_text())
    keys = [str(section.get("api_key", "")) for section in document["providers"].values()]
    environ = {key.removeprefix("env:"): "x" for key in keys if key.startswith("env:")}
    assert parse(document, environ)


def test_every_known_model_is_served_by_some_provider() -> None:
    offers = {offer.kind for known in load_catalog().models.values() for offer in known.served_by}
    assert offers <= set(PROVIDERS)


@pytest.mark.parametrize(
    ("line", "proxy"),
    [
        ("", None),
        ('proxy = "none"', ""),
        ('proxy = "http://127.0.0.1:3128"', "http://127.0.0.1:3128"),
        ('proxy = "env:PROXY"', "http://us:s3cret@proxy.test:3128"),
    ],
)
def test_an_accounts_proxy(line: str, proxy: str | None) -> None:
    environ = {"PROXY": "http://us:s3cret@proxy.test:3128"}
    account = parse(tomllib.loads(with_account(line)), environ)["m"].routes[0].account
    assert account.proxy == proxy and "s3cret" not in repr(account)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('proxy = "http://us:s3cret@proxy.test"', "holds a credential"),
        ('proxy = "socks5://proxy.test"', "must start with http"),
        ('proxy = "proxy.test:3128"', "must start with http"),
        ('proxy = "http://"', "of the form"),
        ('proxy = "http://proxy.test/path"', "of the form"),
        ('proxy = "http://proxy.test:many"', "is not a URL"),
        ('proxy = "env:BAD"', "must start with http"),
        ('encoding = "int8"', 'must be "base64" or "float"'),
    ],
)
def test_a_proxy_or_an_encoding_that_cannot_be_used(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        parse(tomllib.loads(with_account(line)), {"BAD": "ftp://us:s3cret@proxy.test"})
    assert "s3cret" not in raised.value.message


def test_routes_know_their_model_and_their_accounts_encoding() -> None:
    alias = parse(tomllib.loads(with_account('encoding = "float"\nallowed_options = ["seed"]')), {})["m"]
    assert (alias.routes[0].alias, alias.routes[0].encoding) == ("m", "float")
    assert alias.routes[0].account.allowed_options == frozenset({"seed"})
