"""Health check of a child process over HTTP: a process that hangs must be restarted like one that has exited."""

from __future__ import annotations

import http.client
import threading
import time
from urllib.parse import urlsplit

CHECK_EVERY_S = 2.0
TIMEOUT_S = 5.0
FAILURES = 4  # one after the other: some twenty seconds
START_S = 120.0  # from a start to the first answer


class HealthCheck:
    """Requests a URL from a thread of its own. Any HTTP answer is a success: a server that refuses does not hang."""

    def __init__(
        self,
        url: str,
        *,
        every_s: float = CHECK_EVERY_S,
        timeout_s: float = TIMEOUT_S,
        failures: int = FAILURES,
        start_s: float = START_S,
    ) -> None:
        self.url = url
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._max_failures = failures
        self._start_s = start_s
        self._lock = threading.Lock()
        self._start_number = 0
        self._failures = 0
        self._has_answered = False
        self._started_at = 0.0
        self._thread: threading.Thread | None = None

    def reset(self) -> None:
        """A process was started: results of the one before it no longer count."""
        with self._lock:
            self._start_number += 1
            self._failures = 0
            self._has_answered = False
            self._started_at = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._poll_forever, daemon=True, name="health")
            self._thread.start()

    @property
    def is_hanging(self) -> bool:
        """True after `failures` failed checks in a row, or when no first answer came within `start_s`."""
        with self._lock:
            if self._has_answered:
                return self._failures >= self._max_failures
            return time.monotonic() - self._started_at > self._start_s

    def _poll_forever(self) -> None:
        while True:
            start_number = self._start_number
            is_answering = self._is_answering()
            with self._lock:
                if start_number == self._start_number:
                    self._has_answered = self._has_answered or is_answering
                    self._failures = 0 if is_answering else self._failures + 1
            time.sleep(self._every_s)

    def _is_answering(self) -> bool:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self._timeout_s)
        try:
            connection.request("GET", address.path, headers={"connection": "close"})
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        else:
            return True
        finally:
            connection.close()
