"""multipart/form-data with one file, read as it arrives: fields may come before and behind it. Nothing is spooled."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from urllib.parse import unquote

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.http import media_types, request_body
from api.http.auth import caller_of, runtime_of
from api.http.request_headers import header
from engine.config.suggestions import did_you_mean
from models.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType, UnsupportedParameter

FORM = "multipart/form-data"
MAX_HEADER_BYTES = 16 * 1024
MAX_FIELD_BYTES = 4 * 1024
# What a form may hold beside its file.
FORM_BYTES = 256 * 1024
# A body that is full of what is nearly a boundary is parsed at 2 MB/s, any other at 500 and more.
STEP_S = 0.01
STEP_BYTES = 16 * 1024
_EXTENDED_NAME = re.compile(rb"filename\*\s*=\s*(?:utf-8|us-ascii)'[^']*'([^;\s]+)", re.IGNORECASE)
_SILENT = logging.Logger("multipart", logging.CRITICAL)
DEFAULT_NAME = "upload"  # as the Python SDK names bytes without a name


class FormReader:
    """The form in a request's body. `file_field`: the name of its file; `field_names`: those of all other fields.

    `max_bytes`: of the file. `on_file_data` sees each piece of it in a work thread.
    """

    def __init__(
        self,
        request: Request,
        *,
        file_field: str,
        max_bytes: int,
        field_names: tuple[str, ...] = (),
        on_file_data: Callable[[bytes], object] = len,
    ) -> None:
        check_length(request, max_bytes, file_field)
        parser = MultipartParser(
            _boundary(request),
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_headers_finished": self._finish_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_size=MAX_HEADER_BYTES,
        )
        parser.logger = _SILENT  # what a caller sends wrong is that caller's business
        self._parser = parser
        self._chunks = request_body.raw_chunks(request, request_body.SLOW_FILE)
        self._work, self._project = runtime_of(request).work, caller_of(request).project
        self._file_field = file_field
        self._field_names = field_names
        self._on_file_data = on_file_data
        self.fields: dict[str, str] = {}
        self.filename: str | None = None  # None: the file has not begun
        self.file_bytes = 0
        self._header_name, self._header_value, self._disposition = b"", b"", b""
        self._field: str | None = None  # the name of the part that is being read
        self._value = b""
        self._pieces: list[bytes] = []  # of the file
        self._is_file_complete = False
        self._is_complete = False
        self._max_bytes, self._body_bytes = max_bytes, 0

    async def open_file(self) -> str:
        """Read up to the file. Returns its name. Raises InvalidInput where there is none; and as `_read` does."""
        while self.filename is None:
            if not await self._read():
                self._check_end()
                raise InvalidInput(
                    f"Missing required parameter: '{self._file_field}'. Send it as a file in the form.",
                    param=self._file_field,
                    code="missing_required_parameter",
                )
        return self.filename

    async def file_chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the file. Raises as `_read` does."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._is_file_complete:
                return
            if not self._pieces and not await self._read():
                self._check_end()
                return

    async def finish(self) -> dict[str, str]:
        """Read the rest. Returns the fields. Raises InvalidInput for a form that is cut off; and as `_read` does."""
        while await self._read():
            pass
        self._check_end()
        return self.fields

    async def _read(self) -> bool:
        """Read and parse one chunk of the body; False: it has ended.

        Raises InvalidInput, UnsupportedParameter, PayloadTooLarge, BodyTooSlow, ClientDisconnect.
        """
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._body_bytes += len(chunk)
        if self._body_bytes > self._max_bytes + FORM_BYTES:
            raise too_large(self._max_bytes, self._file_field)
        try:
            position = 0
            while position < len(chunk):
                position = await self._work.run(self._project, partial(self._parse, chunk, position))
        except FormParserError as error:
            raise InvalidInput(
                f"The body is not a valid {FORM}: {str(error)[:200]}. Use an HTTP client that writes forms.",
                code="invalid_form",
            ) from error
        return True

    def _parse(self, chunk: bytes, position: int) -> int:
        """One step of work: parse from the position on, for STEP_S at the most. Returns where the next step begins."""
        deadline = time.perf_counter() + STEP_S
        while position < len(chunk) and time.perf_counter() < deadline:
            self._parser.write(chunk[position : position + STEP_BYTES])
            position += STEP_BYTES
        return position

    def _check_end(self) -> None:
        if not self._is_complete:
            raise InvalidInput(
                "The form ends before its closing boundary: it was cut off. Send the request again.",
                code="invalid_form",
            )

    # --- What the parser finds, in a work thread ---

    def _begin_part(self) -> None:
        self._disposition, self._field, self._value = b"", None, b""

    def _begin_header(self) -> None:
        self._header_name, self._header_value = b"", b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value

    def _finish_headers(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise InvalidInput(
                'A part of the form has no name: its Content-Disposition must be form-data; name="…".',
                code="invalid_form",
            )
        if name == self._file_field:
            if self.filename is not None:
                raise InvalidInput(
                    f"The form has two files '{name}': send one in each request.", param=name, code="invalid_value"
                )
            self.filename = _filename(self._disposition, options)
        elif name not in self._field_names:
            raise UnsupportedParameter(
                f"Unknown parameter: '{name[:100]}'.{did_you_mean(name, (self._file_field, *self._field_names))}"
                f" Send the file as '{self._file_field}'.",
                param=name[:100],
                code="unknown_parameter",
            )
        elif name in self.fields:
            raise InvalidInput(f"The form has '{name}' twice: send it once.", param=name, code="invalid_value")
        self._field = name

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._field == self._file_field:
            self.file_bytes += len(piece)
            if self.file_bytes > self._max_bytes:
                raise too_large(self._max_bytes, self._file_field)
            self._on_file_data(piece)
            self._pieces.append(piece)
            return
        self._value += piece
        if len(self._value) > MAX_FIELD_BYTES:
            raise PayloadTooLarge(
                f"Invalid '{self._field}': send a value of at most {MAX_FIELD_BYTES} bytes.", param=self._field
            )

    def _end_part(self) -> None:
        if self._field is None:
            return
        if self._field == self._file_field:
            self._is_file_complete = True
            return
        try:
            self.fields[self._field] = self._value.decode()
        except UnicodeDecodeError:
            raise InvalidInput(
                f"Invalid '{self._field}': expected text in UTF-8.", param=self._field, code="invalid_value"
            ) from None

    def _end(self) -> None:
        self._is_complete = True


def check_length(request: Request, max_bytes: int, file_field: str) -> None:
    """Raises PayloadTooLarge where the length of the body says that the file is too large: nothing is read then."""
    if stated_bytes(request) > max_bytes + FORM_BYTES:
        raise too_large(max_bytes, file_field)


def stated_bytes(request: Request) -> int:
    """The length that the body has by its header; 0: it says none."""
    length = header(request, b"content-length")
    return int(length) if length.isdigit() else 0


def too_large(max_bytes: int, param: str) -> PayloadTooLarge:
    """The error of a file that is larger than may be."""
    return PayloadTooLarge(
        f"The file is larger than {max_bytes} bytes, which is the most that this call takes: "
        "send it as several, or as an upload in parts.",
        param=param,
    )


def _boundary(request: Request) -> bytes:
    """Raises UnsupportedMediaType, InvalidInput."""
    if media_types.media_type(request) != FORM:
        raise UnsupportedMediaType(
            f"Send the file as {FORM}: with curl by -F, with the OpenAI SDKs by files.create or uploads.parts.create.",
            param="content-type",
        )
    encoding = header(request, b"content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            "A form cannot have a Content-Encoding: send it as it is, without this header.", param="content-encoding"
        )
    boundary = parse_options_header(header(request, b"content-type"))[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046 §5.1.1
        raise InvalidInput(
            f"The header Content-Type must name the form's boundary: {FORM}; boundary=…, of 1 to 70 characters. "
            "Leave the header to the HTTP client that writes the form.",
            param="content-type",
            code="invalid_form",
        )
    return boundary


def _filename(disposition: bytes, options: dict[bytes, bytes]) -> str:
    extended = _EXTENDED_NAME.search(disposition)  # not allowed in forms (RFC 7578 §4.2), and sent by some clients
    if b"filename" not in options and extended is not None:
        return unquote(extended[1].decode("latin-1"))
    return options.get(b"filename", b"").decode("utf-8", "replace") or DEFAULT_NAME
