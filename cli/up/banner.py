"""The message of `embedmill up` once it is ready."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.panel import Panel
from rich.text import Text

from cli.data_dir import DEFAULT_DATA_DIR, DataDir
from cli.output.terminal import out

SHOWN_MODELS = 6
FRAME_CELLS = 4


def print_banner(
    url: str, data_dir: DataDir, new_key: str | None, models: Sequence[str], accounts: Sequence[str] = ()
) -> None:
    """Print the address, the key (this once) and what to do next (outside the frame, to be copied)."""
    title, lines = "embedmill is ready", fact_lines(url, data_dir, new_key, models, accounts)
    facts = Text("\n".join(lines))
    if out.is_terminal and fits_frame(lines, out.width):
        out.print(Panel(facts, title=title, border_style="green", expand=False), soft_wrap=False)
    else:
        out.print(Text(title))
        out.print(facts)
    out.print(Text("\n".join(["", *next_lines(url, data_dir, models)])))
    out.file.flush()


def fits_frame(lines: Sequence[str], width: int) -> bool:
    """False where a frame would break a line, and with it a path or a key that is to be copied."""
    return max(map(cell_len, lines)) + FRAME_CELLS <= width


def fact_lines(
    url: str, data_dir: DataDir, new_key: str | None, models: Sequence[str], accounts: Sequence[str] = ()
) -> list[str]:
    """The URL, the key, the models, and the accounts that serve them."""
    lines = [f"url     {url}   (docs: {url}/docs)"]
    if new_key:
        lines += [f"key     {new_key}", f"        (shown this once; kept in {_quoted_key_file(data_dir)})"]
    elif data_dir.key_file.is_file():
        lines.append(f"key     in {_quoted_key_file(data_dir)}")
    else:
        lines.append(f"key     none is kept here; `{embedmill(data_dir, 'keys create')}` makes one")
    if models:
        more = (
            f" and {len(models) - SHOWN_MODELS} more: `{embedmill(data_dir, 'models')}`"
            if len(models) > SHOWN_MODELS
            else ""
        )
        lines.append(f"models  {', '.join(models[:SHOWN_MODELS])}{more}")
    if len(accounts) > 1:
        lines.append(f"served  by {', '.join(accounts)}")
    return lines


def next_lines(url: str, data_dir: DataDir, models: Sequence[str], program: str | None = None) -> list[str]:
    """Three things to try, each as it works in a new terminal, and how to end it."""
    model = models[0] if models else "MODEL"
    key = f"$(cat {_quoted_key_file(data_dir)})" if data_dir.key_file.is_file() else "$EMBEDMILL_API_KEY"
    body = json.dumps({"model": model, "input": "hello"}, ensure_ascii=False)
    choice = f" --model {shlex.quote(model)}" if len(models) > 1 else ""
    where = ", in this folder" if _is_found_here(data_dir) else ""
    return [
        f"Try, in another terminal{where}:",
        f'  curl {url}/v1/embeddings -H "Authorization: Bearer {key}" \\',
        f"    -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f"  echo hello | {embedmill(data_dir, f'embed - --format txt{choice} --out vectors.npy', program)}",
        f"  {embedmill(data_dir, 'jobs list', program)}",
        "Ctrl-C here stops everything.",
    ]


def embedmill(data_dir: DataDir, arguments: str, program: str | None = None) -> str:
    """A command as a new terminal takes it: in this folder for the default data directory, else anywhere."""
    setting = "" if _is_found_here(data_dir) else f"EMBEDMILL_DATA_DIR={shlex.quote(str(data_dir.path.absolute()))} "
    return f"{setting}{program or find_program(data_dir)} {arguments}"


def find_program(data_dir: DataDir, prefix: str = sys.prefix, python: str = sys.executable) -> str:
    """`embedmill`, or the path of its script in a virtual environment, which a new terminal has not activated."""
    script = Path(python).parent / "embedmill"
    found = shutil.which("embedmill")
    is_installed = found is not None and not Path(found).is_relative_to(prefix)
    if is_installed or not script.is_file() or prefix == sys.base_prefix:
        return "embedmill"
    return shlex.quote(_near(script) if _is_found_here(data_dir) else str(script))


def _is_found_here(data_dir: DataDir) -> bool:
    """True for the directory that commands without EMBEDMILL_DATA_DIR look into, in the current folder."""
    return data_dir.path.absolute() == DEFAULT_DATA_DIR.absolute()


def _quoted_key_file(data_dir: DataDir) -> str:
    """The path as a shell takes it from any folder."""
    return shlex.quote(str(data_dir.key_file.absolute()))


def _near(path: Path) -> str:
    """The path as short as it is from here."""
    return min(str(path), os.path.relpath(path), key=len)
