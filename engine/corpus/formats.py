"""Formats of corpora: told by the name and the first bytes of a file, or by the type of a body; and their parsers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from engine.corpus.csv_parser import CsvParser
from engine.corpus.lines import BOM, LINE_PARSERS, GzipDecoder, IdentityDecoder, parse_text_line
from engine.corpus.parser import CorpusParser, Decoder, LineParser, json_line_parser
from engine.corpus.unreadable import UnreadableCorpus
from engine.corpus.zstd import ZstdDecoder
from models.errors import InvalidInput

Format = Literal["jsonl", "txt", "csv", "tsv", "parquet"]
ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# By the type of a streamed body.
STREAM_FORMATS: dict[str, Format] = {
    **{name: "txt" if parse is parse_text_line else "jsonl" for name, parse in LINE_PARSERS.items()},
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/vnd.apache.parquet": "parquet",
}
COMPRESSED_ENDINGS = (".gz", ".zst")
GZIP_MAGIC, ZSTD_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
HEAD_BYTES = 4096
READABLE = "name it .jsonl, .ndjson, .csv, .tsv, .txt (each also with .gz or .zst) or .parquet"


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What a caller says about a corpus, and the limits on it. `folder`: for what must be spooled to disk."""

    text_column: str | None
    id_column: str | None
    max_line_bytes: int
    max_bytes: int
    max_ratio: float
    folder: Path
    where: str = "the body"


def decoder_of(head: bytes, options: CorpusOptions) -> Decoder:
    """The decoder of a file by its first bytes."""
    if head.startswith(GZIP_MAGIC):
        return GzipDecoder(max_ratio=options.max_ratio, what=options.where)
    if head.startswith(ZSTD_MAGIC):
        return ZstdDecoder(max_ratio=options.max_ratio, what=options.where)
    return IdentityDecoder()


def format_of(filename: str, head: bytes) -> Format:
    """The format of a file by its name, else by its first unpacked bytes. Raises UnreadableCorpus."""
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if (known := ENDINGS.get(_ending(filename))) is not None:
        return known
    if head.removeprefix(BOM).lstrip()[:1] in (b"{", b"[", b'"'):
        return "jsonl"
    raise UnreadableCorpus(f"nothing tells what {filename[:100]!r} holds", READABLE, param="input_file_id")


def has_known_ending(filename: str) -> bool:
    """True when the name alone tells the format."""
    return _ending(filename) in ENDINGS


def _ending(filename: str) -> str:
    path = PurePosixPath(filename.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED_ENDINGS else path.suffix


def parser_of(format: Format, options: CorpusOptions) -> CorpusParser:
    """The parser of a corpus. Raises InvalidInput for columns of a format that has none, and without pyarrow."""
    columns = {"text_column": options.text_column, "id_column": options.id_column}
    limit, where = options.max_line_bytes, options.where
    if format == "txt":
        for name, value in columns.items():
            if value is not None:
                raise InvalidInput(
                    f"Invalid '{name}': plain text has no columns. Leave it out.", param=name, code="invalid_value"
                )
        return LineParser(parse_text_line, max_line_bytes=limit)
    if format == "jsonl":
        return LineParser(json_line_parser(options.text_column, options.id_column), max_line_bytes=limit)
    if format == "parquet":
        try:
            from engine.corpus.parquet_parser import ParquetParser
        except ImportError as error:
            raise InvalidInput(
                "This server cannot read Parquet: the package pyarrow is not installed. Send the texts as ndjson or "
                "CSV, or ask the operator to install the extra 'parquet'.",
                code="unsupported_format",
            ) from error
        return ParquetParser(
            **columns,
            max_line_bytes=limit,
            max_bytes=options.max_bytes,
            max_ratio=options.max_ratio,
            folder=options.folder,
            where=where,
        )
    return CsvParser(**columns, delimiter="\t" if format == "tsv" else None, max_line_bytes=limit, where=where)
