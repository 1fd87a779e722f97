"""A stack whose one model has routes to fakes of several wire formats, all of one space, each with its own bill."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

from providers.fake.formats import fake_format
from tests.system.bill_log import BillLog
from tests.system.stack import MODEL, UPSTREAM_KEY, UPSTREAM_MODEL, WIDTH, Stack, free_port
from tests.waiting import wait_until

START_S = 30.0
# The account of the stack's own upstream, which speaks OpenAI's format.
OPENAI_ACCOUNT = "up"
# All fakes are of the space of the stack's upstream model, so the oracle's vectors and hashes are those of each.
SPACE = UPSTREAM_MODEL
ACCOUNT = """
[providers.{kind}]
kind = "{kind}"
base_url = "http://127.0.0.1:{port}{base_path}"
timeout_s = 60
api_key = "env:STACK_UPSTREAM_KEY"
[[models."{model}".routes]]
provider = "{kind}"
model = "{kind}-of-the-space"
priority = {priority}
"""


class ManyFormatsStack(Stack):
    """Beside the OpenAI fake, one fake process for each of `kinds`; its account and its model are named after it.

    `priority`: of the routes of these kinds; the route of the OpenAI fake has 0.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], *, priority: int = 0, **options: Any) -> None:
        self._ports = {kind: free_port() for kind in kinds}
        accounts = [
            ACCOUNT.format(kind=kind, port=port, base_path=fake_format(kind).base_path, model=MODEL, priority=priority)
            for kind, port in self._ports.items()
        ]
        self._logs = {kind: BillLog(folder / f"bill-{kind}.ndjson") for kind in kinds}
        super().__init__(folder, more_config="".join(accounts), **options)

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts of the model's routes."""
        return (OPENAI_ACCOUNT, *self._ports)

    def __enter__(self) -> Self:
        try:
            for kind, port in self._ports.items():
                options = ["--kind", kind, "--space", SPACE, "--port", str(port), "--width", str(WIDTH)]
                bill = ["--log", str(self._bill_of(kind)), "--log-inputs", "--api-key", UPSTREAM_KEY]
                self.processes.start(process_of(kind), [sys.executable, "-m", "cli.fake_upstream", *options, *bill])
            for kind in self._ports:
                wait_until(partial(self._answers, kind), START_S, what=f"the start of the {kind} fake")
        except BaseException:
            self.close()
            raise
        return super().__enter__()

    def script_all(self, *rules: dict[str, Any]) -> None:
        """What every fake does wrong from now on, each at calls of its own."""
        self.script(*rules)
        for number, kind in enumerate(self._ports, 1):
            body = orjson.dumps({"rules": rules, "seed": number})
            httpx.put(f"{self._url_of(kind)}/__script", content=body, trust_env=False).raise_for_status()

    def faults_of(self, account: str) -> dict[str, int]:
        """How often the fake of the account has answered with each error status."""
        if account == OPENAI_ACCOUNT:
            stats = self.stats()
        else:
            stats = httpx.get(f"{self._url_of(account)}/__stats", trust_env=False).json()
        faults: dict[str, int] = stats["faults"]
        return faults

    def bill_of(self, account: str) -> list[dict[str, Any]]:
        """What the fake of the account charges for, call by call."""
        if account == OPENAI_ACCOUNT:
            return super().bill()
        return self._logs[account].lines()

    def calls_with(self, hashes: Iterable[str]) -> list[dict[str, Any]]:
        """Those of all bills with at least one of these inputs."""
        logs = (self.bill_log, *self._logs.values())
        names = list(hashes)
        return [line for log in logs for line in log.with_inputs(names)]

    def bill(self) -> list[dict[str, Any]]:
        """What all fakes together charge for."""
        return [line for account in self.accounts for line in self.bill_of(account)]

    def _answers(self, kind: str) -> bool:
        self.processes.check()
        try:
            return httpx.get(f"{self._url_of(kind)}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _url_of(self, kind: str) -> str:
        return f"http://127.0.0.1:{self._ports[kind]}"

    def _bill_of(self, kind: str) -> Path:
        return self.folder / f"bill-{kind}.ndjson"


def process_of(account: str) -> str:
    """The name of the account's fake among the stack's processes."""
    return "fake" if account == OPENAI_ACCOUNT else f"fake-{account}"
