"""The laws of the house that a machine can keep."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from api.http.errors import STATUS
from models import errors, file_errors
from models.errors import Disposition, EmbedmillError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "providers", "engine", "api", "workers", "cli")
MAX_LINES = 400
STATUSES = {status.value for status in HTTPStatus if status.value >= 400} | {499}
LONGEST_POLL_STEP_S = 0.1
NOT_PURE = {"asyncio", "httpx", "aiohttp", "os", "socket", "time", "random", "subprocess", "requests", "urllib.request"}


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_generic_names_mean_this_checkout(package: str) -> None:
    module = importlib.import_module(package)
    assert Path(module.__file__ or "").resolve() == ROOT / package / "__init__.py"


def test_alembic_is_the_library() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert "site-packages" in str(importlib.import_module("alembic.config").__file__)


@pytest.mark.parametrize("path", sources(*PACKAGES, "alembic", "examples", "tests", "bench"), ids=name)
def test_a_file_has_one_idea(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines: find its second idea"


@pytest.mark.parametrize("path", sources("providers"), ids=name)
def test_a_provider_is_pure(path: Path) -> None:
    found = set(imports(path))
    assert not {each for each in found if each in NOT_PURE or each.split(".")[0] in NOT_PURE}
    assert not {each for each in found if each.split(".")[0] in PACKAGES} - {
        each for each in found if each.split(".")[0] in ("models", "providers")
    }
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert not [
        call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("open", "print", "input")
    ]


def error_statuses(path: Path) -> Iterator[tuple[int, int]]:
    """Whole numbers that read as HTTP error statuses, with their lines: arguments, comparisons, dictionary keys.

    A size, a count or a limit is written otherwise: as a named constant, a default, or a term of a product.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        held: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            held = [*node.args, *(each.value for each in node.keywords if each.arg in ("status", "status_code"))]
        elif isinstance(node, ast.Compare):
            held = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            held = [*node.keys]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            held = [*node.elts]
        for each in held:
            if isinstance(each, ast.Constant) and type(each.value) is int and each.value in STATUSES:
                yield each.lineno, each.value


@pytest.mark.parametrize(
    "path", [p for p in sources("api", "engine", "models") if name(p) != "api/http/errors.py"], ids=name
)
def test_error_statuses_live_in_one_file(path: Path) -> None:
    allowed = {
        # Plays an upstream in this process: 400 and 404 are that upstream's words.
        "engine/upstream/in_process.py": {400, 404},
        # The answer of a proxy before the upstream, which no provider's table sees.
        "engine/upstream/http.py": {407},
        # An upstream's answers that no text of a caller can bring about, and those that its parameters can.
        "engine/embedding/diagnosis.py": {400, 401, 402, 404, 422},
        # Of a line in an error file, which is no answer of ours.
        "engine/batches/variants.py": {404},
        # A log line is owed for every failed request.
        "api/http/middleware.py": {400, 500},
        # Not an error of a request but the answer to the question.
        "api/health.py": {503},
    }.get(name(path), set())
    strays = [(line, status) for line, status in error_statuses(path) if status not in allowed]
    assert strays == [], f"{name(path)}: raise an error of models/errors.py; its status belongs in api/http/errors.py"


def test_every_error_has_a_status_a_code_and_a_disposition() -> None:
    def kinds(kind: type[EmbedmillError]) -> Iterator[type[EmbedmillError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    for kind in set(kinds(EmbedmillError)):
        assert any(each in STATUS for each in kind.__mro__) and kind.code and kind.disposition in Disposition
        if kind.disposition is Disposition.RETRY:
            assert kind.retryable, kind
    assert all(100 <= status <= 599 for status in STATUS.values())
    known = {**vars(errors), **vars(file_errors)}
    assert set(STATUS) <= {each for each in known.values() if isinstance(each, type)}


def test_the_import_contract_holds() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    checked = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " 0 broken" in checked.stdout


@pytest.mark.parametrize("path", sources("engine"), ids=name)
def test_the_engine_knows_neither_edge(path: Path) -> None:
    roots = {each.split(".")[0] for each in imports(path)}
    assert not roots & {"fastapi", "starlette", "uvicorn", "typer", "rich"}
    assert "celery" not in roots or name(path) == "engine/queue/broker.py"


@pytest.mark.parametrize("path", sources("tests"), ids=name)
def test_no_test_patches_or_sleeps_for_a_guess(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not {"unittest.mock", "mock", "pytest_mock"} & set(imports(path))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    patched = [node.lineno for node in attributes if node.attr == "setattr" and isinstance(node.value, ast.Name)]
    assert patched == [], f"{name(path)} patches at lines {patched}: fakes enter through Runtime"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    slept = [call.args[0] for call in calls if call.func.attr == "sleep" and call.args]  # type: ignore[attr-defined]
    constants = [(each.lineno, each.value) for each in slept if isinstance(each, ast.Constant)]
    guesses = [line for line, value in constants if isinstance(value, int | float) and value > LONGEST_POLL_STEP_S]
    assert guesses == [], f"{name(path)} sleeps for a guess at lines {guesses}: wait for the condition"
