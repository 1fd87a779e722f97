"""Finishes a request with a JSON body: the account's fields and the caller's options beneath those of the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from models.embedding import Account, Batch, Route
from providers.base import UpstreamRequest, max_reply_bytes_of
from providers.caller_options import sendable_options
from providers.traits import Traits

_ENCODER = msgspec.json.Encoder()


def json_request(traits: Traits, path: str, body: dict[str, object], batch: Batch, route: Route) -> UpstreamRequest:
    """POST `body`, completed, to the path below the account's address."""
    return post(traits, path, completed(traits, body, batch, route), batch, route)


def completed(traits: Traits, body: dict[str, object], batch: Batch, route: Route) -> dict[str, object]:
    """`body` with the fields of the kind's table, in place of which the caller and the account can set none.

    Beneath what the adapter sets are the caller's options, and beneath those the fields of the account's section. Where
    a vendor keeps these fields inside an object of the body, the adapter completes that object and posts the rest.
    """
    account = route.account
    body = {**traits.body, **body} if traits.body else body
    body.update(mapped_fields(traits, batch, route))
    if batch.options.provider_options and (extra := sendable_options(batch.options.provider_options, route)):
        body = merged(extra, body)
    if account.body:
        body = merged(account.body, body)
    if account.renames:
        body = {account.renames.get(name, name): value for name, value in body.items()}
    return body


def post(traits: Traits, path: str, body: Mapping[str, object], batch: Batch, route: Route) -> UpstreamRequest:
    """POST a finished body to the path below the account's address."""
    account = route.account
    return UpstreamRequest(
        "POST",
        f"{account.base_url}{path}",
        json_headers(account, traits),
        _ENCODER.encode(body),
        max_reply_bytes_of(batch),
        without_headers=account.strip_headers,
    )


def mapped_fields(traits: Traits, batch: Batch, route: Route) -> Iterator[tuple[str, object]]:
    """The fields of the kind's table that this call sends, with the provider's words."""
    encoding = traits.base64 if route.encoding == "base64" and traits.base64 else traits.floats
    if encoding is not None:
        yield encoding
    # Some servers refuse the width even when it is the native one: sent only when it narrows.
    if batch.width != route.width and traits.width_field is not None:
        yield traits.width_field, batch.width
    options = batch.options
    if (field := traits.input_type) is not None and (word := field.of(options.input_type)) is not None:
        yield field.name, word
    if (field := traits.truncate) is not None and (word := field.of(options.truncate)) is not None:
        yield field.name, word
    if options.user and traits.user_field is not None:
        yield traits.user_field, options.user


def json_headers(account: Account, traits: Traits) -> dict[str, str]:
    """JSON headers with the account's key, where it has one, and the headers of its kind and of its section."""
    headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
    if account.api_key:
        is_bearer = traits.key_header == "authorization"
        headers[traits.key_header] = f"Bearer {account.api_key}" if is_bearer else account.api_key
    if traits.headers or account.headers:
        headers |= {**traits.headers, **account.headers}
    for name in account.strip_headers:
        headers.pop(name, None)
    return headers


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, also inside objects that both have; where they differ, `above` wins."""
    both = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            both[name] = merged(below[name], above[name])
    return both
