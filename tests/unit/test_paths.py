"""Which route is meant by a path that is not quite one of ours."""

from __future__ import annotations

import re

import pytest

from api.http.paths import PathTable

FIXED = ["/v1/embeddings", "/v1/models", "/v1/embeddings/jobs", "/healthz", "/api/version"]
PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"^/v1/models/(?P<model>.*)$",
        r"^/v1/embeddings/jobs/(?P<id>[^/]+)$",
        r"^/openai/deployments/(?P<model>.*)/embeddings$",
    )
]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/embeddings", "/v1/embeddings"),
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/openai/v1/x", "/v1/models/openai/v1/x"),
        ("/embeddings/jobs/job_1", "/v1/embeddings/jobs/job_1"),
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/openai/v1/embeddings", "/v1/embeddings"),
        ("/openai/embeddings", "/v1/embeddings"),
        ("/openai/models", "/v1/models"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/v1/models/a/b", "/v1/models/a/b"),
        ("/v1/openai/deployments/a/b/embeddings", "/openai/deployments/a/b/embeddings"),
        ("/deployments/a/embeddings", "/openai/deployments/a/embeddings"),
        # Routes of their own stay what they are.
        ("/v1/models/v1/embeddings", "/v1/models/v1/embeddings"),
        ("/api/version", "/api/version"),
        # Of another API, or of nothing.
        ("/api/embeddings", "/api/embeddings"),
        ("/api/v1/nothing", "/api/v1/nothing"),
        ("/v2/embeddings", "/v2/embeddings"),
        ("/V1/embeddings", "/V1/embeddings"),
        ("/x/v1/embeddings", "/x/v1/embeddings"),
        ("/v1/../embeddings", "/v1/../embeddings"),
        ("/healthz/../v1/embeddings", "/healthz/../v1/embeddings"),
        ("/v1", "/v1"),
        ("/", "/"),
        ("", ""),
        ("/api/healthz", "/api/healthz"),
    ],
)
def test_what_is_meant(path: str, meant: str) -> None:
    assert PathTable(FIXED, PATTERNS).canonical(path) == meant


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/embed/v1/embeddings", "/v1/embeddings"),
        ("/embed/embeddings", "/v1/embeddings"),
        ("/embed/healthz", "/healthz"),
        ("/v1/embeddings", "/v1/embeddings"),  # the proxy takes it away
        ("/embed", "/embed"),
        ("/embedded/v1/embeddings", "/embedded/v1/embeddings"),
        ("/embed/embed/healthz", "/embed/embed/healthz"),
    ],
)
def test_below_the_path_of_a_proxy(path: str, meant: str) -> None:
    assert PathTable(FIXED, PATTERNS, root_path="/embed").canonical(path) == meant


def test_a_base_path_may_look_like_ours() -> None:
    table = PathTable(FIXED, PATTERNS, root_path="/v1")
    assert table.canonical("/v1/v1/embeddings") == table.canonical("/v1/embeddings") == "/v1/embeddings"
