"""AWS Signature Version 4 against botocore 1.44's own signatures of the same requests at the same instant."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from providers.base import UpstreamRequest
from providers.sigv4 import canonical_request, signed

HOST = "https://bedrock-runtime.us-east-1.amazonaws.com"
HEADERS = {"content-type": "application/json", "accept": "application/json"}
REQUEST = UpstreamRequest(
    "POST", f"{HOST}/model/amazon.titan-embed-text-v2%3A0/invoke", HEADERS, b'{"inputText":"hello"}'
)
NOW_S = 1767323045.9  # 2026-01-02T03:04:05Z, and a fraction that is cut off
OF_REQUEST = "50eaf8c4adbb8c1b85900d8c203d074488f528e51810599f2ec905fe8b1fac08"
WITH_TOKEN = "e349ea6695cffc0eaac8ddcf753631ac70cf6473d4016ec579c5b012491a043e"


def sign(request: UpstreamRequest, session_token: str | None = None, now_s: float = NOW_S) -> UpstreamRequest:
    return signed(
        request,
        access_key_id="AKIDEXAMPLE",
        secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        session_token=session_token,
        region="us-east-1",
        service="bedrock",
        now_s=now_s,
    )


def signature(request: UpstreamRequest) -> str:
    return request.headers["authorization"].rpartition("Signature=")[2]


def test_the_canonical_request() -> None:
    canonical = canonical_request(replace(REQUEST, headers={**HEADERS, "x-amz-date": "20260102T030405Z"}))
    lines = canonical.text.splitlines()
    assert lines[:3] == ["POST", "/model/amazon.titan-embed-text-v2%253A0/invoke", ""]
    assert canonical.signed_headers == "accept;content-type;host;x-amz-date"
    assert lines[-1] == "f0bfe64650594de57d7069c7308b526dccb71b73901f1ee0fda8bb8dff7481c6"
    assert (
        hashlib.sha256(canonical.text.encode()).hexdigest()
        == "0ec2738221d9d05d50e652e3d207ac350424e68eb1630608655246e9c92cf1e0"
    )


def test_all_headers_of_a_signed_request() -> None:
    assert sign(REQUEST) == replace(
        REQUEST,
        headers={
            **HEADERS,
            "x-amz-date": "20260102T030405Z",
            "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/bedrock/aws4_request, "
            f"SignedHeaders=accept;content-type;host;x-amz-date, Signature={OF_REQUEST}",
        },
    )


def test_with_a_session_token() -> None:
    request = sign(REQUEST, "SESSIONTOKENEXAMPLE")
    assert request.headers["x-amz-security-token"] == "SESSIONTOKENEXAMPLE"
    assert signature(request) == WITH_TOKEN
    assert "SignedHeaders=accept;content-type;host;x-amz-date;x-amz-security-token," in request.headers["authorization"]


@pytest.mark.parametrize(
    ("url", "golden"),
    [
        (f"{HOST}/a%2Fb/c~d?b=2&a=1&c", "a39dcd43da1d00967a064bf4cda24107aa9b962988bcdaa758270abf62347fc8"),
        (
            "http://127.0.0.1:9000/model/m/invoke",
            "a0aff3dd7ec75adbece86cad549552c3bbf0ce6e69f92a90e9fa772cc39ac8ea",
        ),
        (
            "http://user@127.0.0.1:9000/model/m/invoke",
            "a0aff3dd7ec75adbece86cad549552c3bbf0ce6e69f92a90e9fa772cc39ac8ea",
        ),
    ],
)
def test_paths_queries_and_ports(url: str, golden: str) -> None:
    assert signature(sign(replace(REQUEST, url=url, body=b"{}"))) == golden


def test_the_port_of_the_scheme_is_no_part_of_the_host() -> None:
    assert signature(sign(replace(REQUEST, url=REQUEST.url.replace(".com/", ".com:443/")))) == OF_REQUEST
    assert signature(sign(replace(REQUEST, url=REQUEST.url.replace(".com/", ".com:80/")))) != OF_REQUEST


def test_headers_that_proxies_change_are_sent_and_not_signed() -> None:
    request = replace(REQUEST, headers={**HEADERS, "accept-encoding": "identity", "x-team": "search"})
    assert sign(request).headers["accept-encoding"] == "identity" and sign(request).headers["x-team"] == "search"
    assert signature(sign(request)) == OF_REQUEST


def test_names_of_headers_have_no_case() -> None:
    request = replace(REQUEST, headers={"Content-Type": "application/json", "Accept": " application/json "})
    assert signature(sign(request)) == OF_REQUEST


def test_signing_again_replaces_the_signature() -> None:
    first = sign(REQUEST, "SESSIONTOKENEXAMPLE", NOW_S - 3600)
    assert sign(first) == sign(REQUEST)
    bearer = replace(REQUEST, headers={**HEADERS, "Authorization": "Bearer k"})
    assert sign(bearer) == sign(REQUEST)


@pytest.mark.parametrize(
    "changed",
    [
        replace(REQUEST, body=b'{"inputText":"hello" }'),
        replace(REQUEST, url=f"{REQUEST.url}?x=1"),
        replace(REQUEST, method="PUT"),
        replace(REQUEST, headers={**HEADERS, "x-amzn-bedrock-trace": "1", "x-amz-target": "t"}),
        replace(REQUEST, headers={**HEADERS, "accept": "*/*"}),
    ],
)
def test_what_the_signature_covers(changed: UpstreamRequest) -> None:
    assert signature(sign(changed)) != OF_REQUEST


def test_the_instant_and_the_secret_decide() -> None:
    assert signature(sign(REQUEST, now_s=NOW_S + 1)) != OF_REQUEST
    assert signature(sign(REQUEST, now_s=NOW_S - 0.9)) == OF_REQUEST


def test_no_secret_in_the_request() -> None:
    request = sign(REQUEST, "SESSIONTOKENEXAMPLE")
    assert "EXAMPLE" not in repr(request)
    assert not [value for value in request.headers.values() if "wJalrXUtnFEMI" in value]
