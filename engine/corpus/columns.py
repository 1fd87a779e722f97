"""Which column of a table of texts is embedded, and which one names its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.corpus.unreadable import UnreadableCorpus

DEFAULT_TEXT_COLUMN = "text"
DEFAULT_ID_COLUMN = "id"


@dataclass(frozen=True, slots=True)
class Columns:
    """The chosen columns. `id` None: the rows have no name of their own."""

    text: str
    id: str | None


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """What the options are called where the user states them."""

    text: str = "text_column"
    id: str = "id_column"


def choose_columns(
    found: Mapping[str, bool],
    where: str,
    *,
    text: str | None,
    id: str | None,
    options: ColumnOptions = ColumnOptions(),
) -> Columns:
    """Pick the columns out of those `found` (name → holds strings). Raises UnreadableCorpus that names what was found.

    The text column is the one asked for, else `text`, else the only one that holds strings beside the id column.
    """
    for option, name in ((options.text, text), (options.id, id)):
        if name is not None and name not in found:
            raise UnreadableCorpus(
                f"{where} has no column {name!r}",
                f"{option} must be one of: {_names(found)}",
                param=option,
                is_missing_column=True,
            )
    id_column = id or (DEFAULT_ID_COLUMN if DEFAULT_ID_COLUMN in found and text != DEFAULT_ID_COLUMN else None)
    if text is not None:
        return Columns(text, id_column)
    if DEFAULT_TEXT_COLUMN in found and id_column != DEFAULT_TEXT_COLUMN:
        return Columns(DEFAULT_TEXT_COLUMN, id_column)
    candidates = [name for name, holds_strings in found.items() if holds_strings and name != id_column]
    if not candidates and id is None and found.get(DEFAULT_ID_COLUMN):
        return Columns(DEFAULT_ID_COLUMN, None)  # a table of one column that happens to be called id
    if len(candidates) != 1:
        raise UnreadableCorpus(
            f"{where} has {'several columns' if candidates else 'no column'} of text, and none is called 'text'",
            f"name it with {options.text}; columns: {_names(found)}",
            param=options.text,
        )
    return Columns(candidates[0], id_column)


def _names(found: Mapping[str, bool]) -> str:
    return ", ".join(found) or "none"
