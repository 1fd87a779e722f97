"""File descriptors: every connection takes one, and most systems start a process with 1,024 of the many it may have."""

from __future__ import annotations

import contextlib
import sys


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard one; how many this process may now have open."""
    if sys.platform == "win32":
        return 8192
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS reports an unlimited hard limit that it refuses
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return int(soft) if soft != resource.RLIM_INFINITY else sys.maxsize
