"""What `embedmill up` says once it is ready."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.panel import Panel
from rich.text import Text

from cli.data_dir import DataDir
from cli.terminal import out

SHOWN_MODELS = 6


def welcome(url: str, place: DataDir, new_key: str | None, models: Sequence[str]) -> None:
    """Print the address, the key (this once) and what to do next; a panel on a terminal, plain lines elsewhere."""
    lines = welcome_lines(url, place, new_key, models)
    if out.is_terminal:
        out.print(Panel(Text("\n".join(lines)), title="embedmill is ready", border_style="green", expand=False))
    else:
        out.print(Text("\n".join(["embedmill is ready", *lines])))
    out.file.flush()


def welcome_lines(url: str, place: DataDir, new_key: str | None, models: Sequence[str]) -> list[str]:
    """The facts and three things to try."""
    key_file = shlex.quote(str(place.key_file))
    if new_key:
        key = f"{new_key}   (shown this once; kept in {place.key_file})"
    elif place.key_file.is_file():
        key = f"in {place.key_file}"
    else:
        key = "none kept here; `embedmill keys create` makes one"
    lines = [f"url     {url}   (docs: {url}/docs)", f"key     {key}"]
    if models:
        more = f" and {len(models) - SHOWN_MODELS} more: `embedmill models`" if len(models) > SHOWN_MODELS else ""
        lines.append(f"models  {', '.join(models[:SHOWN_MODELS])}{more}")
    model = models[0] if models else "MODEL"
    return [
        *lines,
        "",
        f'curl {url}/v1/embeddings -H "Authorization: Bearer $(cat {key_file})" \\',
        f'  -H \'Content-Type: application/json\' -d \'{{"model": "{model}", "input": "hello"}}\'',
        "embedmill embed texts.jsonl --out vectors.npy",
        "embedmill jobs list",
        "",
        "Ctrl-C stops everything.",
    ]
