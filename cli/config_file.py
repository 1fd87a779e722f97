"""The default path of embedmill.toml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DEFAULT_NAME = "embedmill.toml"


def with_config(environ: Mapping[str, str], file: Path | None = None) -> dict[str, str]:
    """The environment with EMBEDMILL_CONFIG: the file given, else as it is set, else embedmill.toml where we stand."""
    if file is None and not environ.get("EMBEDMILL_CONFIG") and Path(DEFAULT_NAME).is_file():
        file = Path(DEFAULT_NAME)
    return {**environ, "EMBEDMILL_CONFIG": str(file.absolute())} if file is not None else dict(environ)
