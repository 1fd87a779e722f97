"""The choice of columns as engine/corpus/columns.py makes it, with the options and errors of the command line."""

from __future__ import annotations

from collections.abc import Mapping

from cli.errors import NotFound, UsageError
from engine.corpus import columns
from engine.corpus.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, ColumnOptions, Columns
from engine.corpus.unreadable import UnreadableCorpus

OPTIONS = ColumnOptions("--text-column", "--id-column")


def choose_columns(found: Mapping[str, bool], where: str, *, text: str | None, id: str | None) -> Columns:
    """Pick the columns out of those `found` (name → holds strings). Raises UsageError that names what was found."""
    try:
        return columns.choose_columns(found, where, text=text, id=id, options=OPTIONS)
    except UnreadableCorpus as error:
        raise (NotFound if error.is_missing_column else UsageError)(error.reason, error.fix) from error


__all__ = ["DEFAULT_ID_COLUMN", "DEFAULT_TEXT_COLUMN", "Columns", "choose_columns"]
