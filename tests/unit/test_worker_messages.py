"""Which messages a worker takes: its own, exactly as it sends them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import compression
from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.mmap_dict import MmapedDict

from engine.queue.broker import RUN_SHARD
from workers.message_check import fault_of, refuse_compression
from workers.metric_files import compact

EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass
class Message:
    headers: Any
    body: Any = json.dumps([[], {}, EMBEDDED])
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    properties: dict[str, Any] = field(default_factory=dict)


def headers(**changes: Any) -> dict[str, Any]:
    """What Celery itself writes for our task."""
    made = Celery(set_as_current=False).amqp.as_task_v2("id-1", RUN_SHARD, ())
    return {**made.headers, **changes}


def test_our_own_message_is_taken() -> None:
    made = Celery(set_as_current=False).amqp.as_task_v2("id-1", RUN_SHARD, ())
    assert fault_of(Message(made.headers, json.dumps(made.body))) is None
    assert fault_of(Message(made.headers, json.dumps(made.body).encode())) is None
    assert fault_of(Message({**made.headers, "x-delivery-count": 2}, json.dumps(made.body))) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"id": {"a": 1}},
        {"id": None},
        {"id": "x" * 10_000},
        {"eta": "9999-12-31T23:59:59"},
        {"eta": 5},
        {"expires": "2020-01-01T00:00:00"},
        {"timelimit": "zz"},
        {"timelimit": [1, 1]},
        {"timelimit": [None, -1]},
        {"retries": 10**9},
        {"retries": "1"},
        {"group": "g"},
        {"stamps": {"a": ["b"]}},
        {"shadow": "other"},
        {"task": "somebody.elses"},
        {"task": None},
        {"argsrepr": ["a"]},
        {"ignore_result": "no"},
        {"unknown": 1},
        {"compression": "application/x-gzip"},
        {"replaced_task_nesting": 10**6},
        {"replaced_task_nesting": True, "retries": False},
    ],
)
def test_headers_that_ask_for_anything_else_are_refused(changes: dict[str, Any]) -> None:
    assert fault_of(Message(headers(**changes)))


@pytest.mark.parametrize("given", [None, {}, [], "x"])
def test_a_message_without_headers_is_refused(given: Any) -> None:
    assert fault_of(Message(given))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        "[" * 100_000,
        "x" * 10_000_000,
        b"\x80\x04.",
        "{}",
        '["", {}, {}]',
        "[{}, {}, {}]",
        "[[1], {}, {}]",
        '[[], {"x": 1}, {}]',
        '[[], {}, {"callbacks": [{"task": "x"}]}]',
        '[[], {}, {"chord": {}, "chain": ["x"]}]',
        json.dumps([["shard_1"], {}, EMBEDDED]),
        json.dumps([["\ud800"], {}, EMBEDDED]),
        None,
        5,
    ],
)
def test_a_body_that_is_not_ours_is_refused(body: Any) -> None:
    assert fault_of(Message(headers(), body))


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "text/plain", "application/x-yaml", None])
def test_another_content_type_is_refused(kind: Any) -> None:
    assert fault_of(Message(headers(), content_type=kind))


@pytest.mark.parametrize("kind", ["application/x-gzip", "application/x-bz2", "application/x-lzma"])
def test_no_message_is_unpacked(kind: str) -> None:
    """kombu does it before a worker sees the message."""
    encoders = {each: compression.get_encoder(each)[0] for each in compression.encoders()}  # type: ignore[no-untyped-call]
    decoders = {each: compression.get_decoder(each) for each in encoders}  # type: ignore[no-untyped-call]
    packed, _ = compression.compress(b"0" * 1_000_000, kind)  # type: ignore[no-untyped-call]
    assert len(compression.decompress(packed, kind)) == 1_000_000  # type: ignore[no-untyped-call]
    try:
        refuse_compression()
        with pytest.raises(ValueError, match="compressed"):
            compression.decompress(packed, kind)  # type: ignore[no-untyped-call]
    finally:
        for each, encoder in encoders.items():
            compression.register(encoder, decoders[each], each)  # type: ignore[no-untyped-call]


def test_counters_of_processes_that_have_ended_are_kept_in_one_file(tmp_path: Path) -> None:
    key = json.dumps(["c_total", "c_total", {}, "help"])
    ended = [4_194_305 + number for number in range(5)]  # beyond Linux's largest pid
    for pid in ended:
        for kind in ("counter", "gauge_mostrecent"):
            values: Any = MmapedDict(str(tmp_path / f"{kind}_{pid}.db"))  # type: ignore[no-untyped-call]
            values.write_value(key, 2.0, 1.0)
            values.close()
    assert compact(tmp_path) == 10
    assert compact(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_ended.db"]
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    assert registry.get_sample_value("c_total") == 10.0
