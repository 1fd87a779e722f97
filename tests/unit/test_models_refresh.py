"""`embedmill models refresh --from FILE`: a newer table of models and prices, taken whole or not at all."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from cli.__main__ import run
from engine.config.catalog import Offer, Price
from engine.config.config_file import load

NEWER = """
[models."openai/text-embedding-3-small"]
dimensions = 1536
max_input_tokens = 8192
served_by = [{ kind = "openai", model = "text-embedding-3-small", usd = "0.01", source = "us, today" }]

[models."openai/text-embedding-4"]
dimensions = 2048
max_input_tokens = 8192
served_by = [{ kind = "openai", model = "text-embedding-4", usd = "0.5", source = "us, today" }]
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDMILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("EMBEDMILL_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "newer.toml"


def test_its_models_replace_those_of_the_same_names_and_the_others_stay(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(NEWER)
    assert run(["models", "refresh", "--from", str(table)]) == 0
    assert "2 models" in capsys.readouterr().out
    aliases = load("", {"OPENAI_API_KEY": "k"}, table.parent / "data")
    assert aliases["openai/text-embedding-3-small"].usd_per_million_tokens == Decimal("0.01")
    assert aliases["openai/text-embedding-4"].width == 2048
    assert aliases["openai/text-embedding-3-large"].usd_per_million_tokens == Decimal("0.13")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.x", "cannot be used"),
        ('[models.x]\ndimensions = 0\nmax_input_tokens = 1\nserved_by = []', "models.x needs dimensions"),
        ('[models.x]\ndimensons = 3', "cannot be used"),
        ("", "is empty"),
        (NEWER.replace("0.01", "NaN"), "price NaN"),
        (NEWER.replace("0.01", "-1"), "price -1"),
        (NEWER.replace('"openai"', '"nosuch"'), "no kind of provider"),
        (
            "[models.x]\ndimensions = 4\nmax_input_tokens = 1\n"
            'served_by = [{ kind = "local", model = "x", source = "s" }]', "no model that kind",
        ),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_changes_nothing(
    table: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    table.write_text(text)
    assert run(["models", "refresh", "--from", str(table)]) != 0
    assert said in capsys.readouterr().err
    assert not (table.parent / "data" / "models.toml").exists()


def test_a_file_that_is_not_there_is_said(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "refresh", "--from", str(table)]) != 0
    assert str(table) in capsys.readouterr().err


def test_a_price_holds_from_its_day_on() -> None:
    prices = [Price(date(2026, 1, 1), Decimal("0.2")), Price(date(2027, 1, 1), Decimal("0.1"))]
    offer = Offer("openai", "m", "us", usd=Decimal("0.3"), prices=prices)
    days = (date(2025, 12, 31), date(2026, 1, 1), date(2026, 12, 31), date(2027, 6, 1))
    assert [str(offer.price_on(day)) for day in days] == ["0.3", "0.2", "0.2", "0.1"]
