"""File descriptors: every connection needs one, and most systems start a process with a soft limit of 1,024."""

from __future__ import annotations

import contextlib
import sys


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard one. Returns the new limit."""
    if sys.platform == "win32":
        return 8192
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS reports an unlimited hard limit that it refuses
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return int(soft) if soft != resource.RLIM_INFINITY else sys.maxsize
