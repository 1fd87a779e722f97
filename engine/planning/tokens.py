"""Counts the tokens of a text by cl100k: cheap bounds decide for nearly all, it is tokenized only near a limit.

cl100k is OpenAI's tokenizer; for other models it is the best guess at hand, and the upstream has the last word.
"""

from __future__ import annotations

import codecs
import sys

import tiktoken

from engine.planning.token_estimator import CL100K as CL100K
from engine.planning.token_estimator import utf8_bytes
from engine.planning.vocabularies import encoding
from models.embedding import Input

# Whole texts are never tokenized past the point where they are surely too long: cl100k's longest tokens are runs of
# white space, so a slice this long per token leaves no honest text out.
SLICE_CHARS = 65_536
# cl100k's longest token is 128 spaces.
MAX_CHARS_PER_TOKEN = 128


def _cl100k() -> tiktoken.Encoding:
    return encoding(CL100K)


def load() -> None:
    """Read the vocabulary, which takes a third of a second: in a thread, before the first text needs it."""
    _cl100k()


def count(item: Input) -> int:
    """Tokens by cl100k: OpenAI's own count, and for other models the best guess at hand. 24 µs for 600 characters."""
    if isinstance(item, list):
        return len(item)
    return len(_first_tokens(item, sys.maxsize))


def is_within(item: Input, limit: int) -> bool:
    """True when the input has at most `limit` tokens."""
    if isinstance(item, list):
        return len(item) <= limit
    # A token has at least one byte: this decides most texts without a tokenizer.
    if len(item) * 4 <= limit or utf8_bytes(item) <= limit:
        return True
    return len(_first_tokens(item, limit + 1)) <= limit


def decode(ids: list[int], tokenizer: str = CL100K) -> str:
    """The text of token ids. Raises ValueError for an id that the tokenizer does not have."""
    try:
        return encoding(tokenizer).decode(ids)
    except (KeyError, OverflowError):
        raise ValueError(f"an id is not one of {tokenizer}'s") from None


def truncate_to(item: Input, limit: int) -> Input:
    """The longest prefix of the input with at most `limit` tokens."""
    if isinstance(item, list):
        return item[:limit]
    # Nothing behind this many characters can be among the first tokens: it need not be read.
    start = item[: limit * MAX_CHARS_PER_TOKEN]
    if is_within(start, limit):
        return start
    first = _first_tokens(start, limit)
    kept = limit
    while kept > 0:
        # Cutting inside a character can only shorten the text, but joining tokens anew may, rarely, give one more.
        text = _cl100k().decode(first[:kept], errors="ignore")
        if text and is_within(text, limit):
            return text
        kept -= 8
    return item[:1]


def windows(item: Input, limit: int) -> list[tuple[Input, int]]:
    """The input in consecutive pieces of at most `limit` tokens, each with its count; whole where it fits."""
    if isinstance(item, list):
        return [(item[at : at + limit], min(limit, len(item) - at)) for at in range(0, len(item), limit)]
    if len(item) * 4 <= limit:
        return [(item, max(1, len(item) // 4))]
    ids = _first_tokens(item, sys.maxsize)
    if len(ids) <= limit:
        return [(item, len(ids))]
    # A token may end within a character: its bytes wait for those of the next window.
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[tuple[Input, int]] = []
    for at in range(0, len(ids), limit):
        window = ids[at : at + limit]
        text = reader.decode(_cl100k().decode_bytes(window), final=at + limit >= len(ids))
        if text:
            pieces.append((text, len(window)))
    return pieces


def _first_tokens(text: str, limit: int) -> list[int]:
    tokens: list[int] = []
    for start in range(0, len(text), SLICE_CHARS):
        tokens += _cl100k().encode_ordinary(text[start : start + SLICE_CHARS])
        if len(tokens) >= limit:
            break
    return tokens
