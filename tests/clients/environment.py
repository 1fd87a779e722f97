"""A virtual environment for a client that is other people's code, kept in a cache outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

INSTALL_S = 900


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/embedmill-clients, or the same in ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedmill-clients"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Environment:
    """`requirements`, the newest that the registry has, installed at the first use. `name`: of its folder."""

    def __init__(self, name: str, requirements: Sequence[str]) -> None:
        self.folder = cache_folder() / name
        self._requirements = requirements

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self) -> None:
        """Raises subprocess.CalledProcessError where the registry does not have them."""
        stamp = self.folder / "installed"
        if stamp.exists() and stamp.read_text() == "\n".join(self._requirements):
            return
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", self.folder], check=True, timeout=INSTALL_S)
        into = os.environ | {"VIRTUAL_ENV": str(self.folder)}
        subprocess.run([uv, "pip", "install", "--quiet", *self._requirements], check=True, env=into, timeout=INSTALL_S)
        stamp.write_text("\n".join(self._requirements))

    def version(self, package: str) -> str:
        ask = f"import importlib.metadata as found; print(found.version({package!r}))"
        return self.run(["-c", ask]).stdout.strip()

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python, without what this process has in its environment for OpenAI or for us."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "EMBEDMILL_"))}
        return subprocess.run(
            [self.python, *arguments],
            env=kept | dict(environment or {}),
            cwd=folder,
            capture_output=True,
            check=False,
            text=True,
            timeout=timeout_s,
        )
