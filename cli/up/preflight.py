"""Checks of `embedmill up` before it starts anything: configuration, ports, data directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cli.data_dir import DataDir
from cli.errors import CliError, Failure, UsageError
from cli.up.embedded_valkey import find_binary
from cli.up.listen_address import usable_port
from engine.access.keys import load_pepper
from engine.config import config_file
from engine.config.proxies import proxy_url
from engine.config.settings import Settings

SQLITE = "sqlite+aiosqlite:///"
DATA_DIR_FIX = "make it writable for this user, or choose another --data-dir"


def check_configuration(settings: Settings, host: str) -> None:
    """Check everything that needs neither a folder nor a free port. Raises ConfigError, CliError."""
    config_file.load(settings.config, data_dir=settings.data_dir)
    if settings.upstream_proxy.strip():
        proxy_url(settings.upstream_proxy.strip(), "EMBEDMILL_UPSTREAM_PROXY")
    usable_port(host, 0)
    if not (settings.redis_url or settings.broker_url):
        find_binary()


def check_ports(host: str, port: int, settings: Settings) -> int:
    """The port of the API; the one of the operators' pages is free too. Raises CliError."""
    if settings.ops_port and settings.ops_port == port:
        raise UsageError(f"--port and EMBEDMILL_OPS_PORT are both {port}", "give one of them another number")
    if settings.ops_port:
        usable_port(host, settings.ops_port, name="EMBEDMILL_OPS_PORT")
    return usable_port(host, port)


def check_data_dir(data_dir: DataDir, settings: Settings) -> None:
    """Check that the folder and the database file are writable, and that the pepper is usable.

    Raises CliError, ConfigError.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=data_dir.path) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CliError(f"{data_dir.path} takes no files: {reason}", DATA_DIR_FIX, failure=Failure.MACHINE) from error
    url = settings.sqlalchemy_url
    if url.startswith(SQLITE):
        _check_file(Path(url.removeprefix(SQLITE)))
    load_pepper(settings.key_pepper, settings.data_dir)


def _check_file(path: Path) -> None:
    """A database file that is there can be read and written."""
    if path.is_dir():
        raise CliError(
            f"the database {path} is a folder", "remove it, or choose another place", failure=Failure.MACHINE
        )
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise CliError(f"the database {path} cannot be written", DATA_DIR_FIX, failure=Failure.MACHINE)
