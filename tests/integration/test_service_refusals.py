"""A database or broker that refuses: its reason and the next step are said, once, and waiting is all that it costs."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from cli.commands.doctor.brokers import find_broker_fault
from cli.commands.doctor.storage import DATABASE_FIX, database
from cli.data_dir import DataDir
from cli.up.embedded_valkey import set_up_valkey
from engine.config.settings import Settings
from engine.storage.database import migrate
from tests.services import RABBITMQ_URL, SqliteFiles, _rabbitmqctl, is_away, with_path
from tests.system.cluster import PostgresCluster
from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

PATIENCE_S = 60.0


@pytest.fixture
def processes(sqlite_files: SqliteFiles, tmp_path: Path) -> Iterator[Processes]:
    places = {
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": sqlite_files.create(tmp_path),
        "LEASE_S": "360",  # idle workers wait so long that only a message starts them
    }
    processes = Processes(tmp_path, places)
    yield processes
    processes.close()


def rabbitmqctl(*arguments: str) -> None:
    control = shutil.which("rabbitmqctl") or shutil.which("rabbitmqctl", path="/usr/sbin:/usr/lib/rabbitmq/bin")
    if control is None:
        is_away("RabbitMQ", "rabbitmqctl is not installed")
    _rabbitmqctl(control, *arguments)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("vhost", "it has no such virtual host, or not for this user; correct what follows the last slash"),
        ("password", "it refuses the user or the password; correct user and password in EMBEDMILL_BROKER_URL"),
    ],
)
def test_a_worker_that_rabbitmq_refuses_says_why_and_works_once_it_is_let_in(
    processes: Processes, fault: str, says: str
) -> None:
    name = f"embedmill_test_{secrets.token_hex(4)}"
    address = urlsplit(with_path(RABBITMQ_URL, name))
    url = address._replace(netloc=f"{name}:right@{address.hostname}:{address.port or 5672}").geturl()
    rabbitmqctl("add_user", name, "other" if fault == "password" else "right")
    if fault == "password":
        rabbitmqctl("add_vhost", name)
    try:
        processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", "1"], BROKER_URL=url)
        wait_until(lambda: says in processes.log_of("worker"), PATIENCE_S, what="the reason")
        # Celery made a traceback of each try, one a second.
        for _ in range(3):  # seconds, in which the worker tries again too
            assert find_broker_fault(url) is not None
        log = processes.log_of("worker")
        assert "Traceback" not in log and log.count(says) == 1, log
        if fault == "vhost":
            rabbitmqctl("add_vhost", name)
        rabbitmqctl("set_permissions", "-p", name, name, *[".*"] * 3)
        rabbitmqctl("change_password", name, "right")
        works = "connecting to the broker works again"
        wait_until(lambda: works in processes.log_of("worker"), 15.0, what="the connection")
        processes.check()
    finally:
        processes.close()
        if fault == "password" or find_broker_fault(url) is None:
            rabbitmqctl("delete_vhost", name)
        rabbitmqctl("delete_user", name)


@pytest.mark.parametrize(
    ("commands", "says"),
    [
        ([["CONFIG", "SET", "maxmemory", "1"]], "memory is used up"),
        ([["REPLICAOF", "127.0.0.1", "1"]], "is a replica"),
        ([["CONFIG", "SET", "min-replicas-to-write", "1"]], "too few replicas"),
        ([["ACL", "SETUSER", "default", "-set"]], "may not do this"),
    ],
)
def test_the_doctor_finds_a_redis_that_answers_and_refuses_to_write(
    processes: Processes, tmp_path: Path, commands: list[list[str]], says: str
) -> None:
    valkey = set_up_valkey(DataDir(tmp_path))
    processes.start("valkey", valkey.command)
    wait_until(valkey.answers, PATIENCE_S, what="Valkey")
    assert find_broker_fault(valkey.url) is None
    with redis.Redis.from_url(valkey.url) as client:
        for command in commands:
            client.execute_command(*command)
    fault = find_broker_fault(valkey.url)
    assert fault is not None and says in fault.cause and fault.advice


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["ALTER DATABASE {0} SET default_transaction_read_only = on"], "is read-only (25006)"),
        (["ALTER DATABASE {0} CONNECTION LIMIT 0"], "no connection left (53300)"),
        (["ALTER DATABASE {0} ALLOW_CONNECTIONS false"], "does not accept connections now (55000)"),
        (["ALTER ROLE gateway NOLOGIN"], "does not let this user in (28000)"),
    ],
)
def test_the_doctor_finds_a_postgresql_that_answers_and_refuses(statements: list[str], says: str) -> None:
    with PostgresCluster() as cluster:
        url = cluster.create()
        settings = Settings(database_url=url)
        migrate(settings.sqlalchemy_url)
        assert database(settings).status == "ok"
        for statement in statements:
            cluster.ask(statement.format(urlsplit(url).path[1:]))
        finding = database(settings)
        assert finding.status == "fail" and says in finding.detail and finding.fix not in ("", DATABASE_FIX)


def test_commands_say_why_postgresql_refuses_and_what_to_do(processes: Processes) -> None:
    with PostgresCluster() as cluster:
        good = urlsplit(cluster.create())
        rules = cluster._folder / "data" / "pg_hba.conf"
        only_tls = f"hostnossl {good.path[1:]} gateway 127.0.0.1/32 reject\n"
        by_password = "host all gateway 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(only_tls + by_password + "host all all 127.0.0.1/32 trust\n")
        cluster.ask("SELECT pg_reload_conf()")
        host = f"127.0.0.1:{cluster.port}"
        cases = [
            (f"postgresql://gateway:wrong@{host}/other", "rejects the login (28P01) (correct user and password"),
            (good.geturl(), "does not let this user in (28000) (see that the user exists, and that pg_hba.conf"),
            (f"postgresql://nobody@{host}/postgres", "does not let this user in (28000)"),
            (f"postgresql://postgres@{host}/none", "the database does not exist (3D000) (create it"),
            ("postgresql://gateway@127.0.0.1:1/x", "nothing listens there (is it started"),
        ]
        for url, says in cases:
            for command in (["migrate"], ["keys", "list"]):
                processes.start("command", [*EMBEDMILL, *command], DATABASE_URL=url)
                wait_until(lambda: processes.has_ended("command"), PATIENCE_S, what=f"the end of {command}")
                assert says in processes.log_of("command").splitlines()[-1], (command, url)
