"""Names of processes: machine, namespace and number, so that others of the machine can tell that one has died."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


def process_name() -> str:
    """This process's name as a worker."""
    return f"{_host_id()}:{os.getpid()}"


def is_dead_local_process(worker: str) -> bool:
    """True when the worker ran on this machine, in this process namespace, and is no more.

    A number that was taken by another process since reads as alive: then its lease decides, as for any other machine.
    """
    host, _, number = worker.rpartition(":")
    if host != _host_id() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def is_alive_here(worker: str) -> bool:
    """True when such a process is on this machine: it may be stopped, and its number may be another's by now."""
    host, _, number = worker.rpartition(":")
    return host == _host_id() and number.isdigit() and not is_dead_local_process(worker)


@cache
def _host_id() -> str:
    # Machines may share a name, and the first namespace has the same number on all of them: only a boot is unique.
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        namespace, boot = "pid", ""
    return f"{socket.gethostname()[:64]}/{boot}/{namespace}"
