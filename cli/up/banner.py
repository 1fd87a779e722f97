"""The message of `embedmill up` once it is ready."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from rich.panel import Panel
from rich.text import Text

from cli.data_dir import DataDir
from cli.output.terminal import out

SHOWN_MODELS = 6


def print_banner(url: str, data_dir: DataDir, new_key: str | None, models: Sequence[str]) -> None:
    """Print the address, the key (this once) and what to do next (outside the frame, to be copied)."""
    title, facts = "embedmill is ready", Text("\n".join(fact_lines(url, data_dir, new_key, models)))
    if out.is_terminal:
        out.print(Panel(facts, title=title, border_style="green", expand=False), soft_wrap=False)
    else:
        out.print(Text(title))
        out.print(facts)
    out.print(Text("\n".join(["", *next_lines(url, data_dir, models)])))
    out.file.flush()


def fact_lines(url: str, data_dir: DataDir, new_key: str | None, models: Sequence[str]) -> list[str]:
    """The URL, the key, and the models."""
    lines = [f"url     {url}   (docs: {url}/docs)"]
    if new_key:
        lines += [f"key     {new_key}", f"        (shown this once; kept in {_short_key_path(data_dir)})"]
    elif data_dir.key_file.is_file():
        lines.append(f"key     in {_short_key_path(data_dir)}")
    else:
        lines.append("key     none is kept here; `embedmill keys create` makes one")
    if models:
        more = f" and {len(models) - SHOWN_MODELS} more: `embedmill models`" if len(models) > SHOWN_MODELS else ""
        lines.append(f"models  {', '.join(models[:SHOWN_MODELS])}{more}")
    return lines


def next_lines(url: str, data_dir: DataDir, models: Sequence[str]) -> list[str]:
    """Three things to try, and how to end it."""
    model = models[0] if models else "MODEL"
    return [
        "Try, in another terminal:",
        f'  curl {url}/v1/embeddings -H "Authorization: Bearer $(cat {shlex.quote(_short_key_path(data_dir))})" \\',
        f'    -H \'Content-Type: application/json\' -d \'{{"model": "{model}", "input": "hello"}}\'',
        "  embedmill embed texts.jsonl --out vectors.npy",
        "  embedmill jobs list",
        "Ctrl-C here stops everything.",
    ]


def _short_key_path(data_dir: DataDir) -> str:
    """The key's path as short as it is from here."""
    return min(str(data_dir.key_file), os.path.relpath(data_dir.key_file), key=len)
