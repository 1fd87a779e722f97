"""An answer in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def page_response(data: Sequence[dict[str, Any]], *, has_more: bool) -> Response:
    """A page of a list; each of its objects has an `id`, by which the next page is requested."""
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )
