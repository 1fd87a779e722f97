"""Where webhooks may be sent: URLs, addresses, and names that change what they lead to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engine.webhooks.addresses import is_public, parse_address, parse_networks
from engine.webhooks.resolver import MAX_LOOKUPS, Resolver
from engine.webhooks.targets import CheckedUrl, TargetPolicy, TargetRefused, Unresolved
from models.errors import ConfigError, InvalidInput

PUBLIC = ("8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111")
NOT_PUBLIC = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
)


class Names:
    """A name server that a test fills; it answers each question with the next of its answers, then with the last."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("no such host")
        return answer


def policy(*answers: Sequence[str], allowed: str = "") -> TargetPolicy:
    return TargetPolicy(allowed, resolver=Resolver(Names(*(answers or ([],)))))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str) -> None:
    address = parse_address(text)
    assert address is not None and is_public(address)


@pytest.mark.parametrize("text", NOT_PUBLIC)
async def test_no_other_address_is_dialled_whether_written_or_resolved(text: str) -> None:
    address = parse_address(text)
    assert address is not None and not is_public(address)
    target = policy([text])
    with pytest.raises(TargetRefused, match="not public"):
        await target.resolve(target.parse("https://name.example/hook"))
    if "%" not in text:
        literal = f"[{text}]" if ":" in text else text
        with pytest.raises(TargetRefused, match="not public"):
            target.parse(f"https://{literal}/hook")


async def test_one_bad_address_among_good_ones_refuses_the_name() -> None:
    for answers in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]):
        target = policy(answers)
        with pytest.raises(TargetRefused, match="not public"):
            await target.resolve(target.parse("https://name.example/"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "expected an https"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("/relative", "https"),
        ("ftp://example.com/", "https"),
        ("file:///etc/passwd", "https"),
        ("javascript:alert(1)", "https"),
        ("gopher://example.com:443/", "https"),
        ("http://example.com/", "in the clear"),
        ("HTTP://example.com/", "in the clear"),
        ("https://user@example.com/", "password"),
        ("https://user:password@example.com/", "password"),
        ("https://example.com@127.0.0.1/", "password"),
        ("https://example.com:22/", "port 22"),
        ("https://example.com:80/", "port 80"),
        ("https://example.com:1023/", "port 1023"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "port 99999"),
        ("https://example.com:x/", "URL"),
        ("https://exa\x00mple.com/", "URL"),
        ("https://exa mple.com/", "name"),
        ("https://example.com/\r\nhost: evil", "URL"),
        ("https://[::1/", "URL"),
        ("https://" + "a" * 300 + ".com/", ""),
        ("https://example.com/" + "a" * 2100, "2048"),
    ],
)
async def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await policy(["127.0.0.1"]).check(url, "webhook.url")
    assert refusal.value.param == "webhook.url" and refusal.value.code == "invalid_webhook_url"
    assert reason in refusal.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:443/a?b=c#d",
        "https://example.com:8443/",
        "https://bücher.example/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]:8443/",
        "HTTPS://EXAMPLE.COM/",
    ],
)
async def test_urls_that_are_stored_as_they_are(url: str) -> None:
    assert await policy(["8.8.8.8"]).check(url) == CheckedUrl(url)


async def test_a_name_that_does_not_resolve_yet_is_stored_and_not_dialled() -> None:
    target = policy([])
    assert await target.check("https://later.example/") == "https://later.example/"
    with pytest.raises(Unresolved, match="does not resolve"):
        await target.resolve(target.parse("https://later.example/"))


async def test_a_name_that_changes_after_it_was_stored_is_refused_when_it_is_used() -> None:
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    target = TargetPolicy(resolver=Resolver(names))
    url = await target.check("https://rebinding.example/")
    with pytest.raises(TargetRefused, match="not public"):
        await target.resolve(target.parse(url))
    assert names.asked == 2


async def test_the_operator_may_allow_networks_and_http_to_them() -> None:
    target = policy(["10.1.2.3"], allowed="10.1.0.0/16, fd00::/8")
    for url in ("http://inside.example/", "http://10.1.2.3:8000/", "https://10.1.2.3/", "http://[fd00::1]:8080/"):
        await target.check(url)
    for url in ("http://10.2.0.1/", "https://10.2.0.1/", "http://8.8.8.8/", "http://10.1.2.3:22/"):
        with pytest.raises(InvalidInput):
            await target.check(url)
    outside = policy(["8.8.8.8"], allowed="10.1.0.0/16")
    with pytest.raises(InvalidInput, match="in the clear"):
        await outside.check("http://public.example/")
    mapped = policy(["::ffff:10.1.2.3"], allowed="10.1.0.0/16")
    assert [str(each) for each in (await mapped.resolve(mapped.parse("https://x.example/"))).addresses] == ["10.1.2.3"]


@pytest.mark.parametrize("text", ["10.1.2.3/8", "nonsense", "10.0.0.0/33", "10.0.0.0/8;127.0.0.0/8"])
def test_networks_that_are_none_stop_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="WEBHOOK_ALLOWED_NETWORKS"):
        parse_networks(text)


async def test_a_slow_name_server_holds_up_only_so_many_lookups_and_no_check() -> None:
    release = threading.Event()
    resolver = Resolver(lambda host, port: ["8.8.8.8"] if release.wait(30) else [])
    target = TargetPolicy(resolver=resolver)
    before = threading.active_count()
    try:
        # The check gives up by its own clock, and the name is stored.
        assert await target.check("https://tarpit.example/") == "https://tarpit.example/"
        assert threading.active_count() - before <= MAX_LOOKUPS
        assert [str(each) for each in await resolver.addresses("8.8.4.4", 443)] == ["8.8.4.4"]
    finally:
        release.set()
