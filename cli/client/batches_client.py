"""The batches of a server, over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping

from cli.client.file_types import Batch, BatchPage
from cli.client.responses import decode
from cli.client.session import Session, waits_for_key

BATCHES = "/v1/batches"
ENDPOINT = "/v1/embeddings"
SHORTEST_POLL_S, LONGEST_POLL_S = 0.5, 5.0
SEND_TRIES = 5


class Batches:
    """The batches of the key's project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, input_file_id: str, completion_window: str, metadata: Mapping[str, str]) -> Batch:
        """A batch of the lines of a file. Tries make one batch."""
        body = {
            "input_file_id": input_file_id,
            "endpoint": ENDPOINT,
            "completion_window": completion_window,
            "metadata": dict(metadata) or None,
        }
        headers = {"idempotency-key": uuid.uuid4().hex}
        reply = self._session.send_with_retries(
            lambda: self._session.post(BATCHES, json=body, headers=headers), waits_for_key, failures_allowed=SEND_TRIES
        )
        return decode(reply, Batch)

    def get(self, batch_id: str) -> Batch:
        """One batch as it is now."""
        return decode(self._session.get(f"{BATCHES}/{batch_id}"), Batch)

    def page(self, *, limit: int) -> BatchPage:
        """The newest batches."""
        return decode(self._session.get(BATCHES, {"limit": limit}), BatchPage)

    def cancel(self, batch_id: str) -> Batch:
        """Stop a batch. Returns it afterwards."""
        return decode(self._session.once("POST", f"{BATCHES}/{batch_id}/cancel"), Batch)

    def changes(self, batch_id: str) -> Iterator[Batch]:
        """The batch now, then again and again until it has ended."""
        pause_s = SHORTEST_POLL_S
        while True:
            batch = self.get(batch_id)
            yield batch
            if batch.ended:
                return
            self._session.retry.sleep(pause_s)
            pause_s = min(pause_s * 1.2, LONGEST_POLL_S)
