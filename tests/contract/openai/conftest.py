"""One running stack for all facts of this folder: its API, a worker, a scheduler and a fake upstream."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from openai import OpenAI

from providers.fake.formats import fake_format
from tests.contract.openai.openai_server import OpenAIServer, Receiver
from tests.gateway import CONFIG
from tests.system.stack import Stack, free_port

# `busy`: over its quota for ten minutes. `only-floats`: a server whose wire knows no base64.
MORE_CONFIG = """
[providers.busy]
kind = "fake"
script = [{{ do = {{ status = 429, retry_after = 600 }} }}]

[models.busy]
dimensions = 16
routes = [{{ provider = "busy", model = "up" }}]

[providers.ollama]
kind = "ollama"
base_url = "http://127.0.0.1:{port}{base_path}"

[models.only-floats]
dimensions = 16
verify_spaces = false
routes = [{{ provider = "ollama", model = "up" }}]
"""
# Small shards, so that a cancelled batch has some that are done and some that are not; no waiting for shards to fill.
SETTINGS = {"SHARD_INPUTS": "16", "BATCH_INPUTS": "8", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}


@pytest.fixture(scope="session")
def openai_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    port = free_port()
    config = CONFIG + MORE_CONFIG.format(port=port, base_path=fake_format("ollama").base_path)
    stack = Stack(tmp_path_factory.mktemp("openai"), settings=SETTINGS, more_config=config)
    options = ["--kind", "ollama", "--port", str(port), "--width", "16"]
    stack.processes.start("ollama", [sys.executable, "-m", "cli.fake_upstream", *options])
    with stack:
        yield OpenAIServer(stack)


@pytest.fixture(scope="session")
def client(openai_server: OpenAIServer) -> OpenAI:
    return openai_server.client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver
