"""Error lines for an input of which the server accepted no line, so that there is no job to read them from."""

from __future__ import annotations

import msgspec

from cli.files.line_input import LineInput
from cli.files.line_output import FileLines, StdoutLines
from engine.corpus.lines import LineReader, ParsedRecords, parse_json_line

MAX_LINE_BYTES = 4 * 1024 * 1024  # the server's default


def write_refused_lines(lines: LineInput, output: StdoutLines | FileLines, reason: str) -> None:
    """One error line for each line of the input, without those that an earlier run has written.

    `reason`: of a line that can be read, and is refused all the same.
    """
    reader, index = LineReader(parse_json_line, max_line_bytes=MAX_LINE_BYTES), 0
    for piece in lines.pieces():
        index = _write(reader.feed(piece), output, index, reason)
    _write(reader.finish(), output, index, reason)
    output.flush()


def _write(records: ParsedRecords, output: StdoutLines | FileLines, index: int, reason: str) -> int:
    for position, caller_id in enumerate(records.ids):
        found = records.errors.get(position)
        if found is not None:
            code, message = found.code, found.message
        elif not records.inputs[position]:
            code, message = "empty_input", "input cannot be empty: leave it out"
        else:
            code, message = "invalid_input", reason
        error = {"code": code, "message": message, "retryable": False}
        for _ in range(records.repeats.get(position, 1)):
            if index == output.lines:
                output.write(msgspec.json.encode({"index": index, "id": caller_id, "error": error}) + b"\n")
            index += 1
    return index
