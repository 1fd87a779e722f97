"""Opens a file of texts as the corpus that its format, its name or its content says."""

from __future__ import annotations

from pathlib import Path

from cli.errors import UsageError
from cli.files.corpus import Corpus
from cli.files.csv_corpus import Csv
from cli.files.source import COMPRESSED_ENDINGS, STDIN, Source, refuse_other_formats
from cli.files.text_corpus import JsonArray, JsonLines, PlainText, holds_objects, json_array

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}
DECOMPRESS_PARQUET = "unpack it first: Parquet packs its own columns"
FORMATS = ("jsonl", "csv", "tsv", "txt", "parquet")
READABLE_FORMATS = "readable are .jsonl, .ndjson, .json, .csv, .tsv and .txt, each also with .gz or .zst, and .parquet"


def open_corpus(
    path: Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Corpus:
    """Open a file by `format`, else by its ending, else by its content; "-" is stdin.

    Raises UsageError for what is not readable, or not for certain, and for a column that is not there.
    """
    _check_name(path, format)
    source = Source(path, encoding=encoding)
    kind = _kind(source, format)
    if delimiter is not None and kind not in ("csv", "tsv"):
        raise UsageError(f"{source.name} has no delimiter", "--delimiter is for CSV files")
    if kind == "parquet":
        if encoding is not None:
            raise UsageError("a Parquet file needs no --encoding", "leave it out")
        return _open_parquet(source, text_column, id_column)
    if format is None:
        refuse_other_formats(source)
    if kind in ("csv", "tsv"):
        if delimiter is None and kind == "tsv":
            delimiter = "\t"
        return Csv(source, text_column, id_column, delimiter)
    if kind == "jsonl":
        return _open_json(source, text_column, id_column)
    if text_column or id_column:
        raise UsageError("a text file has no columns", "leave out --text-column and --id-column")
    if format is None and holds_objects(source):
        raise UsageError(f"{source.name} holds JSON objects, not plain texts", "give --format jsonl, or --format txt")
    return PlainText(source)


def _check_name(path: Path, format: str | None) -> None:
    """Raises UsageError for an unknown format, and for a name that says that the file cannot be read."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"there is no format {format!r}", f"--format is one of {', '.join(FORMATS)}")
    if format is None and path != STDIN and path.is_file() and path.suffix and _ending(path) not in ENDINGS:
        raise UsageError(f"{path.name}: its ending does not tell what it holds", f"give --format; {READABLE_FORMATS}")
    if path.suffix.lower() in COMPRESSED_ENDINGS and _ending(path) == ".parquet":
        raise UsageError(f"{path.name} is a packed Parquet file", DECOMPRESS_PARQUET)


def _open_json(source: Source, text_column: str | None, id_column: str | None) -> Corpus:
    values = json_array(source)
    if values is not None:
        return JsonArray(source, values, text_column, id_column)
    return JsonLines(source, text_column, id_column)


def _open_parquet(source: Source, text_column: str | None, id_column: str | None) -> Corpus:
    """Open a Parquet file. Raises UsageError where pyarrow is not installed."""
    try:
        from cli.files.parquet_corpus import Parquet
    except ImportError as error:
        raise UsageError(
            f"{source.name} is a Parquet file, and the package pyarrow is not installed",
            "`pip install pyarrow`, or export its texts as .jsonl or .csv",
        ) from error
    return Parquet(source, text_column, id_column)


def _ending(path: Path) -> str:
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED_ENDINGS else path).suffix.lower()


def _kind(source: Source, format: str | None) -> str:
    """The format of the file; Parquet is recognised by its first bytes, whatever the name."""
    kind = format or ENDINGS.get(source.suffix)
    if source.is_parquet:
        if format not in (None, "parquet"):
            raise UsageError(f"{source.name} is a Parquet file, not {format}", "leave out --format")
        if kind != "parquet":
            source.notes.append(f"{source.name} is read as Parquet, which it is")
        kind = "parquet"
    if kind == "parquet" and source.compression:
        raise UsageError(f"{source.name} is a packed Parquet file", DECOMPRESS_PARQUET)
    if kind is not None:
        return kind
    refuse_other_formats(source)
    if holds_objects(source) or json_array(source) is not None:
        source.notes.append(f"{source.name} is read as JSON lines")
        return "jsonl"
    raise UsageError(f"nothing tells what {source.name} holds", f"give --format: {', '.join(FORMATS)}")
