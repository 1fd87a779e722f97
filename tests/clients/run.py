"""`make compatibility-batches`: clients of other people, unmodified, against a running stack; results as tables."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clients import openai_own_tests
from tests.clients.environment import Environment
from tests.clients.key_proxy import KeyProxy
from tests.clients.openai_own_tests import Outcome
from tests.contract.openai.openai_server import Receiver
from tests.gateway import CONFIG
from tests.system.stack import Stack

HERE = Path(__file__).parent
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
# The model that openai-python's tests name.
MORE_CONFIG = """
[models.text-embedding-3-small]
dimensions = 16
allowed_dimensions = "1..16"
routes = [{ provider = "fake", model = "up" }]
"""
SETTINGS = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}


@dataclass(frozen=True, slots=True)
class Client:
    """A package with a script beside this file that uses it. `host`: the package that it is a part of."""

    package: str
    script: str
    requirements: Sequence[str]
    host: str | None = None


CLIENTS = (
    Client(
        "apache-airflow-providers-openai",
        "airflow_client.py",
        ("apache-airflow-providers-openai",),
        host="apache-airflow",
    ),
    Client("autobatcher", "autobatcher_client.py", ("autobatcher",)),
    Client("litellm", "litellm_client.py", ("litellm",)),
    # It imports httpx without saying so: openai 2 brings that.
    Client("openai-batch", "openai_batch_client.py", ("openai-batch", "openai<3")),
)


def run_client(client: Client, stack: Stack) -> tuple[str, bool]:
    """A row of the table, and whether the client did all that its script wants."""
    environment = Environment(client.package, client.requirements)
    try:
        environment.install()
    except subprocess.CalledProcessError as error:
        return f"| {client.package} | – | – | not installed: {error} |", False
    with tempfile.TemporaryDirectory() as folder:
        connection = {"conn_type": "openai", "password": stack.key, "host": f"{stack.url}/v1"}
        done = environment.run(
            [HERE / client.script, f"{stack.url}/v1", stack.key, folder],
            environment={
                "AIRFLOW_HOME": folder,
                "AIRFLOW_CONN_OPENAI_DEFAULT": json.dumps(connection),
            },
        )
    version = environment.version(client.package)
    if client.host is not None:
        version += f" ({client.host} {environment.version(client.host)})"
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return f"| {client.package} | {version} | {client.script} | **failed** |", False
    ran = json.loads(done.stdout.splitlines()[-1])["ran"]
    return f"| {client.package} | {version} | {ran} | passed |", True


def outcome_table(first: dict[str, Outcome], second: dict[str, Outcome]) -> Iterator[str]:
    yield "| module | tests | passed as they are | passed with real ids |"
    yield "|---|---|---|---|"
    for name, outcome in first.items():
        total = outcome.passed + outcome.failed
        skipped = f" (and {outcome.skipped} skipped)" if outcome.skipped else ""
        yield f"| {name} | {total}{skipped} | {outcome.passed} | {second[name].passed} |"


def failure_table(outcomes: dict[str, Outcome]) -> Iterator[str]:
    yield "| module | tests | answer | why it is right |"
    yield "|---|---|---|---|"
    for name, outcome in outcomes.items():
        for message, tests in sorted(outcome.failures.items()):
            reason = openai_own_tests.reason_of(message) or "**not explained**"
            yield f"| {name} | {', '.join(sorted(tests))} | {message.replace('|', ' ')} | {reason} |"


def report(stack: Stack) -> tuple[str, bool]:
    """The tables as Markdown, and whether all is well: each failure is explained."""
    rows, is_good = [], True
    for client in CLIENTS:
        row, passed = run_client(client, stack)
        rows.append(row)
        is_good &= passed
    openai_own_tests.environment().install()
    with Receiver() as receiver, KeyProxy(stack.url, stack.key) as plain:
        first = openai_own_tests.run(f"{plain.url}/v1")
        with KeyProxy(stack.url, stack.key, hook=receiver.url) as replacing:
            second = openai_own_tests.run(f"{replacing.url}/v1")
    for outcome in (*first.values(), *second.values()):
        is_good &= all(openai_own_tests.reason_of(message) for message in outcome.failures)
    parts = [
        "| client | version | what ran | result |\n|---|---|---|---|",
        *rows,
        f"\n### Tests of openai-python {openai_own_tests.VERSION}\n",
        *outcome_table(first, second),
        "\n### Tests of openai-python that fail as they are\n",
        *failure_table(first),
        "\n### Tests of openai-python that fail with real ids, too\n",
        *failure_table(second),
    ]
    return "\n".join(parts) + "\n", is_good


def main() -> int:
    """Print the tables; with the name of a page, write them into it as well."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), settings=SETTINGS, more_config=CONFIG + MORE_CONFIG) as stack,
    ):
        tables, is_good = report(stack)
    print(tables)
    for name in sys.argv[1:]:
        page = Path(name)
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
