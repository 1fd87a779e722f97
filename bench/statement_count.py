"""SQL statements and write transactions of a piece of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from engine.storage.database import Database


@dataclass(slots=True)
class Statements:
    """What the database was sent; BEGIN is not among the statements, it is counted as a transaction."""

    texts: list[str] = field(default_factory=list)
    write_transactions: int = 0

    def figures(self) -> dict[str, Any]:
        """The counts, and each statement's verb and first words."""
        return {
            "statements": len(self.texts),
            "write_transactions": self.write_transactions,
            "statements_in_order": [" ".join(text.split())[:100] for text in self.texts],
        }


@contextmanager
def count_statements(database: Database) -> Iterator[Statements]:
    """Count what is sent to an SQLite database, whose writes have a connection of their own."""
    counted = Statements()
    reads, writes = database._reads.sync_engine, database._writes.sync_engine

    def note_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            counted.write_transactions += 1
        else:
            counted.texts.append(statement)

    for engine in (reads, writes):
        event.listen(engine, "before_cursor_execute", note_statement)
    try:
        yield counted
    finally:
        for engine in (reads, writes):
            event.remove(engine, "before_cursor_execute", note_statement)
