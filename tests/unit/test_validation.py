"""Names that fit their columns, and secrets that no message quotes."""

from __future__ import annotations

import logging
import sys

import pytest

from engine.config import config_file
from engine.config_checks import check_name, check_secret, redacted
from engine.observability.telemetry import JsonFormatter, TextFormatter
from models.errors import ConfigError


def config(account: str = "a", alias: str = "m", space: str = "s", model: str = "u") -> dict[str, object]:
    route = {"provider": account, "model": model}
    return {
        "providers": {account: {"kind": "fake"}},
        "models": {alias: {"dimensions": 8, "space": space, "routes": [route]}},
    }


@pytest.mark.parametrize(("part", "longest"), [("account", 64), ("alias", 256), ("space", 256), ("model", 256)])
def test_names_of_the_configuration_fit_their_columns(part: str, longest: int) -> None:
    config_file.parse(config(**{part: "x" * longest}))
    for name in ("x" * (longest + 1), "a\nb", " padded", "nul\0", "half \ud83d", "a|b"):
        with pytest.raises(ConfigError) as refused:
            config_file.parse(config(**{part: name}))
        assert refused.value.param and refused.value.message.isprintable()


def test_other_scripts_are_names_too() -> None:
    assert "模型/一" in config_file.parse(config(alias="模型/一", space="空间/一"))


def test_a_secret_loses_its_line_end_and_is_never_quoted() -> None:
    assert check_secret("sk-1\r\n", "providers.a.api_key") == "sk-1"
    for secret in ("sk-1\rsk-2", "sk-\u2026", "sk 1"):
        with pytest.raises(ConfigError) as refused:
            check_secret(secret, "providers.a.api_key")
        assert "sk" not in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "Illegal header value b'Bearer em_0123456789ab_secretsecret\\r'",
        "cannot connect to redis://:secretsecret@host:6379/0",
        "401 for key sk-secretsecret",
        "GET https://x/?api_key=secretsecret&a=b",
        "Authorization: Basic secretsecret",
    ],
)
def test_a_librarys_message_is_shown_without_credentials(text: str) -> None:
    assert "secretsecret" not in redacted(text) and "***" in redacted(text)


@pytest.mark.parametrize("scheme", ["Bearer ", "Basic ", "key="])
@pytest.mark.parametrize("closing", ["`", "'", '"', ")", "]", "}", "`.", "),", '"}', "'\\n", ";", ". Then"])
def test_what_closes_behind_a_credential_stays(scheme: str, closing: str) -> None:
    closing = closing.replace("\\n", "\n")
    assert redacted(f"({scheme}secret.se-cr_et+/=={closing} and more") == f"({scheme}***{closing} and more"


def test_the_placeholder_of_a_help_text_is_redacted_whole() -> None:
    assert redacted("Send it as `Authorization: Bearer <key>`.") == "Send it as `Authorization: Bearer ***`."


@pytest.mark.parametrize("secret", ["a)b", "(ab", "a`b`c", "x,y;z", "a]b}c"])
def test_a_credential_with_such_characters_in_it_is_redacted_whole(secret: str) -> None:
    assert redacted(f"Bearer {secret} is wrong") == "Bearer *** is wrong"


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ConfigError):
        check_name("", "--project", max_chars=64)


@pytest.mark.parametrize("kind", [JsonFormatter, TextFormatter])
def test_no_log_line_quotes_a_credential(kind: type[logging.Formatter]) -> None:
    try:
        raise ValueError("Illegal header value b'Bearer secretsecret'")
    except ValueError:
        failed = logging.LogRecord("x", logging.ERROR, "", 0, "at redis://:secretsecret@host", None, sys.exc_info())
    assert "secretsecret" not in kind().format(failed) and "ValueError" in kind().format(failed)
