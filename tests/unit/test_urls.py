"""URLs of PostgreSQL, Redis and brokers: each parameter works for every library, or is refused by its name."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from engine.config.settings import Settings
from engine.connections import urls
from models.errors import ConfigError

DATABASE, REDIS, BROKER = "EMBEDMILL_DATABASE_URL", "EMBEDMILL_REDIS_URL", "EMBEDMILL_BROKER_URL"


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgres://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+psycopg://h:6432/db?sslmode=require", "postgresql://h:6432/db?sslmode=require"),
        ("postgresql+asyncpg://h/db?ssl=require", "postgresql://h/db?sslmode=require"),
        ("postgresql://h/db?sslmode=no-verify", "postgresql://h/db?sslmode=require"),
        (
            "postgresql:///db?host=/var/run/postgresql",
            "postgresql:///db?host=%2Fvar%2Frun%2Fpostgresql",
        ),
        ("postgresql://u:p%40%2F@h1:5432,h2:5433/db", "postgresql://u:p%40%2F@h1:5432,h2:5433/db"),
        ("postgresql://h/db?target_session_attrs=read-write", "postgresql://h/db?target_session_attrs=read-write"),
        ("postgresql://h/db?pgbouncer=true&keepalives=1&channel_binding=prefer", "postgresql://h/db"),
    ],
)
def test_parameters_of_libpq_are_translated(url: str, dsn: str) -> None:
    assert urls.postgres(url).dsn == dsn


def test_settings_in_a_url_are_set_once_the_connection_is_open() -> None:
    target = urls.postgres(
        "postgresql://h/db?connect_timeout=5&application_name=mine&options=-c%20statement_timeout%3D9s%20--work_mem=1MB"
    )
    assert (target.timeout_s, target.application_name) == (5.0, "mine")
    assert target.session == {"statement_timeout": "9s", "work_mem": "1MB"} and target.startup_options == ""
    assert urls.postgres("postgresql://h/db?options=endpoint%3Dep-1").startup_options == "endpoint=ep-1"


@pytest.mark.parametrize(
    ("parameter", "word"),
    [
        ("sslmode=on", "sslmode"),
        ("sslrootcert=/no/such/file", "sslrootcert"),
        ("channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("hostaddr=1.2.3.4", "hostaddr"),
        ("service=x", "service"),
        ("schema=public", "options"),
        ("connect_timeout=soon", "connect_timeout"),
        ("target_session_attrs=master", "target_session_attrs"),
        ("load_balance_hosts=random", "load_balance_hosts"),
        ("sslmod=require", "sslmod"),
        ("options=-cbroken", "options"),
        ("client_encoding=latin1", "client_encoding"),
    ],
)
def test_what_cannot_work_is_refused_by_one_line_that_names_it(parameter: str, word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment({DATABASE: f"postgresql://u:secret@h/db?{parameter}"})
    assert word in refused.value.message and refused.value.param == DATABASE
    assert "secret" not in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (DATABASE, "mysql://h/db"),
        (DATABASE, "just/a/path"),
        (DATABASE, "postgresql://u:sec@ret@h/db"),
        (DATABASE, "postgresql://u:sec/ret@h/db"),
        (DATABASE, "postgresql://u:sec#ret@h/db"),
        (DATABASE, "postgresql://h:port/db"),
        (REDIS, "127.0.0.1:6379"),
        (REDIS, "amqp://secret@h"),
        (REDIS, "sentinel://h:26379"),
        (REDIS, "redis://h:6379/name"),
        (REDIS, "redis://h:99999/0"),
        (REDIS, "redis://h/0?ssl_cert_reqs=none"),
        (REDIS, "rediss://h/0?ssl_cert_reqs=maybe"),
        (REDIS, "rediss://h/0?ssl_ca_certs=/no/such/file"),
        (REDIS, "redis://h/0?socket_timeout=5"),
        (REDIS, "redis://h1,h2/0"),
        (BROKER, "sqs://"),
        (BROKER, "unix://"),
        (BROKER, "amqps://h?verify=sometimes"),
    ],
)
def test_a_url_that_one_of_the_parts_cannot_use_is_refused_at_the_start(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment({name: url})
    assert name in refused.value.message and "sec" not in refused.value.message.replace("seconds", "")


def test_tls_is_verified_by_both_libraries_unless_the_url_says_otherwise(tmp_path: Path) -> None:
    target = urls.redis_or_broker("rediss://u:p%40%25@h:1/2", REDIS)
    assert target.redis_options()["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert target.celery_options()["broker_use_ssl"]["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert target.redis_options()["password"] == "p@%" and target.redis_options()["db"] == 2
    assert target.celery_options()["broker_url"] == "redis://u:p%40%25@h:1/2"
    (tmp_path / "ca.pem").touch()
    own = urls.redis_or_broker(f"valkeys://h?ssl_cert_reqs=CERT_NONE&ssl_ca_certs={tmp_path / 'ca.pem'}", REDIS)
    for options in (own.redis_options(), own.celery_options()["broker_use_ssl"]):
        assert options["ssl_cert_reqs"] == ssl.CERT_NONE and options["ssl_ca_certs"] == str(tmp_path / "ca.pem")
        assert options["ssl_check_hostname"] is False


def test_amqps_is_verified_too() -> None:
    options = urls.redis_or_broker("amqps://h/v%2Fh", BROKER).celery_options()
    assert options["broker_use_ssl"] == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}
    assert options["broker_url"] == "amqp://guest:guest@h:5671/v%2Fh"
    loose = urls.redis_or_broker("amqps://h?verify=verify_none", BROKER).celery_options()
    assert loose["broker_use_ssl"] == {"cert_reqs": ssl.CERT_NONE}
    assert urls.redis_or_broker("amqp://g@h:1//", BROKER).celery_options()["broker_url"] == "amqp://g:@h:1/%2F"
