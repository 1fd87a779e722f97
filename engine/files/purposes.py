"""What a purpose demands of a file: its name, its first line, how long it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping

from models.errors import InvalidInput
from models.file import FilePurpose
from models.file_errors import FileRefused

# What callers may create; `batch_output` is written by batches.
PURPOSES = tuple(purpose for purpose in FilePurpose if purpose is not FilePurpose.BATCH_OUTPUT)
SUPPORTED = ", ".join(f"'{purpose}'" for purpose in PURPOSES)
MAX_NAME_CHARS = 1024
DAY_S = 86_400
# Of inputs of batches whose request says nothing about it (OpenAI's rule, seen live: created_at + 2,592,000).
BATCH_LIFE_S = 30 * DAY_S
MIN_LIFE_S, MAX_LIFE_S = 3600, 30 * DAY_S
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
FIRST_LINE_BYTES = 1024 * 1024
BOM = b"\xef\xbb\xbf"


def check_purpose(purpose: str | None) -> FilePurpose:
    """The purpose that a caller names. Raises InvalidInput."""
    if purpose is None:
        raise InvalidInput("Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter")
    if purpose not in PURPOSES:
        raise InvalidInput(
            f"Invalid value: '{purpose[:40]}'. Supported values are: {SUPPORTED}.",
            param="purpose",
            code="invalid_value",
        )
    return FilePurpose(purpose)


def check_name(filename: str, *, param: str) -> str:
    """The name as it is kept: metadata, of any characters that databases keep. Raises InvalidInput."""
    if not 1 <= len(filename) <= MAX_NAME_CHARS:
        raise InvalidInput(
            f"Invalid '{param}': the name of a file must have 1 to {MAX_NAME_CHARS} characters.",
            param=param,
            code="invalid_value",
        )
    return storable(filename)


def storable(text: str) -> str:
    """The text without NUL and lone surrogates, which databases refuse."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def check_suffix(purpose: FilePurpose, filename: str) -> None:
    """Raises FileRefused for the input of a batch with another suffix than .jsonl.

    SDKs send bytes that have no name as `upload` (Python) or `unknown_file` (Node), which OpenAI takes.
    """
    name = filename.replace("\\", "/").rpartition("/")[2]
    if purpose is FilePurpose.BATCH and "." in name and not name.lower().endswith(".jsonl"):
        error = NOT_JSONL
        raise FileRefused(error)


def life_s(purpose: FilePurpose, expires_after_s: int | None) -> int | None:
    """Seconds after which the file expires; None: never."""
    return BATCH_LIFE_S if expires_after_s is None and purpose is FilePurpose.BATCH else expires_after_s


def check_expiry(anchor: object, seconds: object) -> int | None:
    """Seconds of `expires_after`. Raises InvalidInput."""
    if anchor is None and seconds is None:
        return None
    for name, value in (("anchor", anchor), ("seconds", seconds)):
        if value is None:
            param = f"expires_after.{name}"
            raise InvalidInput(
                f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
    if anchor != "created_at":
        raise InvalidInput(
            f"Invalid value: '{str(anchor)[:40]}'. Supported values are: 'created_at'.",
            param="expires_after.anchor",
            code="invalid_value",
        )
    try:
        number = int(seconds) if isinstance(seconds, int | str) and not isinstance(seconds, bool) else -1
    except ValueError:
        number = -1
    if not MIN_LIFE_S <= number <= MAX_LIFE_S:
        raise InvalidInput(
            f"Invalid 'expires_after.seconds': expected a whole number of {MIN_LIFE_S} to {MAX_LIFE_S}.",
            param="expires_after.seconds",
            code="invalid_value",
        )
    return number


def expiry_of_fields(fields: Mapping[str, str]) -> int | None:
    """Seconds of `expires_after`, of a form's fields in either spelling. Raises InvalidInput."""
    values = [
        fields.get(f"expires_after[{name}]", fields.get(f"expires_after.{name}")) for name in ("anchor", "seconds")
    ]
    return check_expiry(*values)


class FirstLine:
    """Looks at the first line of a file that is being stored: in the input of a batch it is a JSON object."""

    def __init__(self) -> None:
        self._head = b""
        self.is_complete = False
        self._is_object = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file; those behind the first line are not looked at."""
        if self.is_complete:
            return
        self._head = (self._head + data[: FIRST_LINE_BYTES + len(BOM)])[: FIRST_LINE_BYTES + len(BOM)]
        text = self._head.removeprefix(BOM).lstrip(b" \t\r\n")
        line, newline, _ = text.partition(b"\n")
        if newline:
            self._finish(_is_json_object(line))
        elif len(self._head) > FIRST_LINE_BYTES:
            # The line is judged as a whole when the batch is validated.
            self._finish(text.startswith(b"{"))

    def _finish(self, is_object: bool) -> None:
        self.is_complete, self._is_object, self._head = True, is_object, b""

    def check(self) -> None:
        """After the last byte. Raises FileRefused unless the first line that is not blank holds a JSON object."""
        if not self.is_complete:
            self._finish(_is_json_object(self._head.removeprefix(BOM).strip()))
        if not self._is_object:
            raise FileRefused(
                f"{NOT_JSONL}, and each line must be a JSON object: the first line of this file is none. "
                'Its form is {"custom_id", "method", "url", "body"}.'
            )


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False
