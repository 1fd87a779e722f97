"""`embedmill providers test`: one real call tells an operator whether an account works, and the exit code says so."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from cli.__main__ import run

CONFIG = """
[providers.good]
kind = "fake"
[providers.refused]
kind = "fake"
script = [{ do = { status = 401 } }]
[providers.wide]
kind = "fake"
script = [{ do = { reply = "wrong_width" } }]

[models.m]
dimensions = 16
input_usd_per_million_tokens = "0.02"
routes = [
    { provider = "good", model = "up" },
    { provider = "refused", model = "up" },
    { provider = "wide", model = "up" },
]
"""


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedmill.toml").write_text(CONFIG)
    monkeypatch.setenv("EMBEDMILL_CONFIG", str(tmp_path / "embedmill.toml"))
    monkeypatch.setenv("EMBEDMILL_DATA_DIR", str(tmp_path))


def test_an_account_that_answers_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers", "test", "good"]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "ok: 16 numbers as configured" in shown and "ms" in shown and "$0.02" in shown


@pytest.mark.parametrize(
    ("account", "code"), [("refused", "upstream_auth_failed"), ("wide", "upstream_protocol_error")]
)
def test_one_that_does_not_fails_with_cause_and_advice(
    account: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["providers", "test", account, "--json"]) == 1
    tests = orjson.loads(capsys.readouterr().out)
    test = next(each for each in tests if each["model"] == "m")
    assert not test["ok"] and test["error"]["message"] and test["error"]["advice"]
    assert test["error"]["code"].startswith(code.rpartition("_")[0])


def test_an_unknown_name_lists_the_accounts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers", "test", "goood"]) == 2
    assert "good, refused, wide" in capsys.readouterr().err.replace("\n", " ")


def test_without_a_broker_it_says_that_up_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "redis_url").write_text("redis://127.0.0.1:1/0")  # of one that was killed
    assert run(["providers", "test", "good"]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "`embedmill up`" in said and "is not running" in said and "start `embedmill up`" in said
    assert "127.0.0.1:1" not in said


def test_one_of_several_keys_is_tested_by_its_own_name_and_all_of_them_by_their_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text(f"sk-{file.name}")
    references = ", ".join(f'"file:{file}"' for file in files)
    keys = f'[providers.good]\nkind = "fake"\napi_keys = [{references}]\n'
    (tmp_path / "embedmill.toml").write_text(CONFIG.replace('[providers.good]\nkind = "fake"\n', keys, 1))
    assert run(["providers", "test", "good#2", "--json"]) == 0
    assert {each["account"] for each in orjson.loads(capsys.readouterr().out)} == {"good#2"}
    assert run(["providers", "test", "good", "--json"]) == 0
    assert {each["account"] for each in orjson.loads(capsys.readouterr().out)} == {"good", "good#2"}
    assert run(["providers", "test", "good#3"]) == 2
    assert "good, good#2, refused" in capsys.readouterr().err.replace("\n", " ")
