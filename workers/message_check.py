"""Message check: a worker handles only messages that embedmill sends itself.

Whoever can write to the broker can put anything into the queue. Celery obeys what a message asks for (a start in the
year 9999, time limits, callbacks), and some of it ends the main process. Such a message is acknowledged and dropped:
the database knows what there is to do.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from kombu import compression

from engine.observability.telemetry import MESSAGES_DROPPED
from engine.queue.broker import RUN_SHARD

log = logging.getLogger("embedmill.queue")

LOG_EVERY_S = 10.0
MAX_BODY_CHARS = 4096
MAX_TEXT_CHARS = 1024
# What Celery 5 writes into the headers of a task that asks for nothing special.
TEXTS = ("id", "root_id", "origin", "argsrepr", "kwargsrepr")
ABSENT = ("eta", "expires", "group", "group_index", "shadow", "parent_id", "stamped_headers", "compression")
PLAIN = {
    "task": RUN_SHARD,
    "lang": "py",
    "retries": 0,
    "timelimit": [None, None],
    "replaced_task_nesting": 0,
    "stamps": {},
}
FLAGS = ("ignore_result",)
OF_BROKER = ("x-delivery-count", "x-death", "redelivered")
KNOWN = frozenset((*TEXTS, *ABSENT, *PLAIN, *FLAGS, *OF_BROKER))


def fault_of(message: Any) -> str | None:
    """What is wrong with a kombu message; None for one that was sent by embedmill itself."""
    headers = message.headers
    if not isinstance(headers, dict) or not headers:
        return "no headers"
    if headers.get("task") != RUN_SHARD:
        return "another task"
    for name, value in headers.items():
        if name not in KNOWN:
            return "an unknown header"
        if name in TEXTS and not (value is None or (isinstance(value, str) and len(value) <= MAX_TEXT_CHARS)):
            return f"the header {name}"
        if name in ABSENT and value is not None:
            return f"the header {name}"
        if name in PLAIN and value is not None and (value != PLAIN[name] or isinstance(value, bool)):
            return f"the header {name}"
        if name in FLAGS and not isinstance(value, bool | None):
            return f"the header {name}"
    if not isinstance(headers.get("id"), str):
        return "no id"
    if message.content_type != "application/json" or str(message.content_encoding).lower() != "utf-8":
        return "another content type"
    return _fault_of_body(message.body)


def _fault_of_body(body: Any) -> str | None:
    if isinstance(body, memoryview):
        body = bytes(body)
    if not isinstance(body, str | bytes) or len(body) > MAX_BODY_CHARS:
        return "a body of another size"
    try:
        arguments, keywords, embedded = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return "a body that is no task"
    if keywords != {} or arguments != []:
        return "other arguments"
    if not isinstance(embedded, dict) or any(embedded.get(name) for name in embedded):
        return "callbacks"
    return None


def refuse_compression() -> None:
    """Let this process unpack no message: kombu does it before anybody looks, and a megabyte may become a gigabyte."""

    def refuse(_: bytes) -> bytes:
        raise ValueError("no message of ours is compressed")

    for kind in compression.encoders():  # type: ignore[no-untyped-call]
        compression.register(compression.get_encoder(kind)[0], refuse, kind)  # type: ignore[no-untyped-call]


class _Dropped:
    """Counts dropped messages, and logs them at a bounded rate."""

    def __init__(self) -> None:
        self._count = 0
        self._log_at = 0.0

    def note(self, fault: str) -> None:
        """Count a dropped message and log it at most every LOG_EVERY_S."""
        MESSAGES_DROPPED.inc()
        self._count += 1
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            log.warning("a message that embedmill did not send was dropped: %s", fault, extra={"count": self._count})


dropped = _Dropped()
