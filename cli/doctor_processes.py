"""The doctor's look at what runs: API, workers and scheduler, their versions, and the clock of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import httpx

from cli.causes import connection_reason
from cli.doctor_parts import Finding
from engine.config.settings import Settings
from engine.queue.service_heartbeats import OUR_VERSION, ProcessHeartbeat

SKEW_S = 2.0
STARTS = {
    "api": "nobody answers HTTP: start `embedmill api`",
    "worker": "jobs are accepted and not worked on: start `embedmill worker`",
    "scheduler": "what a crash leaves, and jobs that wait, are left lying: start `embedmill scheduler`",
}


def processes(found: list[ProcessHeartbeat], ahead_s: float, settings: Settings) -> Iterator[Finding]:
    """One finding for each kind of process, one for what runs in another version, one for the clocks."""
    fresh = [each for each in found if each.seen_s < settings.worker_seen_s]
    if not fresh:
        yield Finding("processes", "warn", "none runs on this database", "`embedmill up` starts them all")
    else:
        for service, fix in STARTS.items():
            running = [each for each in fresh if each.service == service]
            late = sorted(each.seen_s for each in found if each.service == service)
            if running:
                yield Finding(service, "ok", f"{len(running)} running, last heard of {_ago(min(late))}")
            elif late:
                detail = f"its last heartbeat was {_ago(late[0])}: it is stuck, frozen or gone"
                yield Finding(service, "fail", detail, f"see its log and start it anew; {fix}")
            else:
                yield Finding(service, "fail", "none runs", fix)
        yield _versions(fresh)
    detail = f"this machine's is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > SKEW_S:
        yield Finding("clock", "warn", detail, "keep both right with NTP; ends of keys and logs are off by that much")
    else:
        yield Finding("clock", "ok", detail)


def _versions(fresh: list[ProcessHeartbeat]) -> Finding:
    others = [each for each in fresh if each.version != OUR_VERSION]
    if not others:
        return Finding("versions", "ok", f"all {OUR_VERSION}")
    told = ", ".join(f"{each.id.replace('/', ' ', 1)}: {each.version}" for each in others[:8])
    fix = "restart them with this version; migrate first where theirs is older, run their `doctor` where it is newer"
    return Finding("versions", "warn", f"this command is {OUR_VERSION}; {told}", fix)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def operations_url(address: str, settings: Settings | None) -> str:
    """Where the API's /readyz is: on EMBEDMILL_OPS_PORT of the same host, where that is set."""
    if settings is None or not settings.ops_port:
        return address
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit(("http", f"{host}:{settings.ops_port}", "", "", ""))


def unready(address: str, settings: Settings | None, ask: Callable[[str], tuple[int, bytes]]) -> Finding | None:
    """What is wrong by /readyz; None where the API is ready. Raises httpx.TransportError where nothing answers there.

    With a port for operators the API's own has no /readyz: both ways of a wrong setting are told apart.
    """
    place = operations_url(address, settings)
    has_port = settings is not None and settings.ops_port
    try:
        status, body = ask(f"{place}/readyz")
    except httpx.TransportError as error:
        if not has_port:
            raise
        reason, _ = connection_reason(error)
        fix = "was the API started with the same EMBEDMILL_OPS_PORT? unset it here where it has none"
        return Finding("api", "fail", f"{place}/readyz (EMBEDMILL_OPS_PORT): {reason}", fix)
    if status == 200:
        return None
    said = body.decode("utf-8", "replace")[:300]
    if status == 404 and not has_port:
        fix = "where the API serves it on a port of its own, set the same EMBEDMILL_OPS_PORT here"
        return Finding("api", "fail", f"{place}/readyz: HTTP 404", fix)
    return Finding("api", "fail", f"{place}/readyz: HTTP {status} {said}", "the part not ok says why")
