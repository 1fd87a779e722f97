"""A refusal says what to do next: no message that reaches a caller only states a fact."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import errors, file_errors
from models.errors import CapacityError, NoRoute, RequestError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "engine", "providers")
# Messages that no caller gets: of workers, and of what is under way in this process.
INTERNAL = {
    "engine/jobs/execution/results_writer.py",
    "engine/jobs/recording/duplicate_outcomes.py",
    "engine/cancellation.py",
    "engine/ledger/usage_buffer.py",
    "engine/jobs/recording/cost_limit.py",
}
# Whose message is made of what stands elsewhere: an advice is in it, or added where it is caught.
ADVICE = re.compile(
    r"\b(send|try|use|read|see|make|leave|choose|name|compress|correct|set|expected|supported|must|may have|"
    r"at most|each name|missing required|check|possible|resume|submit|poll|lists?)\b",
    re.IGNORECASE,
)


def kinds(kind: type[BaseException]) -> Iterator[str]:
    yield kind.__name__
    for each in kind.__subclasses__():
        yield from kinds(each)


REFUSALS = {name for root in (RequestError, CapacityError, NoRoute) for name in kinds(root)} & {
    *vars(errors),
    *vars(file_errors),
}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
FILES = [path for path in FILES if str(path.relative_to(ROOT)) not in INTERNAL]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The messages that a file gives its refusals: those that are written there and say anything by themselves."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            message = node.args[0]
            if name in REFUSALS and isinstance(message, ast.Constant | ast.JoinedStr):
                parts = [message] if isinstance(message, ast.Constant) else message.values
                written = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
                holes = [ast.unparse(part.value) for part in parts if isinstance(part, ast.FormattedValue)]
                # What another error says, or a part with the advice, is put into it.
                if not any(
                    re.search(r"message|problem|advi|words|reason|TO_DO|_what_|near|error", hole) for hole in holes
                ):
                    yield node.lineno, written


def test_there_are_messages_to_look_at() -> None:
    assert sum(1 for path in FILES for _ in texts(path)) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_refusal_says_what_to_do(path: Path) -> None:
    assert [(line, text) for line, text in texts(path) if not ADVICE.search(text)] == []
