"""A handler of errors names what it handles. What catches everything is listed here, each with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "providers", "engine", "api", "workers", "cli")
BROAD = ("Exception", "BaseException", "BaseExceptionGroup", "ExceptionGroup")
ALLOWED = {
    "engine/process/background.py surviving": "the one guard of work that goes on whatever one part of it meets",
    "api/http/application.py __call__": "the edge: a client gets an answer whatever its request meets",
    "cli/__main__.py exit_code_of": "the edge: a bug is one line and an exit code, not a traceback",
}
MOST = 4


def sources() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def names_all(caught: ast.expr | None) -> bool:
    """True for Exception or wider: alone, in a tuple, or as no class at all."""
    if isinstance(caught, ast.Tuple):
        return any(names_all(each) for each in caught.elts)
    name = caught.attr if isinstance(caught, ast.Attribute) else getattr(caught, "id", None)
    return caught is None or name in BROAD


def is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) == name


def broad_handlers(text: str) -> Iterator[str]:
    """The innermost function of each handler, suppression or tuple constant that covers every error."""

    def walk(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if (
            (isinstance(node, ast.ExceptHandler) and names_all(node.type))
            or (is_call_of(node, "suppress") and any(names_all(each) for each in node.args))  # type: ignore[attr-defined]
            or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and names_all(node.value))
        ):
            yield function
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    return walk(ast.parse(text), "")


def mute_guards(text: str) -> Iterator[int]:
    """The lines where `surviving` has neither a report nor a name by which its error is read."""
    blocks = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.With | ast.AsyncWith))
    for item in (item for block in blocks for item in block.items if item.optional_vars is None):
        call = item.context_expr
        if not isinstance(call, ast.Call) or not is_call_of(call, "surviving") or call.args:
            continue
        if all(each.arg != "report" for each in call.keywords):
            yield call.lineno


def test_only_the_listed_places_catch_everything() -> None:
    found = [f"{path} {function}" for path, text in sources() for function in broad_handlers(text)]
    assert sorted(found) == sorted(ALLOWED), "name the classes, or use engine/process/background"
    assert len(ALLOWED) <= MOST


def test_a_guard_reports_what_it_survives() -> None:
    assert [f"{path}:{line}" for path, text in sources() for line in mute_guards(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f():\n try: g()\n except Exception: pass", ["f"]),
        ("def f():\n try: g()\n except BaseException: raise", ["f"]),
        ("def f():\n try: g()\n except: pass", ["f"]),
        ("def f():\n try: g()\n except (OSError, builtins.Exception): pass", ["f"]),
        ("def f():\n try: g()\n except* Exception: pass", ["f"]),
        ("with contextlib.suppress(Exception): g()", [""]),
        ("ERRORS = (OSError, Exception)", [""]),
        ("def f():\n try: g()\n except (OSError, *ERRORS): pass", []),
        ("def f():\n try: g()\n except errors.StorageUnavailable: pass", []),
    ],
)
def test_the_law_sees_each_form(text: str, found: list[str]) -> None:
    assert list(broad_handlers(text)) == found


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("with surviving(): g()", [1]),
        ("with surviving(passing=StorageUnavailable): g()", [1]),
        ("with surviving() as block: g()", []),
        ("with surviving(log): g()", []),
    ],
)
def test_the_law_sees_a_mute_guard(text: str, lines: list[int]) -> None:
    assert list(mute_guards(text)) == lines
