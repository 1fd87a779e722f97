"""Name resolution in threads of its own: a caller's slow name server must not delay the names of others.

The event loop's own resolver shares a few threads with everything else of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

from engine.webhooks.addresses import Address, parse_address

MAX_LOOKUPS = 64
Lookup = Callable[[str, int], Sequence[str]]


def system_lookup(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, as the system's resolver gives them. Raises OSError or ValueError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Resolves names, at most MAX_LOOKUPS at a time. `lookup` runs in a thread."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._slots = asyncio.Semaphore(MAX_LOOKUPS)

    async def addresses(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host; empty: the name does not resolve. A cancelled look-up ends in its own time."""
        literal = parse_address(host)
        if literal is not None:
            return [literal]
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def finish(found: Sequence[str]) -> None:
            self._slots.release()
            if not answer.done():
                answer.set_result(found)

        def run() -> None:
            found: Sequence[str] = ()
            try:
                with contextlib.suppress(OSError, ValueError):
                    found = self._lookup(host, port)
            finally:  # whatever a look-up raises, somebody waits for it
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(finish, found)

        try:
            # A daemon: the end of the process does not wait for a name server.
            threading.Thread(target=run, name="webhook-lookup", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            finish(())
        return [address for text in await answer if (address := parse_address(text)) is not None]
