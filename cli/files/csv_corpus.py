"""CSV read strictly: a quote or a row that is out of place ends the reading, with its line, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from cli.errors import CliError, Failure, UsageError
from cli.files.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, Columns, choose_columns
from cli.files.corpus import Corpus, row_line
from cli.files.source import MAX_LINE_CHARS, Source
from engine.corpus.csv_parser import EXCEL_HINT
from engine.corpus.csv_rows import DELIMITERS, SAMPLED_CHARS, SAMPLED_LINES, CsvFault, CsvRows, delimiters_that_fit

NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "bar": "|"}
LINES_AT_ONCE = 64


class Csv(Corpus):
    """A header, then a record per row. Blank rows between others keep their index."""

    def __init__(self, source: Source, text: str | None, id: str | None, delimiter: str | None) -> None:
        super().__init__(source)
        sample = _sample(source)
        hint = EXCEL_HINT.fullmatch(sample[0]) if sample else None
        self._first_line = 2 if hint else 1
        if delimiter is not None:
            self.delimiter = _parse_delimiter(delimiter)
        elif hint:
            self.delimiter = hint[1]
        else:
            self.delimiter = find_delimiter(sample, source.name)
            if self.delimiter != ",":
                self.notes.append(f"{source.name}: its delimiter is {DELIMITERS[self.delimiter]}")
        names = [name.strip() for name in next(self._rows(), (0, []))[1]]
        if not any(names):
            raise CliError(
                f"{source.name} has no header row",
                f"line {self._first_line} must name the columns",
                failure=Failure.FILE,
            )
        self._width = len(names)
        self.columns = _choose(names, source.name, text, id)
        self._text_at = _column_index(names, self.columns.text, source.name)
        self._id_at = None if self.columns.id is None else _column_index(names, self.columns.id, source.name)

    def lines(self) -> Iterator[bytes]:
        """As `Corpus.lines`. Raises CliError for a row of another width than the header."""
        columns, text_at, id_at, width = Columns("text", "id"), self._text_at, self._id_at, self._width
        blank = 0
        for number, row in islice(self._rows(), 1, None):
            if not any(row) and len(row) <= width:
                blank += 1
                continue
            if len(row) != width:
                raise self._misfit(number, len(row))
            while blank:
                yield b'{"text":""}\n'
                blank -= 1
            text = row[text_at]
            if text[:1] in (" ", "\t") and text.lstrip(" \t")[:1] == '"':
                raise CliError(
                    f"{self.source.name}: line {number:,} has a space before a quote",
                    "a quoted cell begins right after the delimiter",
                )
            yield row_line({"text": text, "id": row[id_at] if id_at is not None else None}, columns)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row with the number of its first line. Raises CliError naming the line where quoting went wrong."""
        rows = CsvRows(self.delimiter, first_line=self._first_line, max_row_chars=MAX_LINE_CHARS)
        lines = islice(self.source.text_lines(), self._first_line - 1, None)
        try:
            while some := list(islice(lines, LINES_AT_ONCE)):
                yield from rows.feed(some)
            yield from rows.finish()
        except CsvFault as fault:
            raise self._broken(fault.line, fault.reason) from fault

    def _misfit(self, number: int, width: int) -> CliError:
        return CliError(
            f"{self.source.name}: line {number:,} has {width} field{'s' if width != 1 else ''} where the header "
            f"names {self._width}",
            "a cell that holds the delimiter must be quoted; if another character separates columns, give --delimiter",
        )

    def _broken(self, number: int, reason: str) -> CliError:
        """The error for a row that begins on a line and is no CSV."""
        where = f"{self.source.name}: line {number:,}"
        if "new-line character" in reason:
            return CliError(f"{where} has a carriage return outside quotes", "quote the cell, or remove it")
        quote_line = self._open_quote(number)
        if quote_line is None:
            return CliError(
                f"{where} begins a row longer than {MAX_LINE_CHARS:,} characters", "no model takes such a text"
            )
        where = f"{self.source.name}: line {quote_line:,}"
        fix = "close it, or write a quote within a cell twice"
        if "expected after" in reason:
            return CliError(f"{where} opens a quote that other text follows where it closes", fix)
        return CliError(f"{where} opens a quote that is never closed", fix)

    def _open_quote(self, first: int) -> int | None:
        """The line on which the quote opens that spoils the row which begins on line `first`."""
        quote_line, closing, at_start = None, False, True
        for number, line in enumerate(islice(self.source.text_lines(), first - 1, None), first):
            for char in line:
                ends = char == self.delimiter or char in "\r\n"
                if quote_line is None:
                    quote_line = number if char == '"' and at_start else None
                    at_start = ends
                elif closing:
                    if char != '"' and not ends:
                        return quote_line
                    closing = False
                    if ends:
                        quote_line, at_start = None, True
                elif char == '"':
                    closing = True
        return None if closing else quote_line


def find_delimiter(sample: list[str], where: str) -> str:
    """The character under which the header has columns and all sampled rows have as many; a comma where none has.

    Raises UsageError where several characters would do.
    """
    candidates = delimiters_that_fit(sample)
    if len(candidates) == 1:
        return candidates[0]
    choices = " or ".join(DELIMITERS[candidate] for candidate in candidates)
    raise UsageError(f"{where}: its delimiter may be {choices}", "say which with --delimiter, e.g. --delimiter ';'")


def _sample(source: Source) -> list[str]:
    sample, size = [], 0
    for line in islice(source.text_lines(), SAMPLED_LINES):
        sample.append(line)
        size += len(line)
        if size >= SAMPLED_CHARS:
            break
    return sample


def _parse_delimiter(delimiter: str) -> str:
    delimiter = NAMED_DELIMITERS.get(delimiter.lower(), delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise UsageError(f"{delimiter!r} cannot be a delimiter", "it is one character, or the word tab")
    return delimiter


def _choose(names: list[str], where: str, text: str | None, id: str | None) -> Columns:
    columns = {name: True for name in names if name}
    if text is None and id is None and DEFAULT_TEXT_COLUMN not in columns and DEFAULT_ID_COLUMN not in columns:
        # The first line of a file without a header, or of one with a delimiter of its own, is a "column" too.
        raise UsageError(
            f"{where}: its first line names no column 'text'",
            f"name it with --text-column (columns: {', '.join(columns)}), "
            "or give --delimiter; a file without a header, with a text a line, is --format txt",
        )
    return choose_columns(columns, where, text=text, id=id)


def _column_index(names: list[str], name: str, where: str) -> int:
    if names.count(name) > 1:
        raise UsageError(f"{where} has {names.count(name)} columns called {name!r}", "rename all but one")
    return names.index(name)
