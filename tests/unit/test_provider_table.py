"""docs/providers.md is made from the registry, and `embedmill providers` prints the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.__main__ import run
from cli.output.provider_table import COLUMNS, provider_rows, with_table
from providers import PROVIDERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"


def test_the_page_has_the_table_of_the_registry() -> None:
    page = PAGE.read_text("utf-8")
    assert with_table(page) == page, "run `make docs`"
    assert all(f"| `{kind}` |" in page for kind in PROVIDERS)


def test_the_command_lists_every_kind_with_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["providers", "--json"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(PROVIDERS) and all(len(row) == len(COLUMNS) for row in provider_rows())
    assert rows["voyage"]["width"] == "`output_dimension`" and "VOYAGE_API_KEY" in rows["voyage"]["key"]
    assert rows["anthropic"]["inputs"] == "-"
    assert run(["providers"]) == 0
    assert "output_dimension" in capsys.readouterr().out
