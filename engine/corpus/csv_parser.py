"""CSV that arrives in chunks of UTF-8: a header, then a record for each row."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from engine.corpus.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, choose_columns
from engine.corpus.csv_rows import DELIMITERS, SAMPLED_CHARS, SAMPLED_LINES, CsvFault, CsvRows, delimiters_that_fit
from engine.corpus.lines import LONG_ID, ParsedRecords, id_text
from engine.corpus.parser import STEP_BYTES
from engine.corpus.unreadable import UnreadableCorpus
from models.embedding import InputError

EXCEL_HINT = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # Excel's own first line
_NO_UTF8 = InputError("invalid_input", "the row is not valid UTF-8")
_EMPTY = InputError("empty_input", "the row is empty")
_NUL = InputError("invalid_input", "the row holds a NUL: it is no text, or not UTF-8. Send UTF-8")
_SPACE = InputError("invalid_input", "the cell has a space before its quote: a quoted cell begins at the delimiter")


class CsvParser:
    """A CorpusParser of CSV. `delimiter` None: found in the first rows. `where`: names the corpus in errors.

    A row that does not fit the header, or is no text, is an error at its index. Where quoting goes wrong nobody can
    tell where rows end, and the rest is refused.
    """

    def __init__(
        self,
        *,
        text_column: str | None,
        id_column: str | None,
        delimiter: str | None = None,
        max_line_bytes: int,
        where: str = "the body",
    ) -> None:
        self._text_column = text_column
        self._id_column = id_column
        self._delimiter = delimiter
        self._max_row_chars = max_line_bytes
        self._where = where
        # Bytes that are no UTF-8 become lone surrogates, and are found in their row.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._rest = ""
        self._line_end = "\n"
        self._rows: CsvRows | None = None
        self._width = 0
        self._text_at = 0
        self._id_at: int | None = None
        self._blanks = 0  # rows since the last one that is not blank: only a row behind them makes inputs of them

    @property
    def held_bytes(self) -> int:
        return len(self._rest) + (0 if self._rows is None else self._rows.pending_chars)

    @property
    def bytes_at_end(self) -> int:
        return self.held_bytes

    def feed(self, chunk: bytes) -> Iterator[ParsedRecords]:
        for low in range(0, len(chunk), STEP_BYTES):
            self._rest += self._decoder.decode(chunk[low : low + STEP_BYTES])
            if self._rows is None and len(self._rest) < SAMPLED_CHARS:
                continue
            yield self._take_lines(is_last=False)

    def finish(self) -> Iterator[ParsedRecords]:
        self._rest += self._decoder.decode(b"", final=True)
        yield self._take_lines(is_last=True)

    def _take_lines(self, *, is_last: bool) -> ParsedRecords:
        if self._rows is None and "\n" not in self._rest and "\r" in self._rest[:-1]:
            self._line_end = "\r"
        *lines, self._rest = self._rest.split(self._line_end)
        lines = [line + self._line_end for line in lines]
        if is_last and self._rest:
            lines.append(self._rest)
            self._rest = ""
        records = ParsedRecords()
        try:
            if self._rows is None:
                lines = self._open(lines)
            assert self._rows is not None
            for number, row in self._rows.feed(lines):
                self._add(number, row, records)
            if is_last:
                for number, row in self._rows.finish():
                    self._add(number, row, records)
        except CsvFault as fault:
            raise self._unreadable(fault) from fault
        if self.held_bytes > 2 * self._max_row_chars:
            raise self._unreadable(CsvFault(self._rows.next_line, "row too long"))
        return records

    def _open(self, lines: list[str]) -> list[str]:
        """Find the delimiter and the columns. Returns the lines behind the header."""
        hint = EXCEL_HINT.fullmatch(lines[0]) if lines else None
        first_line = 2 if hint else 1
        delimiter = self._delimiter or (hint[1] if hint else self._find_delimiter(lines[:SAMPLED_LINES]))
        lines = lines[first_line - 1 :]
        rows = CsvRows(delimiter, first_line=first_line, max_row_chars=self._max_row_chars)
        header, count = rows.take_first(lines)
        names = [name.strip() for name in header]
        if not any(names):
            raise UnreadableCorpus(f"{self._where} has no header row", f"line {first_line} must name the columns")
        found = {name: True for name in names if name}
        if not (self._text_column or self._id_column or {DEFAULT_TEXT_COLUMN, DEFAULT_ID_COLUMN} & found.keys()):
            # The first line of a file without a header, or of one with a delimiter of its own, is a "column" too.
            raise UnreadableCorpus(
                f"the first line of {self._where} names no column 'text'",
                f"name the column with text_column; columns: {', '.join(found)[:500]}",
                param="text_column",
            )
        columns = choose_columns(found, self._where, text=self._text_column, id=self._id_column)
        self._width = len(names)
        self._text_at = self._position(names, columns.text)
        self._id_at = None if columns.id is None else self._position(names, columns.id)
        self._rows = rows
        return lines[count:]

    def _position(self, names: list[str], name: str) -> int:
        if names.count(name) > 1:
            raise UnreadableCorpus(
                f"{self._where} has {names.count(name)} columns called {name!r}", "rename all but one"
            )
        return names.index(name)

    def _find_delimiter(self, sample: list[str]) -> str:
        candidates = delimiters_that_fit(sample)
        if len(candidates) > 1:
            choices = " or ".join(DELIMITERS[candidate] for candidate in candidates)
            raise UnreadableCorpus(f"the delimiter of {self._where} may be {choices}", "quote the cells that hold one")
        return candidates[0]

    def _add(self, number: int, row: list[str], records: ParsedRecords) -> None:
        if not any(row) and len(row) <= self._width:
            self._blanks += 1
            return
        if self._blanks:
            records.append_error(_EMPTY, count=self._blanks)
            self._blanks = 0
        if len(row) != self._width:
            found = f"{len(row)} field{'s' if len(row) != 1 else ''}"
            reason = f"the row has {found} where the header names {self._width}: quote cells that hold the delimiter"
            records.append_error(InputError("invalid_input", reason))
            return
        text = row[self._text_at]
        caller_id = row[self._id_at] if self._id_at is not None else ""
        error = _fault_of(text)
        try:
            known_id = id_text(caller_id or None)
        except ValueError:
            records.append_error(error or LONG_ID)
            return
        if error is not None:
            records.append_error(error, known_id)
        else:
            records.add(text, known_id)

    def _unreadable(self, fault: CsvFault) -> UnreadableCorpus:
        where, reason = f"line {fault.line:,} of {self._where}", fault.reason
        if "new-line character" in reason:
            return UnreadableCorpus(f"{where} has a carriage return outside quotes", "quote the cell, or remove it")
        if reason == "row too long":
            fix = "close the quote that is open, or send a shorter text"
            return UnreadableCorpus(f"{where} begins a row longer than {self._max_row_chars:,} characters", fix)
        fix = "close it, or write a quote within a cell twice"
        if "expected after" in reason:
            return UnreadableCorpus(f"the row that begins on {where} has a quote that other text follows", fix)
        return UnreadableCorpus(f"the row that begins on {where} opens a quote that is never closed", fix)


def _fault_of(text: str) -> InputError | None:
    if "\0" in text:
        return _NUL
    if text[:1] in (" ", "\t") and text.lstrip(" \t")[:1] == '"':
        return _SPACE
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return _NO_UTF8
    return None
