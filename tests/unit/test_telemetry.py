"""Logs hold what is on the list, and nothing that came along by accident: no input, no vector, no key."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import generate_latest

from engine.observability.telemetry import FIELDS, REGISTRY, JsonFormatter, TextFormatter
from workers.__main__ import METRICS_FOLDER, _make_metrics_folder

SECRETS: dict[str, Any] = {"input": "private text", "embedding": [0.123456], "api_key": "em_secret", "body": b"private"}


def record(message: str = "a shard ran", *args: object, **extra: Any) -> logging.LogRecord:
    logger = logging.Logger("embedmill.test")
    try:
        raise ValueError("what happened")
    except ValueError:
        exc_info = sys.exc_info() if extra.pop("failed_badly", False) else None
    return logger.makeRecord("embedmill.test", logging.INFO, "f.py", 1, message, args, exc_info, extra=extra)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_extras_that_are_on_no_list_are_dropped(formatter: logging.Formatter) -> None:
    line = formatter.format(record(job_id="job_1", **SECRETS))
    assert "job_1" in line
    assert not any(secret in line for secret in ("private", "0.123456", "em_secret"))


def test_a_json_line_is_one_line_of_json() -> None:
    line = JsonFormatter().format(record("lost %d\nof %s", 3, "é", shard_id="s", attempt=2, status=None))
    assert "\n" not in line
    document = orjson.loads(line)
    assert document.pop("at").endswith("Z")
    # Who wrote it: lines of many processes lie in one store.
    assert document.pop("pid") == os.getpid()
    assert document.pop("version") == version("embedmill")
    assert document.pop("service") == "embedmill"
    assert document == {
        "level": "INFO",
        "logger": "embedmill.test",
        "message": "lost 3\nof é",
        "shard_id": "s",
        "attempt": 2,
    }


def test_every_field_on_the_list_is_written() -> None:
    given = {name: f"<{name}>" for name in FIELDS}
    document = orjson.loads(JsonFormatter().format(record(**given)))
    assert {name: document[name] for name in FIELDS} == given


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_told(formatter: logging.Formatter) -> None:
    assert "ValueError: what happened" in formatter.format(record(failed_badly=True))


def test_a_value_that_json_does_not_know_breaks_no_log_line() -> None:
    assert orjson.loads(JsonFormatter().format(record(code=object())))["message"] == "a shard ran"


def test_a_handler_writes_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.handle(record(job_id="job_1", **SECRETS))
    assert orjson.loads(stream.getvalue())["job_id"] == "job_1"


def test_metrics_have_the_names_that_dashboards_know() -> None:
    names = {line.split()[2] for line in generate_latest(REGISTRY).decode().splitlines() if line.startswith("# TYPE")}
    assert {
        "embedmill_requests_total",
        "embedmill_request_seconds",
        "embedmill_upstream_calls_total",
        "embedmill_tokens_total",
        "embedmill_inputs_total",
        "embedmill_jobs",
        "embedmill_shards",
        "embedmill_oldest_lease_seconds",
        "embedmill_event_loop_lag_seconds",
    } <= names


def test_a_worker_removes_the_counters_of_those_that_were_killed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, lives, other = (tmp_path / name for name in (f"{METRICS_FOLDER}{ended.pid}-x", f"{METRICS_FOLDER}1-x", "x"))
    for folder in (left, lives, other):
        folder.mkdir()
    own = Path(_make_metrics_folder(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([lives, other, own])
