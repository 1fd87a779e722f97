"""The payload of an event: what is signed and sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


def event_body(event_id: str, event_type: str, created_at: float, data: Mapping[str, Any]) -> bytes:
    """The JSON of an event, as the OpenAI SDKs read it. `created_at`: unix seconds."""
    return orjson.dumps(
        {"id": event_id, "object": "event", "created_at": int(created_at), "type": event_type, "data": dict(data)}
    )
