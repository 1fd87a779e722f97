"""Settings of Celery and of its pool: what whoever can write to the broker cannot do, and how long an end may take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
from workers.app import app
conf = app.conf
print(conf.worker_enable_remote_control, list(conf.accept_content), conf.task_serializer, conf.worker_send_task_events)
"""

# A child whose parent never read one of its results.
END = """
import time
from types import SimpleNamespace
from billiard.pool import Worker
import workers.app
child = object.__new__(Worker)
child.on_ready_counter = SimpleNamespace(value=0)
began = time.monotonic()
print(child._ensure_messages_consumed(completed=1), time.monotonic() - began < 5)
"""


def test_remote_control_is_off_and_messages_are_json(tmp_path: Path) -> None:
    assert said_by(SHOW, tmp_path) == "False ['json'] json False"


def test_a_child_does_not_wait_half_a_minute_for_a_result_that_its_parent_lost(tmp_path: Path) -> None:
    """A worker that had lost its broker a moment ago took longer to end than its supervisor waits."""
    assert said_by(END, tmp_path) == "False True"


def said_by(program: str, data_dir: Path) -> str:
    """The first line that the program prints, in a process of its own: the module reads the environment on import."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("EMBEDMILL_", "CELERY_"))}
    settings = {"EMBEDMILL_BROKER_URL": "redis://127.0.0.1:1/0", "EMBEDMILL_DATA_DIR": str(data_dir)}
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=inherited | settings, capture_output=True, text=True, check=True
    )
    return shown.stdout.split("\n")[0]
