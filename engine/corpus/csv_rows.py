"""Rows of CSV, read strictly, as their lines arrive: a quote that is out of place is a fault with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
SAMPLED_LINES = 500
SAMPLED_CHARS = 256 * 1024
# Fields are limited by the length of their row.
csv.field_size_limit(2**31 - 1)


class CsvFault(Exception):
    """The row that begins on line `line` is no CSV. `reason`: the csv module's, or "row too long"."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class CsvRows:
    """Groups lines into rows. Keeps the lines of a row that is not complete.

    `first_line`: the number of the first line that is fed, from 1.
    """

    def __init__(self, delimiter: str, *, first_line: int = 1, max_row_chars: int) -> None:
        self._delimiter = delimiter
        self._next_line = first_line
        self._max_row_chars = max_row_chars
        self._pending: list[str] = []
        self._pending_chars = 0
        # A row of many lines is parsed anew when it has doubled, not with each of them.
        self._parse_at = 0

    @property
    def next_line(self) -> int:
        """The number of the line on which the next row begins."""
        return self._next_line

    def take_first(self, lines: list[str]) -> tuple[list[str], int]:
        """The first row of these lines, and how many lines it has. Its lines count as read. Raises CsvFault."""
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            row = next(reader, [])
        except csv.Error as error:
            raise CsvFault(self._next_line, str(error)) from error
        self._next_line += reader.line_num
        return row, reader.line_num

    @property
    def pending_chars(self) -> int:
        """Characters of the lines that are kept."""
        return self._pending_chars

    def feed(self, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
        """The rows that these lines complete, each with the number of its first line. Lines have their ends.

        Raises CsvFault.
        """
        self._pending += lines
        self._pending_chars += sum(map(len, lines))
        if self._pending_chars >= self._parse_at:
            yield from self._parse(is_last=False)

    def finish(self) -> Iterator[tuple[int, list[str]]]:
        """The last rows, where the last line has no end, or a quote is still open. Raises CsvFault."""
        yield from self._parse(is_last=True)

    def _parse(self, *, is_last: bool) -> Iterator[tuple[int, list[str]]]:
        lines, first = self._pending, self._next_line
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        done = 0
        try:
            for row in reader:
                if reader.line_num - done > 1 or len(lines[done]) >= self._max_row_chars:
                    self._check_length(lines[done : reader.line_num], first + done)
                yield first + done, row
                done = reader.line_num
        except csv.Error as error:
            is_open = "unexpected end" in str(error)
            self._check_length(lines[done:] if is_open else lines[done : reader.line_num], first + done)
            if not is_open or is_last:
                raise CsvFault(first + done, str(error)) from error
        self._pending, self._next_line = lines[done:], first + done
        self._pending_chars = sum(map(len, self._pending))
        self._parse_at = 2 * self._pending_chars

    def _check_length(self, lines: list[str], number: int) -> None:
        if sum(map(len, lines)) >= self._max_row_chars:
            raise CsvFault(number, "row too long")


def delimiters_that_fit(sample: list[str]) -> list[str]:
    """The characters that may separate the columns of the sampled lines; a comma where none does.

    One: under it alone the header has columns, or all sampled rows have as many. Several: none can be preferred.
    """
    widths = {candidate: _widths(sample, candidate) for candidate in DELIMITERS}
    candidates = [candidate for candidate, counts in widths.items() if counts[:1] and counts[0] > 1]
    consistent = [candidate for candidate in candidates if len(set(widths[candidate])) == 1]
    if len(candidates) == 1 or len(consistent) == 1:
        return [(consistent or candidates)[0]]
    return (consistent or candidates) or [","]


def _widths(sample: list[str], delimiter: str) -> list[int]:
    """The number of fields in each row that is not blank, up to where quoting goes wrong."""
    widths = []
    try:
        for row in csv.reader(sample, delimiter=delimiter, strict=True):
            if any(row):
                widths.append(len(row))  # noqa: PERF401  # what was read before an error counts
    except csv.Error:
        pass
    return widths
