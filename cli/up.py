"""`embedmill up`: the whole system on one machine, in the foreground, with nothing else to install."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import httpx

from cli.address import url_of, usable_port
from cli.client import Client
from cli.config_file import with_config
from cli.data_dir import DataDir, write_private
from cli.embedded_valkey import set_up_valkey
from cli.errors import ExitCode
from cli.lock import only_one
from cli.supervisor import Stopped, Supervisor
from cli.welcome import welcome
from engine.settings import Settings
from engine.telemetry import configure_logging

log = logging.getLogger("embedmill.up")

CHECKOUT = Path(__file__).resolve().parent.parent
# The API first, so that nothing new is taken in; Valkey last, because the others still talk to it while they end.
STOP_ORDER = (("api",), ("scheduler", "worker"), ("valkey",))
API_GRACE_S = 25.0  # uvicorn itself cuts open requests after 20 s
WORKER_GRACE_S = 25.0
VALKEY_GRACE_S = 10.0
VALKEY_START_S = 20.0
READY_S = 60.0


def up(*, host: str, port: int, data_dir: Path, workers: int, config: Path | None, quiet: bool) -> ExitCode:
    """Start everything, say so once it is ready, keep it running, and end all of it when told to."""
    place = DataDir(data_dir.absolute())
    environment = child_environment(place, config)
    settings = Settings.from_environment(environment)  # a typo is an error now, not five processes later
    configure_logging(settings.log_level, settings.log_format)
    place.make()
    with only_one(place) as note_url:
        port = usable_port(host, port)
        url = url_of(host, port)
        note_url(url)
        write_private(place.url_file, url + "\n")
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(_fresh_metrics_dir(place))
        supervisor = Supervisor(STOP_ORDER, environment, _fresh_log_dir(place) if quiet else None)
        supervisor.listen()
        try:
            if settings.redis_url or settings.broker_url:
                place.redis_url_file.unlink(missing_ok=True)  # of an embedded one that is not used any more
            else:
                _start_valkey(supervisor, place)
            new_key = supervisor.run_once(command("prepare")).strip() or None
            supervisor.start("api", command("api", "--host", host, "--port", str(port)), grace_s=API_GRACE_S)
            supervisor.start("worker", command("worker", "--concurrency", str(workers)), grace_s=WORKER_GRACE_S)
            supervisor.start("scheduler", command("scheduler"), grace_s=WORKER_GRACE_S)
            with Client(url, place.key()) as client:
                supervisor.wait_for(lambda: _is_ready(client), f"{url}/readyz did not turn ready", READY_S)
                models = [model.id for model in client.models()] if place.key() else []
            welcome(url, place, new_key, models)
            supervisor.run()
        except Stopped:
            log.warning("stopping")
        finally:
            supervisor.stop()
    return ExitCode.DONE


def _fresh_metrics_dir(place: DataDir) -> Path:
    """Where the children keep their counters, so that /metrics tells of all of them; emptied at each start."""
    folder = place.path / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def command(*arguments: str) -> list[str]:
    """Our own command line, run by this Python."""
    return [sys.executable, "-m", "cli", *arguments]


def child_environment(place: DataDir, config: Path | None) -> dict[str, str]:
    """Our environment for the children, right in whichever directory we were started."""
    # Celery's own variables would win over the broker that is configured here, and may belong to another program.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    # A folder called `models` or `api` where the user happens to stand must not be taken for ours.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment["EMBEDMILL_DATA_DIR"] = str(place.path)
    if sys.stderr.isatty():
        environment.setdefault("EMBEDMILL_LOG_FORMAT", "text")
    return with_config(environment, config)


def _start_valkey(supervisor: Supervisor, place: DataDir) -> None:
    valkey = set_up_valkey(place)
    supervisor.start("valkey", valkey.command, grace_s=VALKEY_GRACE_S)
    supervisor.wait_for(valkey.answers, f"the embedded Valkey ({place.valkey_dir}) did not answer", VALKEY_START_S)
    supervisor.environment["EMBEDMILL_REDIS_URL"] = valkey.url


def _is_ready(client: Client) -> bool:
    try:
        return client.readiness()[0] == 200
    except httpx.TransportError:
        return False


def _fresh_log_dir(place: DataDir) -> Path:
    """An empty folder for the output of quiet children: it holds the last run's lines, and cannot grow over many."""
    place.log_dir.mkdir(mode=0o700, exist_ok=True)
    for old in place.log_dir.glob("*.log"):
        old.unlink()
    return place.log_dir
