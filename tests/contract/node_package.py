"""The official OpenAI package for Node, installed once into a folder outside of the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

VERSION = "7"  # the major line that is current; npm takes its newest
INSTALL_S = 100


def install() -> Path:
    """The folder with the package in its node_modules. Skips the test where there is no node, or no registry."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            _is_away(f"{tool} is not installed")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = caches / "embedmill-tests" / f"node-openai-{VERSION}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "node_modules" / "openai" / "package.json").is_file():
            _run_npm(home)
    return home


def _run_npm(home: Path) -> None:
    (home / "package.json").write_text('{"name":"embedmill-tests","private":true}\n')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"openai@{VERSION}"]
    try:
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        _is_away(f"npm install openai took more than {INSTALL_S} s")
    if done.returncode:
        _is_away(f"npm install openai failed: {done.stderr[-500:]}")


def _is_away(reason: str) -> NoReturn:
    """A skip at home, a failure in CI."""
    if os.environ.get("EMBEDMILL_TEST_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
