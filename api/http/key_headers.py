"""The headers in which clients send a key, each with its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastapi import Request

from models.errors import NotAuthenticated


class KeyHeader(NamedTuple):
    """One header that holds a key."""

    title: str
    form: str  # as told to callers
    takes_bearer: bool = False  # "Bearer " may stand before the key


SentKey = tuple[KeyHeader, str]
"""A key of a request, and the header that it is of."""

AUTHORIZATION = b"authorization"
# The first one with a key is judged.
KEY_HEADERS = {
    AUTHORIZATION: KeyHeader("Authorization", "Bearer <key>", takes_bearer=True),
    b"x-api-key": KeyHeader("x-api-key", "<key>"),
    b"api-key": KeyHeader("api-key", "<key>"),  # Azure's clients
    b"otari-key": KeyHeader("Otari-Key", "<key>", takes_bearer=True),  # Otari's clients send both forms
    b"x-openai-api-key": KeyHeader("X-Openai-Api-Key", "<key>"),  # Weaviate's
}
# Google's clients send one of these; on other paths they are no keys.
GOOGLE_HEADERS = {**KEY_HEADERS, b"x-goog-api-key": KeyHeader("x-goog-api-key", "<key>")}
GOOGLE_QUERY = KeyHeader("?key= (in the query)", "<key>")
NO_KEY = (
    "You didn't provide an API key, in Authorization or x-api-key. Send it as `Authorization: Bearer <key>`. "
    "Known too: api-key, Otari-Key, X-Openai-Api-Key."
)
NO_GOOGLE_KEY = "You didn't provide an API key. Send it in x-goog-api-key, or as `?key=` in the query."
OTHER_SCHEME = (
    "The header Authorization was judged, and holds no API key: its form is `Bearer <key>`. "
    "Leave it out where the key is in x-api-key."
)


def sent_keys(request: Request) -> list[SentKey]:
    """The keys of the request, none of them empty, in the order in which they are judged.

    Raises NotAuthenticated for a request without a key, and for another scheme in Authorization.
    """
    keys = _keys_in(request, KEY_HEADERS)
    if not keys:
        raise NotAuthenticated(NO_KEY)
    return keys


def google_keys(request: Request) -> list[SentKey]:
    """`sent_keys`, also from x-goog-api-key and the query's `key`."""
    keys = _keys_in(request, GOOGLE_HEADERS)
    if text := request.query_params.get("key", "").strip():
        keys.append((GOOGLE_QUERY, text))
    if not keys:
        raise NotAuthenticated(NO_GOOGLE_KEY)
    return keys


def _keys_in(request: Request, headers: Mapping[bytes, KeyHeader]) -> list[SentKey]:
    sent = [(name, value) for name, value in request.scope["headers"] if name in headers]
    if len(sent) > 1:
        order = list(headers)
        sent.sort(key=lambda pair: order.index(pair[0]))
    keys: list[SentKey] = []
    for name, value in sent:
        header = headers[name]
        if header.takes_bearer and value[:7] == b"Bearer ":  # nearly always
            text = value[7:].decode("latin-1").strip()
        else:
            text = _key(name, header, value.decode("latin-1").strip())
        if text:  # an empty key beside another does not count
            keys.append((header, text))
    return keys


def _key(name: bytes, header: KeyHeader, text: str) -> str:
    if header.takes_bearer:
        scheme, _, rest = text.partition(" ")
        if scheme.lower() == "bearer":
            return rest.strip()
        if name == AUTHORIZATION and scheme:
            raise NotAuthenticated(OTHER_SCHEME)
    return text
