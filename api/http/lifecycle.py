"""The lifecycle state of the process, for /readyz and for long polls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lifecycle:
    """Where the process stands between its start and its end."""

    # Requests are still served, and load balancers are asked to send no more.
    is_draining: bool = False
    # Called when the listener closes: long polls then answer with the present state.
    on_stop: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """Call everything in `on_stop`."""
        for act in self.on_stop:
            act()
