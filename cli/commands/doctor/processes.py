"""The doctor's check of the processes: API, workers and scheduler, their versions, and the database's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from cli.commands.doctor.finding import Finding
from cli.commands.doctor.storage import with_database
from engine.config.settings import WORKER_SEEN_S, Settings
from engine.queue import process_heartbeats
from engine.queue.process_heartbeats import OUR_VERSION, ProcessHeartbeat

SKEW_S = 2.0
STARTS = {
    "api": "nobody answers HTTP: start `embedmill api`",
    "worker": "jobs are accepted and not worked on: start `embedmill worker`",
    "scheduler": "what a crash leaves, and jobs that wait, are left lying: start `embedmill scheduler`",
}


def running(settings: Settings) -> list[Finding]:
    """API, workers and scheduler by their heartbeats."""
    heartbeats, ahead_s = asyncio.run(with_database(settings, process_heartbeats.list_processes))
    return list(processes(heartbeats, ahead_s))


def processes(heartbeats: list[ProcessHeartbeat], ahead_s: float) -> Iterator[Finding]:
    """One finding for each kind of process, one for what runs in another version, one for the clocks."""
    running_now = [each for each in heartbeats if each.seen_s < WORKER_SEEN_S]
    if not running_now:
        yield Finding("processes", "warn", "none runs on this database", "`embedmill up` starts them all")
    else:
        for service, fix in STARTS.items():
            running = [each for each in running_now if each.service == service]
            silent_s = sorted(each.seen_s for each in heartbeats if each.service == service)
            if running:
                yield Finding(service, "ok", f"{len(running)} running, last heard of {_ago(min(silent_s))}")
            elif silent_s:
                detail = f"its last heartbeat was {_ago(silent_s[0])}: it is stuck, frozen or gone"
                yield Finding(service, "fail", detail, f"see its log and start it anew; {fix}")
            else:
                yield Finding(service, "fail", "none runs", fix)
        yield _versions(running_now)
    detail = f"this machine's is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > SKEW_S:
        yield Finding("clock", "warn", detail, "keep both right with NTP; ends of keys and logs are off by that much")
    else:
        yield Finding("clock", "ok", detail)


def _versions(running_now: list[ProcessHeartbeat]) -> Finding:
    other_versions = [each for each in running_now if each.version != OUR_VERSION]
    if not other_versions:
        return Finding("versions", "ok", f"all {OUR_VERSION}")
    details = ", ".join(f"{each.id.replace('/', ' ', 1)}: {each.version}" for each in other_versions[:8])
    fix = "restart them with this version; migrate first where theirs is older, run their `doctor` where it is newer"
    return Finding("versions", "warn", f"this command is {OUR_VERSION}; {details}", fix)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"
