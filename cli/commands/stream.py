"""`embedmill stream`: the command and its options."""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.embed import DimensionsOption, InputTypeOption, ModelOption, TruncateOption
from cli.commands.options import ApiKeyOption, UrlOption, id_check


class EncodingFormat(StrEnum):
    """How vectors are written."""

    FLOAT = "float"
    BASE64 = "base64"


OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="A file. One that an earlier run has begun is gone on with. Default: stdout."),
]
EncodingOption = Annotated[
    EncodingFormat,
    typer.Option("--encoding-format", help="float: numbers. base64: little-endian float32, a third of the size."),
]
ResumeOption = Annotated[
    str | None, typer.Option(metavar="JOB", help="Write the results of this job, and read nothing from stdin.")
]
NewOption = Annotated[bool, typer.Option("--new", help="Start another job, where this input was sent before.")]


def stream(
    target: OutOption = None,
    model: ModelOption = None,
    dimensions: DimensionsOption = None,
    input_type: InputTypeOption = None,
    truncate: TruncateOption = None,
    encoding_format: EncodingOption = EncodingFormat.FLOAT,
    resume: ResumeOption = None,
    new: NewOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Embed lines from stdin into result lines on stdout: one for each, in order, as they become ready.

    Examples:

    - `embedmill stream < in.jsonl > out.jsonl`
    - `embedmill stream --out out.jsonl < in.jsonl`: the same command again goes on after the last whole line

    A line is a JSON string, an array of token ids, or {"id": …, "text": …}; its result {"index", "id", "embedding"},
    or an error in its place, and then the exit code is 3. stdin is read to its end first, then one job runs on the
    server: whatever ends this command, the same input with the same options comes back to it and pays nothing twice.
    """
    from cli.client.api_client import connect
    from cli.commands.stream_lines import StreamRequest, stream_lines
    from cli.errors import UsageError

    if resume is not None:
        id_check("job", "job_", "embedmill jobs list")(resume)
        if new or any(each is not None for each in (model, dimensions, input_type, truncate)):
            raise UsageError("--resume goes on with a job as it is", "leave out --new and the options of a new job")
    with connect(url, api_key) as client:
        request = StreamRequest(
            target=target,
            model=model,
            dimensions=dimensions,
            input_type=input_type,
            truncate=truncate.value if truncate else None,
            encoding=encoding_format.value,
            resume=resume,
            new=new,
        )
        stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
        exit_code = stream_lines(request, client, stdin)
    raise typer.Exit(exit_code)
