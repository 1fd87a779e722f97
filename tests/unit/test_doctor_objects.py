"""The doctor's line on the object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.commands.doctor.storage import objects
from engine.config.settings import Settings


def test_a_store_that_can_be_used(tmp_path: Path) -> None:
    finding = objects(Settings(data_dir=tmp_path))
    assert (finding.check, finding.status) == ("objects", "ok")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_looking_makes_no_data_directory(tmp_path: Path) -> None:
    assert objects(Settings(data_dir=tmp_path / "none")).status == "warn"
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("in the way")
    finding = objects(Settings(data_dir=tmp_path))
    assert finding.status == "fail" and str(tmp_path / "objects") in finding.fix


def test_a_bucket_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-secret-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    url = "s3://bucket/files?endpoint=http://127.0.0.1:9&region=r"
    finding = objects(Settings(data_dir=tmp_path, objects_url=url))
    assert finding.status == "fail" and "bucket" in finding.fix
    assert "hunter2" not in str(finding) and "AKIA" not in str(finding)
