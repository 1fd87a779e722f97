"""What libraries log in a process that is set up as ours are."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest


@pytest.mark.parametrize("name", ["celery.worker.request", "multiprocessing"])
def test_a_librarys_line_about_a_child_that_died_is_a_warning_of_one_line(name: str) -> None:
    script = (
        "import logging; from engine.observability.telemetry import configure_logging\n"
        "configure_logging('INFO', 'json')\n"
        "try:\n    raise ValueError('signal 9')\n"
        "except ValueError:\n"
        f"    logging.getLogger('{name}').error('Task raised: %r\\nmore', 'signal 9', exc_info=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    [line] = map(orjson.loads, done.stderr.splitlines())
    assert line["level"] == "WARNING" and "Traceback" not in done.stderr
    assert line["message"] == "Task raised: 'signal 9'; the database knows what is left to do"
