"""A PostgreSQL of the tests' own, from the distribution's binaries: to be stopped, killed and starved at will."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from tests.services import is_away, run_async
from tests.system.stack import free_port
from tests.waiting import wait_until

START_S = 60.0
ROLE = "gateway"  # no superuser: limits must hold for it


def binaries() -> Path:
    """The folder with initdb and postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        is_away("PostgreSQL's own binaries", "no /usr/lib/postgresql/*/bin/initdb")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


class PostgresCluster:
    """One server with one data directory. Commits survive its kill, not the machine's: fsync is off."""

    def __init__(self) -> None:
        # Not in pytest's temporary folders: those are for their owner alone, and the server has another.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="embedmill-postgres-"))
        self._bin = binaries()
        self.port = free_port()
        self._as: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            ids = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
            self._as = ["setpriv", *ids, "--pdeathsig", "INT", "--"]
        self._server: subprocess.Popen[bytes] | None = None
        options = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        command = [*self._as, str(self._bin / "initdb"), "-D", "data", *options]
        made = subprocess.run(command, cwd=folder, capture_output=True, check=False, text=True)
        assert made.returncode == 0, made.stderr
        self.start()
        self.ask(f"CREATE ROLE {ROLE} LOGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        options = ["-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._folder), "-c", "fsync=off"]
        with (self._folder / "server.out").open("ab") as out:
            self._server = subprocess.Popen(
                [*self._as, self._bin / "postgres", "-D", self._folder / "data", *options, "-c", "max_connections=150"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(self.answers, START_S, what="PostgreSQL's start")

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT is pg_ctl's `-m immediate`: no goodbye to anyone, recovery at the next start; SIGINT is `-m fast`."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(30)
            self._server = None

    def restart(self, how: signal.Signals = signal.SIGQUIT) -> None:
        self.stop(how)
        self.start()

    def answers(self) -> bool:
        assert self._server is None or self._server.poll() is None, (self._folder / "server.out").read_text()
        try:
            self.ask("SELECT 1")
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        return True

    def create(self) -> str:
        """A fresh, empty database's URL, for a role that is no superuser."""
        name = f"mill_{secrets.token_hex(4)}"
        self.ask(f"CREATE DATABASE {name} OWNER {ROLE}")
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{name}"

    def ask(self, statement: str) -> object:
        """One statement, as the superuser."""

        async def run() -> object:
            connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", timeout=5.0)
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return run_async(run())
