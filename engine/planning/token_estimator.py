"""Estimates of tokens by bytes of text.

Units: tokens, and bytes of UTF-8. `tokens.count` has the exact counts, for the one tokenizer that embedmill has.
"""

from __future__ import annotations

from models.embedding import Batch, Input, Route

# Tokens a byte, before a route's own counts are known: overstates plain English by a half.
DEFAULT_TOKENS_PER_BYTE = 1 / 3
CL100K = "cl100k"
# Begin, end, and the few words that some models put before a query.
SPECIAL_TOKENS_MARGIN = 16
CL100K_MODELS = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})


def utf8_bytes(text: str) -> int:
    """Length in UTF-8; a lone surrogate counts three bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimate(item: Input) -> int:
    """Tokens for packing, before a route's own counts are known: a packed call exceeds its limit rarely."""
    if isinstance(item, list):
        return len(item)
    return utf8_bytes(item) // 3 + 1


def upper_bound(item: Input) -> int:
    """Upper bound for any tokenizer: a token has at least one byte, and a few tokens are added around a text."""
    return SPECIAL_TOKENS_MARGIN + (len(item) if isinstance(item, list) else utf8_bytes(item))


def upper_bound_of(batch: Batch) -> int:
    """Upper bound of the batch's tokens for any tokenizer."""
    if batch.bytes:
        return batch.bytes + SPECIAL_TOKENS_MARGIN * len(batch.inputs)
    return sum(map(upper_bound, batch.inputs))


def is_exact_for(route: Route) -> bool:
    """True where the upstream uses the tokenizer of `tokens.count`, so that nothing need be estimated."""
    return route.tokenizer == CL100K or (route.account.kind == "openai" and route.upstream_model in CL100K_MODELS)
