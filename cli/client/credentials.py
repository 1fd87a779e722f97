"""The server's address and the key for it. A data directory made by somebody else must not obtain our key."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from cli.data_dir import DataDir
from cli.errors import CliError, Failure, UsageError

# Paths that people copy from OpenAI's documentation or from a browser.
KNOWN_PATHS = re.compile(r"/(v1(/.*)?|docs|healthz|readyz)/?$")
URL_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/\[\]@!$&'()*+,;=%]+")
EXAMPLE = "it must look like http://127.0.0.1:8080"


def resolve_server(url: str | None, api_key: str | None, data_dir: DataDir) -> tuple[str, str | None]:
    """The server's address and the key for it: as given, else as the data directory has them.

    An address that only a folder names gets that folder's own key and no other, unless it is of this machine.
    Raises UsageError, and CliError where no server is known.
    """
    given_key = clean_key(api_key, "--api-key or EMBEDMILL_API_KEY")
    if url is not None:
        return parse_server_url(url), given_key or clean_key(data_dir.key(), str(data_dir.key_file))
    folder_url = data_dir.url()
    if folder_url is None:
        raise CliError(
            f"no server is known: there is no --url, no EMBEDMILL_URL and no {data_dir.url_file}",
            "start one with `embedmill up`, or set EMBEDMILL_DATA_DIR to its data directory",
            failure=Failure.NOT_SET_UP,
        )
    address = parse_server_url(folder_url)
    folder_key = clean_key(data_dir.key(), str(data_dir.key_file))
    if is_loopback(address):
        return address, given_key or folder_key
    if given_key is not None and given_key != folder_key:
        raise UsageError(
            f"{data_dir.url_file} names {address}, and a folder does not decide where your key goes",
            f"if you trust it, say --url {address}",
        )
    if data_dir.key_file.is_symlink() or data_dir.url_file.is_symlink():
        raise UsageError(
            f"{data_dir.url_file} names {address}, and it or the key beside it is a link to another place",
            f"if you trust it, give --url {address} and --api-key",
        )
    return address, folder_key


def parse_server_url(text: str) -> str:
    """The server's address, normalised. Raises UsageError, which repeats no password."""
    url = text.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    else:
        if host and "@" in parts.netloc:
            raise UsageError("the server's URL holds a user or a password", "leave it out; keys go into --api-key")
    if not host or port == 0 or parts.scheme.lower() not in ("http", "https") or not URL_CHARACTERS.fullmatch(url):
        raise UsageError(f"{text!r} is not a URL" if "@" not in text else "that is not a URL", EXAMPLE)
    return f"{parts.scheme.lower()}://{parts.netloc}{KNOWN_PATHS.sub('', parts.path).rstrip('/')}"


def clean_key(text: str | None, where: str) -> str | None:
    """A key without the blanks and line ends around it. Raises UsageError, which does not repeat it."""
    key = (text or "").strip()
    for position, char in enumerate(key, 1):
        if not "!" <= char <= "~":
            raise UsageError(
                f"the key of {where} holds a character that no key has (code {ord(char)}, at {position} of {len(key)})",
                "copy it again",
            )
    return key or None


def is_loopback(url: str) -> bool:
    """True for this machine, as the client that will connect reads the URL."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
