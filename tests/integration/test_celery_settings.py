"""Settings of Celery that keep whoever can write to the broker from more than he must have."""

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


def test_remote_control_is_off_and_messages_are_json(tmp_path: Path) -> None:
    # In a process of its own: the module reads the environment when it is imported.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("EMBEDMILL_", "CELERY_"))}
    settings = {"EMBEDMILL_BROKER_URL": "redis://127.0.0.1:1/0", "EMBEDMILL_DATA_DIR": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=ROOT, env=inherited | settings, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split("\n")[0] == "False ['json'] json False"
