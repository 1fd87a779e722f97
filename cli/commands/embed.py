"""`embedmill embed`: the command and its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, UrlOption


class Truncate(StrEnum):
    """What the server does with a text that is too long."""

    NONE = "none"
    END = "end"
    MEAN = "mean"


FileArgument = Annotated[
    Path,
    typer.Argument(help=".jsonl, .ndjson, .json, .csv, .tsv or .txt (each also .gz or .zst), or .parquet; - is stdin"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Default: the server's only one; with several it must be named.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="A .npy, .ndjson, .parquet or .arrow file, or - (ndjson). Default: FILE's name as .npy."
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="jsonl, csv, tsv, txt or parquet. Default: by FILE's ending, or content."),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(help="Of the text, e.g. cp1252. Default: UTF-8, or UTF-16 and UTF-32 where it can be told."),
]
DelimiterOption = Annotated[
    str | None, typer.Option(help="Between columns of a CSV file: one character, or tab. Default: found.")
]
TextColumnOption = Annotated[str | None, typer.Option(help="Default: `text`, else the only column that holds strings.")]
IdColumnOption = Annotated[str | None, typer.Option(help="Default: `id`, where there is one.")]
DimensionsOption = Annotated[int | None, typer.Option(min=1, help="Width of the vectors. Default: the model's own.")]
InputTypeOption = Annotated[str | None, typer.Option(help="query, document, …; for models that tell them apart.")]
TruncateOption = Annotated[
    Truncate | None,
    typer.Option(help="A text that is too long: none refuses it (default), end cuts it, mean averages its parts."),
]
MaxCostOption = Annotated[
    str | None, typer.Option(metavar="USD", help="Pause the job before it costs more. Default: no ceiling.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would cost and how long it would take, and embed nothing.")
]
NewOption = Annotated[
    bool, typer.Option("--new", help="Start another job, where this file was sent with these options before.")
]


def embed(
    file: FileArgument,
    model: ModelOption = None,
    target: OutOption = None,
    format: FormatOption = None,
    encoding: EncodingOption = None,
    delimiter: DelimiterOption = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    dimensions: DimensionsOption = None,
    input_type: InputTypeOption = None,
    truncate: TruncateOption = None,
    max_cost: MaxCostOption = None,
    dry_run: DryRunOption = False,
    new: NewOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Embed a file of texts into a file of vectors: row i is the vector of record i.

    Examples:

    - `embedmill embed texts.jsonl`
    - `embedmill embed docs.csv --text-column body --id-column sku --out vectors.parquet`
    - `embedmill embed texts.jsonl --dry-run`, then `embedmill embed texts.jsonl --max-cost 2.50`
    - `zcat texts.txt.gz | embedmill embed - --format txt --out - > vectors.ndjson`

    A record that cannot be embedded keeps its row (NaN in .npy, null and an error elsewhere), and the exit code is 3.
    A file that cannot be read for certain is refused before anything is spent.
    Ctrl-C leaves the job running; the same command comes back to it.
    """
    from cli.client.api_client import connect
    from cli.commands.embed_file import EmbedRequest, embed_file

    with connect(url, api_key) as client:
        request = EmbedRequest(
            file=file,
            model=model,
            target=target,
            text_column=text_column,
            id_column=id_column,
            format=format,
            encoding=encoding,
            delimiter=delimiter,
            dimensions=dimensions,
            input_type=input_type,
            truncate=truncate.value if truncate else None,
            max_cost=max_cost,
            dry_run=dry_run,
            new=new,
        )
        exit_code = embed_file(request, client)
    raise typer.Exit(exit_code)
