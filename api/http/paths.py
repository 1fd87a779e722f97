"""Other paths of our routes: what clients make of a base URL that ends too early, too late, or in another API's prefix.

They are served, never redirected: a redirect would have to name a scheme and a host, and many clients follow none for
POST. A path is looked up only by its decoded form, here and in the table of routes, so that the guard of a route is the
same by whichever path it is reached. `..` is a name like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from re import Pattern

# In front of a path, in any number and order: `/v1/v1/embeddings`, `/api/v1/embeddings`, `/openai/v1/embeddings`.
PREFIXES = frozenset({"v1", "api", "openai"})
# `/api/embeddings` is a path of Ollama's, with another body: it is no other name of ours.
OTHER_APIS = ("api",)
DEPLOYMENTS = "deployments"


class PathTable:
    """The paths of the routes, by which the path of a request is understood."""

    def __init__(self, fixed: Iterable[str], patterns: Iterable[Pattern[str]], *, root_path: str = "") -> None:
        self._fixed = frozenset(fixed)
        self._patterns = tuple(patterns)
        self._root_path = root_path
        # What follows /v1 in our own routes: "embeddings", "models".
        versioned = [*self._fixed, *(pattern.pattern.removeprefix("^") for pattern in self._patterns)]
        self._resources = frozenset(path.split("/")[2] for path in versioned if path.startswith("/v1/"))

    def canonical(self, path: str) -> str:
        """The path of the route that is meant; the path as it is where none is, or where it is one already."""
        if self._is_known(path):
            return path
        root = self._root_path
        inner = path[len(root) :] if root and path.startswith(f"{root}/") else path
        if inner != path and self._is_known(inner):
            return inner
        other = self._without_prefixes(inner)
        return other if other is not None and self._is_known(other) else path

    def _is_known(self, path: str) -> bool:
        return path in self._fixed or any(pattern.match(path) for pattern in self._patterns)

    def _without_prefixes(self, path: str) -> str | None:
        segments = path.split("/")[1:]
        count = 0
        while count < len(segments) and segments[count] in PREFIXES:
            count += 1
        first = segments[count] if count < len(segments) else ""
        if first == DEPLOYMENTS:
            return "/".join(["", "openai", *segments[count:]])
        if first in self._resources and tuple(segments[:count]) != OTHER_APIS:
            return "/".join(["", "v1", *segments[count:]])
        return None
