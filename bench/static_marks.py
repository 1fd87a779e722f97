"""Sizes and shapes of the source that a reader meets: counted from the files, nothing is run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.call_trace import PACKAGES

MAX_COMPLEXITY = 12
HANDLER = "create_embeddings"
BROAD = ("Exception", "BaseException")


def static_marks(root: Path) -> dict[str, Any]:
    """The marks of the checkout at `root`."""
    sources = {path: path.read_text() for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    trees = {path.relative_to(root).as_posix(): ast.parse(text) for path, text in sources.items()}
    handlers = [node for tree in trees.values() for node in _functions(tree) if node.name == HANDLER]
    lines = {path.relative_to(root).as_posix(): len(text.splitlines()) for path, text in sources.items()}
    return {
        "create_embeddings_lines": [(node.end_lineno or 0) - node.lineno + 1 for node in handlers],
        "functions_above_complexity_12": _complex_functions(root),
        "broad_excepts": [place for name, tree in trees.items() for place in _broad_excepts(name, tree)],
        "entries_of_engine": _entries(root / "engine"),
        "entries_of_engine_jobs": _entries(root / "engine" / "jobs"),
        "source_files": len(lines),
        "source_lines": sum(lines.values()),
        "source_lines_by_package": {
            package: sum(count for name, count in lines.items() if name.startswith(f"{package}/"))
            for package in PACKAGES
        },
        "openai_adapter_lines": lines["providers/openai.py"],
        "openai_adapter_needs": {name: lines[name] for name in _imported_files("providers/openai.py", trees)},
    }


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _complex_functions(root: Path) -> list[str]:
    """Ruff's findings: file, line, function and its complexity."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901", "--output-format", "concise"]
    threshold = f"lint.mccabe.max-complexity={MAX_COMPLEXITY}"
    ran = subprocess.run(
        [*command, "--config", threshold, *PACKAGES], cwd=root, capture_output=True, text=True, check=False
    )
    if ran.returncode not in (0, 1):
        raise RuntimeError(ran.stderr)
    return [line for line in ran.stdout.splitlines() if "C901" in line]


def _broad_excepts(name: str, tree: ast.AST) -> list[str]:
    return [
        f"{name}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        for caught in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])
        if caught is None or (isinstance(caught, ast.Name) and caught.id in BROAD)
    ]


def _entries(folder: Path) -> int:
    return sum(not path.name.startswith("__pycache__") for path in folder.iterdir())


def _imported_files(name: str, trees: dict[str, ast.Module]) -> list[str]:
    """Files of the same package that the file imports, directly or through others."""
    package = name.partition("/")[0]
    found: list[str] = []
    pending = [name]
    while pending:
        for node in ast.walk(trees[pending.pop()]):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(package):
                continue
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for file in (f"{module.replace('.', '/')}.py" for module in modules):
                if file in trees and file != name and file not in found:
                    found.append(file)
                    pending.append(file)
    return sorted(found)
