"""Signatures of Standard Webhooks: HMAC-SHA256 over id, timestamp and body, under a secret of the receiver."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from models.errors import InvalidInput

PREFIX = "whsec_"
KEY_BYTES = 32
# What the specification allows for a key (Standard Webhooks 1.0, "Signature scheme": 192 to 512 bits).
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
HINT_CHARS = 4


def new_secret() -> str:
    """A new signing secret: `whsec_` and the base64 of 32 random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def check_secret(text: str, param: str) -> str:
    """A caller's own signing secret. Raises InvalidInput, which names `param` and does not quote the secret."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except (binascii.Error, ValueError):
        key = b""
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise InvalidInput(
            f"Invalid '{param}': expected `{PREFIX}` and the base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes.",
            param=param,
            code="invalid_value",
        )
    return text


def hint_of(secret: str) -> str:
    """What is shown of a secret: its prefix and its last characters."""
    return f"{PREFIX}...{secret[-HINT_CHARS:]}"


def sign(signing_secrets: Sequence[str], *, event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each secret, so that a receiver may know either."""
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    return " ".join(f"v1,{_signature(secret, signed)}" for secret in signing_secrets)


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
