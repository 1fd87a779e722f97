"""`python -m workers`: one Celery worker, its child processes, and nothing of Celery's that we do not use."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import celery.apps.worker
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning

log = logging.getLogger("embedmill.worker")
METRICS_FOLDER = "embedmill-metrics-"


def main() -> None:
    """Parse the command line, check the configuration and run the worker."""
    parser = argparse.ArgumentParser(prog="workers", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=2, help="child processes; each works on one shard at a time")
    parser.add_argument("--ops-port", type=int, help="port of /healthz and /metrics; default EMBEDMILL_OPS_PORT")
    options = parser.parse_args()
    concurrency = options.concurrency
    # Celery lets these win over the broker that is configured here, and they may belong to another program.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    # It warns of root because pickled messages carry code; ours are JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # It says at each lost connection that a default may change; we state that setting.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    # Before anything imports prometheus_client, which decides by it where counters live. The children's counters are
    # told by the API where it shares the folder, and by a port of this process where one is asked for.
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = _make_metrics_folder(Path(tempfile.gettempdir()))
    from importlib.metadata import version

    from engine.config import config_file
    from engine.config.settings import Settings
    from engine.connections import urls
    from engine.observability.telemetry import configure_logging
    from engine.process.data_folder import make_data_folder
    from engine.process.file_descriptors import raise_descriptor_limit
    from models.errors import EmbedmillError
    from workers.health_and_metrics import serve_operations

    try:
        # Before Celery starts: a child that finds the fault later would take messages and do nothing about them.
        checked = Settings.from_environment()
        config_file.load(checked.config, data_dir=checked.data_dir)
        make_data_folder(checked.data_dir)
        from workers.app import app, settings

        configure_logging(settings.log_level, settings.log_format, service="worker")
        broker = urls.redis_or_broker(settings.broker, "EMBEDMILL_BROKER_URL").shown()
        log.info("embedmill %s: a worker of %d processes hears %s", version("embedmill"), concurrency, broker)
        if ops_port := settings.ops_port if options.ops_port is None else options.ops_port:
            serve_operations(settings.ops_host, ops_port)
    except EmbedmillError as error:
        sys.exit(f"error: {error.message}")

    raise_descriptor_limit()
    # Celery prints what it says of its own shutdown; in a log of JSON lines that is no line.
    celery.apps.worker.safe_say = lambda message, f=None: log.info(message.strip())
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


def _make_metrics_folder(parent: Path) -> str:
    """A folder for this worker's counters. Removes those of workers of this machine that were killed."""
    for stale in parent.glob(f"{METRICS_FOLDER}*"):
        pid = stale.name.removeprefix(METRICS_FOLDER).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(stale, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{METRICS_FOLDER}{os.getpid()}-", dir=parent)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a child of it
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
