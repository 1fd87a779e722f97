"""URLs as hosted services hand them out, against servers that really ask for what the URLs say."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select, text

from engine.limiter.redis_store import RedisStore
from engine.queue.broker import Notifier
from engine.storage.database import Database, migrate
from models.errors import StorageUnavailable
from models.job import JobStatus
from tests.integration.store import Store
from tests.services import POSTGRES_URL, PostgresServer, async_url, is_away
from tests.system.stack import free_port
from tests.waiting import wait_until

START_S = 20.0


def certificates(folder: Path) -> Path:
    """A CA of our own (ca.pem) and a certificate of it for 127.0.0.1 (server.pem, server.key)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=embedmill tests")
    openssl("req", *new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    sign = ("-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", *sign, "-extfile", "names", "-out", "server.pem")
    return folder


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        is_away("openssl", "not installed")
    return certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls_redis(ca: Path) -> Iterator[int]:
    """The TLS port of a Redis of our own."""
    if (binary := shutil.which("redis-server")) is None:
        is_away("redis-server", "not installed")
    port = free_port()
    files = ["--tls-cert-file", "server.pem", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.pem"]
    command = [binary, "--port", "0", "--tls-port", str(port), *files, "--tls-auth-clients", "no", "--save", ""]
    server = subprocess.Popen(
        [*command, "--requirepass", "p@ss/w%rd", "--unixsocket", str(ca / "redis.sock")],
        cwd=ca,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: (ca / "redis.sock").exists(), START_S, what="Redis")
    yield port
    server.kill()
    server.wait()


async def both_use(url: str) -> tuple[bool, bool]:
    """Whether the limiter and the broker reach the server of this URL."""
    shared, notifier = RedisStore(url), Notifier(url)
    answer = None
    for _ in range(20):  # a busy machine may be late once
        if (answer := await shared.eval("return {1}", [], [])) is not None:
            break
    sent = await notifier.notify(1)
    await shared.close()
    notifier.close()
    return answer == [1], sent and await notifier.reachable()


PASSWORD = ":p%40ss%2Fw%25rd@"


async def test_rediss_is_verified_by_the_broker_and_by_the_limiter_alike(tls_redis: int, ca: Path) -> None:
    by_address, by_other_name = f"{PASSWORD}127.0.0.1:{tls_redis}", f"{PASSWORD}localhost:{tls_redis}"
    authority = f"ssl_ca_certs={ca / 'ca.pem'}"
    cases = [
        (f"{by_address}/1", False),  # nobody of the system's CAs has signed it
        (f"{by_address}/2?{authority}", True),
        (f"{by_address}/3?ssl_cert_reqs=required&{authority}", True),
        (f"{by_address}/4?ssl_cert_reqs=none", True),
        (f"{by_other_name}/5?{authority}", False),
        (f"{by_other_name}/6?{authority}&ssl_check_hostname=false", True),
    ]  # a database each: kombu's pools do not tell URLs apart by their parameters
    for rest, works in cases:
        assert await both_use(f"rediss://{rest}") == (works, works), rest
    assert await both_use(f"redis://{by_address}/7") == (False, False)  # no TLS where TLS is asked for


async def test_a_unix_socket_serves_broker_and_limiter(tls_redis: int, ca: Path) -> None:
    assert await both_use(f"unix://{PASSWORD}{ca / 'redis.sock'}?db=2") == (True, True)
    assert await both_use(f"redis+socket://{PASSWORD}{ca / 'redis.sock'}") == (True, True)


class Bouncer:
    """A PgBouncer with its default settings, in front of the tests' PostgreSQL."""

    def __init__(self, folder: Path, mode: str) -> None:
        binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if binary is None:
            is_away("PgBouncer", "not installed")
        self.port = free_port()
        server = urlsplit(POSTGRES_URL)
        target = f"host={server.hostname} port={server.port or 5432} user={server.username or 'postgres'}"
        lines = [
            "[databases]",
            f"* = {target}" + (f" password={server.password}" if server.password else ""),
            "[pgbouncer]",
            f"listen_port = {self.port}",
            "listen_addr = 127.0.0.1",
            "auth_type = any",
            f"pool_mode = {mode}",
            "unix_socket_dir =",
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        identity: list[str] = []
        if os.geteuid() == 0:  # it refuses to run as root
            owner = pwd.getpwnam("postgres")
            identity = ["setpriv", "--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups", "--"]
            for place in (folder, *folder.parents):  # its user must get through to the file
                if place.name.startswith(("pytest-", "popen-", "test_")):
                    place.chmod(0o755)
        self._process = subprocess.Popen(
            [*identity, binary, "-q", str(folder / "pgbouncer.ini")], cwd=folder, stderr=subprocess.DEVNULL
        )

    def through(self, url: str) -> str:
        return urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{self.port}").geturl()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=["session", "transaction"])
def bouncer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bouncer]:
    bouncer = Bouncer(tmp_path, request.param)
    yield bouncer
    bouncer.close()


async def test_jobs_complete_through_pgbouncer_in_either_mode(
    bouncer: Bouncer, postgres: PostgresServer, tmp_path: Path
) -> None:
    direct = postgres.create()
    store = Store.open(bouncer.through(direct), tmp_path, shard_inputs=10)
    for _ in range(100):
        try:
            await store.runtime.database.ping()
            break
        except StorageUnavailable:
            await asyncio.sleep(0.1)
    other = store.another()
    jobs = [await store.submit(30, tag=f"job {number}") for number in range(3)]

    async def run(each: Store, shard_id: str) -> None:
        from tests.running import run_shard

        await run_shard(each.runtime, shard_id, "w")

    for job_id in jobs:
        shards = await store.shard_ids(job_id)
        await asyncio.gather(*(run(each, shard_id) for shard_id in shards for each in (store, other)))
    for job_id in jobs:
        assert await store.status(job_id) == JobStatus.COMPLETED
    async with store.runtime.database.write() as connection:
        shown = (await connection.execute(text("show idle_in_transaction_session_timeout"))).scalar_one()
    assert shown == "10s"
    await other.close()
    await store.close()
    postgres.drop(direct)


def test_migrations_run_through_pgbouncer(bouncer: Bouncer, postgres: PostgresServer) -> None:
    direct = postgres.create(migrated=False)
    wait_until(lambda: _migrated(async_url(bouncer.through(direct))), START_S, what="the migration")
    postgres.drop(direct)


def _migrated(url: str) -> bool:
    try:
        migrate(url)
    except StorageUnavailable:  # it is still starting
        return False
    return True


@pytest.mark.parametrize(
    "parameters",
    [
        "sslmode=prefer",
        "sslmode=disable&application_name=mine&connect_timeout=7",
        "options=-c%20statement_timeout%3D7s%20-csearch_path%3Dpublic",
        "target_session_attrs=read-write&keepalives_idle=30",
        "pgbouncer=true&channel_binding=prefer&gssencmode=disable",
    ],
)
async def test_parameters_of_libpq_work(postgres: PostgresServer, parameters: str) -> None:
    url = postgres.create()
    database = Database(async_url(f"{url}?{parameters}"))
    await database.ping()
    async with database.read() as connection:
        shown = (await connection.execute(text("show statement_timeout"))).scalar_one()
        name = (await connection.execute(text("show application_name"))).scalar_one()
    assert shown == ("7s" if "statement_timeout" in parameters else "1min")
    assert name == ("mine" if "mine" in parameters else "embedmill")
    await database.close()
    postgres.drop(url)


async def test_several_hosts_lead_to_the_one_that_writes(postgres: PostgresServer) -> None:
    url = postgres.create()
    address = urlsplit(url)
    hosts = f"postgres@127.0.0.1:{free_port()},127.0.0.1:{address.port or 5432}"
    database = Database(async_url(address._replace(netloc=hosts).geturl()) + "?target_session_attrs=read-write")
    await database.ping()
    await database.close()
    postgres.drop(url)


async def test_a_unix_socket_of_postgresql(postgres: PostgresServer) -> None:
    folder, name = "/var/run/postgresql", "postgres"
    if not os.path.exists(f"{folder}/.s.PGSQL.5432"):  # noqa: ASYNC240, PTH110
        pytest.skip("this PostgreSQL has no socket at the usual place")
    for url in (f"postgresql:///{name}?host={folder}", f"postgresql://%2Fvar%2Frun%2Fpostgresql/{name}"):
        database = Database(async_url(url))
        try:
            async with database.read() as connection:
                assert (await connection.execute(select(1))).scalar_one() == 1
        except StorageUnavailable as error:  # peer authentication: who we are is not who may log in
            assert "login" in error.message
        await database.close()


@pytest.fixture(scope="module")
def tls_postgres(ca: Path) -> Iterator[int]:
    """The port of a PostgreSQL of our own that speaks TLS."""
    from tests.system.cluster import PostgresCluster

    with PostgresCluster() as cluster:
        folder = cluster._folder / "data"
        owner = pwd.getpwnam("postgres")
        for name in ("server.pem", "server.key"):
            shutil.copyfile(ca / name, folder / name)
            (folder / name).chmod(0o600)
            if os.geteuid() == 0:
                os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        for setting in ("ssl = on", "ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'"):
            cluster.ask(f"ALTER SYSTEM SET {setting}")
        cluster.ask("SELECT pg_reload_conf()")
        yield cluster.port


@pytest.mark.parametrize(
    ("parameters", "works"),
    [
        ("sslmode=require", True),
        ("sslmode=verify-full&sslrootcert={ca}/ca.pem", True),
        ("sslmode=verify-ca&sslrootcert={ca}/ca.pem", True),
        ("sslmode=verify-full", False),
        ("sslmode=verify-full&sslrootcert=system", False),
    ],
)
async def test_tls_of_postgresql(tls_postgres: int, ca: Path, parameters: str, works: bool) -> None:
    url = f"postgresql+asyncpg://postgres@127.0.0.1:{tls_postgres}/postgres?{parameters.format(ca=ca)}"
    database = Database(url)
    try:
        async with database.read() as connection:
            used = text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            assert (await connection.execute(used)).scalar_one() is True
        assert works
    except StorageUnavailable:
        assert not works
    await database.close()
