"""What the environment may say, and what is said about a wrong word in it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from cli.data_dir import DataDir
from cli.up.instance_lock import instance_lock
from engine.config.settings import CLIENT_NAMES, PREFIX, VISIBILITY_TIMEOUT_S, WORKER_SEEN_S, Settings, parsed
from models.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"


def test_an_empty_environment_is_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"PATH": "/bin", "EMBEDMILLX": "1"}) == Settings()


def test_values_have_the_type_of_their_default() -> None:
    settings = Settings.from_environment(
        {"EMBEDMILL_SHARD_INPUTS": "7", "EMBEDMILL_LEASE_S": "0.5", "EMBEDMILL_DATA_DIR": "/d", "EMBEDMILL_CONFIG": "c"}
    )
    assert (settings.shard_inputs, settings.lease_s, settings.data_dir, settings.config) == (7, 0.5, Path("/d"), "c")


def test_overrides_win_and_none_is_no_override() -> None:
    environ = {"EMBEDMILL_SHARD_INPUTS": "7"}
    assert Settings.from_environment(environ, shard_inputs=9).shard_inputs == 9
    assert Settings.from_environment(environ, shard_inputs=None).shard_inputs == 7


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EMBEDMILL_DATABSE_URL", "EMBEDMILL_DATABASE_URL"),
        ("EMBEDMILL_API_KEI", "EMBEDMILL_API_KEY"),
        ("EMBEDMILL_QQQQ", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment({name: "x"})
    assert refused.value.param == name and name in refused.value.message
    assert (nearest or "did you mean") in refused.value.message if nearest else "mean" not in refused.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SHARD_INPUTS", "many"),
        ("SHARD_INPUTS", "1.5"),
        ("LEASE_S", "1m"),
        ("MAX_BODY_BYTES", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("BATCH_INPUTS", "0"),
        ("LEASE_S", "0"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "-1"),
        ("SYNC_TIMEOUT_S", "0"),
        ("MAX_INPUTS_PER_REQUEST", "0"),
        ("SHARD_BUDGET_S", "-5"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings.from_environment({PREFIX + name: value})


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("postgresql://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgres://h/db", "postgresql+asyncpg://h/db"),
        ("postgresql+asyncpg://h/db", "postgresql+asyncpg://h/db"),
        ("sqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("", "sqlite+aiosqlite:////d/embedmill.db"),
    ],
)
def test_a_database_url_gets_its_async_driver(given: str, url: str) -> None:
    assert Settings(data_dir=Path("/d"), database_url=given).sqlalchemy_url == url


def test_the_broker_is_redis_unless_said_otherwise(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).broker == ""
    (tmp_path / "redis_url").write_text("unix:///embedded\n")
    with instance_lock(DataDir(tmp_path)):
        assert Settings(data_dir=tmp_path).broker == "unix:///embedded"
    assert Settings(data_dir=tmp_path, redis_url="redis://r").broker == "redis://r"
    assert Settings(data_dir=tmp_path, redis_url="redis://r", broker_url="amqp://b").broker == "amqp://b"


def test_the_url_that_a_killed_up_left_is_ignored(tmp_path: Path) -> None:
    """The kernel drops the lock of a killed process; its Valkey died with it."""
    script = (
        "import os, sys; from pathlib import Path\n"
        "from cli.data_dir import DataDir; from cli.up.instance_lock import instance_lock\n"
        "place = DataDir(Path(sys.argv[1]))\n"
        "with instance_lock(place):\n"
        "    place.redis_url_file.write_text('redis://127.0.0.1:1/0')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9 and (tmp_path / "redis_url").is_file()
    settings = Settings(data_dir=tmp_path)
    assert (settings.redis, settings.broker) == ("", "")


def test_names_of_the_command_line_and_of_tests_are_nobodys_typo() -> None:
    environ = {PREFIX + name: "x" for name in (*CLIENT_NAMES, "TEST_POSTGRES_URL")}
    assert Settings.from_environment(environ) == Settings()


def test_the_example_lists_exactly_the_settings_with_their_defaults() -> None:
    assert EXAMPLE.is_file(), ".env.example is missing: it lists every setting with its meaning and default"
    listed = dict(re.findall(rf"^#?\s?{PREFIX}([A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.M))
    settings = Settings()
    assert set(listed) - set(CLIENT_NAMES) == {each.name.upper() for each in fields(Settings)}
    for each in fields(Settings):
        assert each.metadata["doc"] in EXAMPLE.read_text(), f"{each.name} is explained in other words"
        default = getattr(settings, each.name)
        assert type(default)(listed[each.name.upper()].strip()) == default, each.name


@pytest.mark.parametrize(
    ("given", "usual"),
    [
        ("valkey://cache:6379/1", "redis://cache:6379/1"),
        ("valkeys://u:p@cache", "rediss://u:p@cache"),
        ("rediss://cache", "rediss://cache"),
        ("pyamqp://guest@mq//", "amqp://guest@mq//"),
        ("amqps://mq", "amqps://mq"),
    ],
)
def test_other_names_of_a_protocol_mean_the_same(given: str, usual: str) -> None:
    assert Settings(broker_url=given).broker == usual
    assert Settings(redis_url=given).broker == Settings(redis_url=given).redis == usual


@pytest.mark.parametrize("name", ["LEASE_S", "SHARD_INPUTS", "OPS_PORT"])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_number_is_not_set(name: str, text: str) -> None:
    assert Settings.from_environment({f"EMBEDMILL_{name}": text}) == Settings()


KUBERNETES = {
    "EMBEDMILL_PORT": "tcp://10.0.0.1:8080",
    "EMBEDMILL_SERVICE_HOST": "10.0.0.1",
    "EMBEDMILL_SERVICE_PORT": "8080",
    "EMBEDMILL_SERVICE_PORT_HTTP": "8080",
    "EMBEDMILL_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "EMBEDMILL_PORT_8080_TCP_PROTO": "tcp",
    "EMBEDMILL_PORT_8080_TCP_PORT": "8080",
    "EMBEDMILL_PORT_8080_TCP_ADDR": "10.0.0.1",
    "EMBEDMILL_API_SERVICE_HOST": "10.0.0.2",
    "EMBEDMILL_API_PORT_8080_TCP": "tcp://10.0.0.2:8080",
    "EMBEDMILL_API_PORT": "tcp://10.0.0.2:8080",
}


def test_what_kubernetes_puts_beside_a_service_of_our_name_is_ignored_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert Settings.from_environment(KUBERNETES) == Settings()
    assert caplog.text.count("\n") == 1 and "enableServiceLinks" in caplog.text
    with pytest.raises(ConfigError):
        Settings.from_environment({"EMBEDMILL_PORT": "8080"})  # somebody's setting that does not exist


@pytest.mark.parametrize(
    "environ",
    [
        {"SHARD_BUDGET_S": "225"},
        {"SHARD_BUDGET_S": "1e9"},
        {"DRIFT_MIN_SIMILARITY": "1.5"},
        {"NAMESPACE": "Up per"},
        {"NAMESPACE": "{x}"},
        {"LOG_FORMAT": "xml"},
        {"LOG_LEVEL": "LOUD"},
        {"KEY_PEPPER": "secret\x00secret"},
        {"SHARD_INPUTS": "secretive"},
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name_and_never_quoted(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment({PREFIX + name: value for name, value in environ.items()})
    assert next(iter(environ)) in refused.value.message + str(refused.value.param)
    assert "secret" not in refused.value.message


def test_the_order_of_time_limits() -> None:
    settings = Settings(shard_budget_s=224.0)
    settings.validate()
    assert settings.shard_budget_s < settings.soft_limit_s < settings.hard_limit_s < VISIBILITY_TIMEOUT_S == 300


def test_a_line_end_is_no_part_of_a_value() -> None:
    assert Settings.from_environment({PREFIX + "CONFIG": "a.toml\r\n"}).config == "a.toml"
    assert Settings.from_environment({PREFIX + "SHARD_INPUTS": " 7\n"}).shard_inputs == 7


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("FALSE", False), ("0", False), ("1", True), ("off", False), ("no", False)]
)
def test_false_is_false(text: str, value: bool) -> None:
    assert parsed(True, text, "X") is value
    with pytest.raises(ConfigError):
        parsed(False, "maybe", "X")


@pytest.mark.parametrize(
    ("lease_s", "heartbeat_s", "sweep_s", "idle_claim_s", "watchdog_s"),
    [(60.0, 15.0, 2.0, 5.0, 30.0), (6.0, 1.5, 0.75, 0.5, 10.0)],
)
def test_the_times_of_recovery_follow_from_the_lease(
    lease_s: float, heartbeat_s: float, sweep_s: float, idle_claim_s: float, watchdog_s: float
) -> None:
    settings = Settings(lease_s=lease_s)
    assert (settings.heartbeat_s, settings.sweep_s) == (heartbeat_s, sweep_s)
    assert (settings.idle_claim_s, settings.watchdog_s) == (idle_claim_s, watchdog_s)


def test_four_heartbeats_of_a_worker_may_be_late() -> None:
    assert WORKER_SEEN_S == 45.0


@pytest.mark.parametrize("name", ["HEARTBEAT_S", "SWEEP_S", "WATCHDOG_S", "WORKER_SEEN_S", "REANNOUNCE_AFTER_S"])
def test_a_setting_of_before_is_refused_with_the_one_that_it_follows_from(name: str) -> None:
    with pytest.raises(ConfigError, match="follows from EMBEDMILL_LEASE_S; remove it") as refused:
        Settings.from_environment({f"EMBEDMILL_{name}": "5"})
    assert refused.value.param == f"EMBEDMILL_{name}"
