"""The address that is dialled is the one that was checked, whatever a name leads to a moment later."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import Settings
from engine.webhooks.resolver import Resolver
from engine.webhooks.sender import SendResult, WebhookSender
from engine.webhooks.targets import TargetPolicy, TargetRefused
from tests.webhook_receiver import Receiver

SECRETS = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]


class Rebinding:
    """A name server that gives each answer once, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def send(
    url: str, lookup: Rebinding | None = None, *, allowed: str = "", tls: ssl.SSLContext | None = None
) -> SendResult:
    resolver = Resolver() if lookup is None else Resolver(lookup)
    sender = WebhookSender(Settings(webhook_timeout_s=3.0), policy=TargetPolicy(allowed, resolver=resolver), tls=tls)
    try:
        return await sender.send(url, SECRETS, event_id="evt_1", body=b"{}")
    finally:
        await sender.close()


@pytest.fixture
def receiver() -> Any:
    with Receiver() as receiver:
        yield receiver


async def test_loopback_is_not_reached_without_the_operators_word(receiver: Receiver) -> None:
    for url in (receiver.url(), receiver.url().replace("http", "https"), f"https://localhost:{receiver.port}/"):
        result = await send(url)
        assert result.status is None and result.error is not None
    assert receiver.received == []


async def test_a_name_that_changes_between_check_and_use_gains_nothing(receiver: Receiver) -> None:
    # Checked: 127.0.0.1, which is allowed here. A second look-up would lead to an address that is not.
    lookup = Rebinding(["127.0.0.1"], ["127.0.0.2"])
    result = await send(f"http://rebinding.example:{receiver.port}/", lookup, allowed="127.0.0.1/32")
    assert (result.status, lookup.asked) == (200, 1)
    assert receiver.received[0].headers["host"] == f"rebinding.example:{receiver.port}"
    # The other way round: the check meets the bad address, and nothing is sent.
    lookup = Rebinding(["127.0.0.2"], ["127.0.0.1"])
    result = await send(f"http://rebinding.example:{receiver.port}/", lookup, allowed="127.0.0.1/32")
    assert result.status is None and "not public" in str(result.error)
    assert (lookup.asked, len(receiver.received)) == (1, 1)


async def test_the_next_address_is_tried_where_one_does_not_connect(receiver: Receiver) -> None:
    lookup = Rebinding(["127.0.0.3", "127.0.0.1"])  # nobody listens on the first
    result = await send(f"http://two.example:{receiver.port}/", lookup, allowed="127.0.0.0/8")
    assert result.status == 200 and len(receiver.received) == 1


async def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await send(receiver.url(), allowed="127.0.0.0/8")).status == 200
        assert proxy.received == [] and len(receiver.received) == 1


async def test_a_failure_says_nothing_of_the_answer(receiver: Receiver) -> None:
    receiver.stop()
    result = await send(receiver.url(), allowed="127.0.0.0/8")
    assert result.error == "the receiver refused the connection, or cannot be reached"


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    key, found = folder / f"{host}.key", folder / f"{host}.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(found),
            "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return key, found


async def test_the_certificate_must_be_that_of_the_host_not_of_the_address(receiver: Receiver, tmp_path: Path) -> None:
    key, found = certificate(tmp_path, "good.example")
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(found, key)
    receiver.stop()
    receiver.start(server_tls)
    trust = ssl.create_default_context(cafile=str(found))
    lookup = Rebinding(["127.0.0.1"])
    good = await send(f"https://good.example:{receiver.port}/", lookup, allowed="127.0.0.0/8", tls=trust)
    assert good.status == 200 and receiver.received[0].headers["host"] == f"good.example:{receiver.port}"
    for host, context in (("other.example", trust), ("good.example", None)):
        result = await send(f"https://{host}:{receiver.port}/", lookup, allowed="127.0.0.0/8", tls=context)
        assert result.status is None and "certificate" in str(result.error)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost", "localhost.", "ip6-localhost", "①②⑦.0.0.1"]
)
async def test_other_spellings_of_loopback_are_resolved_and_refused(host: str) -> None:
    target = TargetPolicy()  # by the system's own resolver
    with pytest.raises(TargetRefused):
        await target.resolve(target.parse(f"https://{host}/"))
