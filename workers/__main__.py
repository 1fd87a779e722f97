"""`python -m workers`: one Celery worker, its child processes, and nothing of Celery's that we do not use."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from celery.platforms import SecurityWarning

METRICS_FOLDER = "embedmill-metrics-"


def main() -> None:
    parser = argparse.ArgumentParser(prog="workers", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=2, help="child processes; each works on one shard at a time")
    concurrency = parser.parse_args().concurrency
    # Celery lets these win over the broker that is configured here, and they may belong to another program.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    # It warns of root because pickled messages carry code; ours are JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Before anything imports prometheus_client, which decides by it where counters live. The children's counters are
    # told by the API where it shares the folder, and by a port of this process where one is asked for.
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = _folder_of_its_own(Path(tempfile.gettempdir()))
    from workers.app import app, settings

    if settings.worker_metrics_port:
        _serve_metrics(settings.worker_metrics_port)

    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=prefork",
            f"--concurrency={concurrency}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def _folder_of_its_own(place: Path) -> str:
    """A folder for this worker's counters. Removes those of workers of this machine that were killed."""
    for left in place.glob(f"{METRICS_FOLDER}*"):
        pid = left.name.removeprefix(METRICS_FOLDER).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{METRICS_FOLDER}{os.getpid()}-", dir=place)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a child of it
        shutil.rmtree(folder, ignore_errors=True)


def _serve_metrics(port: int) -> None:
    from prometheus_client import CollectorRegistry, multiprocess, start_http_server

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    start_http_server(port, registry=registry)


if __name__ == "__main__":
    main()
