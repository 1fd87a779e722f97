"""`embedmill up`: the whole system on one machine, in the foreground, with nothing else to install."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import httpx

from cli.client.api_client import Client
from cli.config_file import with_config
from cli.data_dir import DataDir, write_private
from cli.errors import ExitCode
from cli.output.terminal import err
from cli.redaction import redact_url
from cli.up.banner import print_banner
from cli.up.embedded_valkey import HOST, EmbeddedValkey, set_up_valkey
from cli.up.health_check import HealthCheck
from cli.up.instance_lock import instance_lock
from cli.up.listen_address import url_of
from cli.up.preflight import check_configuration, check_data_dir, check_ports
from cli.up.supervisor import StopRequested, Supervisor
from engine.config.settings import Settings
from engine.observability.telemetry import configure_logging

log = logging.getLogger("embedmill.up")

CHECKOUT = Path(__file__).resolve().parents[2]
# The API first, so that nothing new is taken in; Valkey last, because the others still talk to it while they end.
STOP_ORDER = (("api",), ("scheduler", "worker"), ("valkey",))
API_GRACE_S = 25.0  # uvicorn itself cuts open requests after 20 s
WORKER_GRACE_S = 25.0
VALKEY_GRACE_S = 10.0
VALKEY_START_S = 20.0
READY_S = 60.0


def up(*, host: str, port: int, data_dir: Path, workers: int, config: Path | None, quiet: bool) -> ExitCode:
    """Start everything, print the banner once it is ready, keep it running, and stop all of it at a signal."""
    folder = DataDir(data_dir.absolute())
    environment = child_environment(folder, config)
    settings = Settings.from_environment(environment)  # a typo is an error now, not five processes later
    configure_logging(settings.log_level, settings.log_format, service="up")
    check_configuration(settings, host)
    folder.make()
    with instance_lock(folder) as note_url:
        port = check_ports(host, port, settings)
        check_data_dir(folder, settings)
        url = url_of(host, port)
        note_url(url)
        write_private(folder.url_file, url + "\n")
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(_fresh_metrics_dir(folder))
        supervisor = Supervisor(STOP_ORDER, environment, _fresh_log_dir(folder) if quiet else None)
        supervisor.install_signal_handlers()
        try:
            valkey = None
            if settings.redis_url or settings.broker_url:
                folder.redis_url_file.unlink(missing_ok=True)  # of an embedded one that is not used any more
            else:
                valkey = _start_valkey(supervisor, folder)
            print_step("broker", f"embedded Valkey at {HOST}:{valkey.port}" if valkey else broker_urls(settings))
            print_step("migrations", f"the tables of {redact_url(settings.sqlalchemy_url)}")
            new_key = supervisor.run_once(cli_command("prepare")).strip() or None
            ops_url = url_of(host, settings.ops_port) if settings.ops_port else url
            ops_note = f"; health and metrics at {ops_url}" if settings.ops_port else ""
            print_step("api", f"{url}, version {version('embedmill')}{ops_note}")
            supervisor.start(
                "api",
                cli_command("api", "--migrated", "--host", host, "--port", str(port)),
                grace_s=API_GRACE_S,
                health=HealthCheck(f"{ops_url}/healthz"),
            )
            # The API tells the figures of all of them: the others need no port of their own.
            child_options = ("--migrated", "--ops-port", "0")
            print_step("scheduler", f"dispatches and sweeps, version {version('embedmill')}")
            supervisor.start("scheduler", cli_command("scheduler", *child_options), grace_s=WORKER_GRACE_S)
            print_step("worker", f"{workers} processes, version {version('embedmill')}")
            supervisor.start(
                "worker", cli_command("worker", "--concurrency", str(workers), *child_options), grace_s=WORKER_GRACE_S
            )
            print_step("waiting", f"until {ops_url}/readyz is 200")
            with Client(url, folder.key()) as client, Client(ops_url, None) as operations:
                supervisor.wait_for(lambda: _is_ready(operations), f"{ops_url}/readyz did not turn ready", READY_S)
                offered = client.models() if folder.key() else []
            # What costs nothing is proposed first.
            models = sorted((model.id for model in offered), key=lambda name: not name.startswith("local/"))
            accounts = sorted({provider for model in offered for provider in model.providers})
            print_banner(url, folder, new_key, models, accounts)
            supervisor.run()
        except StopRequested:
            log.warning("stopping")
        finally:
            supervisor.stop()
            folder.redis_url_file.unlink(missing_ok=True)  # the Valkey that it names has ended
    return ExitCode.DONE


def _fresh_metrics_dir(data_dir: DataDir) -> Path:
    """Where the children keep their counters, so that /metrics tells of all of them; emptied at each start."""
    folder = data_dir.path / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def cli_command(*arguments: str) -> list[str]:
    """Our own command line, run by this Python."""
    return [sys.executable, "-m", "cli", *arguments]


def child_environment(data_dir: DataDir, config: Path | None) -> dict[str, str]:
    """Our environment for the children, right in whichever directory we were started."""
    # Celery's own variables would win over the broker that is configured here, and may belong to another program.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    # A folder called `models` or `api` where the user happens to stand must not be taken for ours.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment["EMBEDMILL_DATA_DIR"] = str(data_dir.path)
    environment.setdefault("EMBEDMILL_DRAIN_S", "0")  # no load balancer has to hear of our end first
    if sys.stderr.isatty():
        environment.setdefault("EMBEDMILL_LOG_FORMAT", "text")
    return with_config(environment, config)


def print_step(part: str, what: str) -> None:
    """One line for each part as it is started: what, where, which version."""
    err.print(f"{part:<11} {what}", markup=False)


def broker_urls(settings: Settings) -> str:
    """The broker, and the Redis of the quotas where it is another one, without passwords."""
    urls = dict.fromkeys(redact_url(url) for url in (settings.broker, settings.redis) if url)
    return " and ".join(urls)


def _start_valkey(supervisor: Supervisor, data_dir: DataDir) -> EmbeddedValkey:
    valkey = set_up_valkey(data_dir)
    supervisor.start("valkey", valkey.command, grace_s=VALKEY_GRACE_S)
    supervisor.wait_for(valkey.answers, f"the embedded Valkey ({data_dir.valkey_dir}) did not answer", VALKEY_START_S)
    supervisor.environment["EMBEDMILL_REDIS_URL"] = valkey.url
    return valkey


def _is_ready(client: Client) -> bool:
    try:
        return client.readiness()[0] == 200
    except httpx.TransportError:
        return False


def _fresh_log_dir(data_dir: DataDir) -> Path:
    """An empty folder for the output of quiet children: it holds the last run's lines, and cannot grow over many."""
    data_dir.log_dir.mkdir(mode=0o700, exist_ok=True)
    for old in data_dir.log_dir.glob("*.log"):
        old.unlink()
    return data_dir.log_dir
