"""EMBEDMILL_OBJECTS_URL: which store it names, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.storage.local_objects import LocalObjects
from engine.storage.object_store import open_object_store
from engine.storage.s3_objects import S3Location, S3Objects
from models.errors import ConfigError

SETTING = "EMBEDMILL_OBJECTS_URL"


@pytest.mark.parametrize("url", ["", "file:///var/objects", "file://localhost/var/objects", "FILE:///x"])
def test_folders(url: str, tmp_path: Path) -> None:
    assert isinstance(open_object_store(url, tmp_path), LocalObjects)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket", S3Location("bucket")),
        ("s3://bucket/a/b%20c/", S3Location("bucket", prefix="a/b c")),
        ("s3://b?region=eu-west-1", S3Location("b", region="eu-west-1")),
        ("s3://b?endpoint=http://h:9000&region=x", S3Location("b", endpoint="http://h:9000", region="x")),
        ("s3://b?endpoint=https%3A%2F%2Fh", S3Location("b", endpoint="https://h")),
        ("s3://b?addressing=virtual", S3Location("b", is_virtual=True)),
    ],
)
def test_buckets(url: str, location: S3Location, tmp_path: Path) -> None:
    assert S3Location.of(url, SETTING) == location
    assert isinstance(open_object_store(url, tmp_path), S3Objects)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3:///bucket", "names no bucket"),
        ("s3://KEY:hunter2@bucket", "AWS_ACCESS_KEY_ID"),
        ("s3://b?endpiont=http://h", "endpiont"),
        ("s3://b?endpoint=h:9000", "http://"),
        ("s3://b?addressing=dns", "path or virtual"),
        ("file://host/x", "must have the form"),
        ("file:///", "must have the form"),
        ("/var/objects", "must have the form"),
        ("gs://bucket", "must have the form"),
        ("http://h/bucket", "must have the form"),
    ],
)
def test_others_are_refused_by_name_and_not_quoted(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_object_store(url, tmp_path)
    assert caught.value.param == SETTING
    assert words in caught.value.message and SETTING in caught.value.message
    assert "hunter2" not in caught.value.message
