"""README's blocks under "Use it" run as they are printed, one after the other, as a newcomer would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PRINTED_URL = "http://127.0.0.1:8080"
READY_S = 100.0
BLOCK_S = 110


def blocks() -> list[str]:
    """The shell blocks of "Use it", in order."""
    part = (ROOT / "README.md").read_text("utf-8").partition("\n## Use it\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", part, re.M | re.S)


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that looks like a checkout after `make up`, and the URL that it listens on."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    data_dir = tmp_path / ".embedmill"
    processes = Processes(tmp_path, {})
    try:
        processes.start("up", [*EMBEDMILL, "up", "--port", "0", "--data-dir", str(data_dir)])

        def ready_url() -> str | None:
            processes.check()
            try:
                url = (data_dir / "url").read_text().strip()
                return url if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200 else None
            except (OSError, httpx.HTTPError):
                return None

        yield tmp_path, wait_until(ready_url, READY_S, what="readiness") or ""
    finally:
        processes.close()


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_every_block_of_use_it_works_as_printed(checkout: tuple[Path, str]) -> None:
    folder, url = checkout
    shown = blocks()
    assert len(shown) >= 8
    # One shell for all of them, since later blocks use variables of earlier ones. A block that fails names itself.
    script = ["set -euo pipefail", "trap 'echo \"block $BLOCK failed\" >&2' ERR"]
    for number, block in enumerate(shown):
        script += [f"BLOCK={number}", block.replace(PRINTED_URL, url)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=BLOCK_S * len(shown),
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    assert "2 vectors of 256 numbers" in ran.stdout  # Node
    assert "3 vectors of 256 numbers" in ran.stdout  # Python
    assert (folder / "vectors.npy").is_file()
    assert (folder / "vectors.parquet").is_file()
