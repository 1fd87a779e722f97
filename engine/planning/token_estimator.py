"""Estimates of tokens: of any text by its bytes, and of one route's calls by what its replies have taught.

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
# With each call, the sums are multiplied by this: about the last 50 calls matter.
DECAY = 0.98
MARGIN = 1.1
# Fewer calls are no evidence.
EVIDENCE_CALLS = 8
# No tokenizer makes more than one token of a byte, nor usually a token of more than eight bytes.
MAX_TOKENS_PER_BYTE = 1.0
MIN_TOKENS_PER_BYTE = 1 / 8
RATIO_WEIGHT = 0.2  # of a new call in the learned ratio of used to estimated tokens
MIN_RATIO, MAX_RATIO = 0.2, 5.0


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


class TokenEstimator:
    """Estimates the tokens of calls to one route, and learns from the tokens that its replies report.

    Units: tokens, and bytes of UTF-8. Two ratios are learned. Tokens per byte size the batches: `tokens_per_byte` is on
    the safe side, `mean_tokens_per_byte` is what to expect. A batch carries the estimate it was packed by; used tokens
    per estimated token correct that to what a quota is charged. Known to this process only, and lost with it.
    """

    __slots__ = ("_bytes", "_calls", "_error", "_tokens", "_used_per_estimated", "tokens_per_byte")

    def __init__(self) -> None:
        self.tokens_per_byte = DEFAULT_TOKENS_PER_BYTE
        self._bytes = self._tokens = self._error = 0.0
        self._calls = 0
        self._used_per_estimated = 1.0

    def observe(self, text_bytes: int, used: int) -> None:
        """A call with so many bytes of text was counted as `used` tokens."""
        self._calls += 1
        expected = text_bytes * self._tokens / self._bytes if self._bytes else float(used)
        self._error = self._error * DECAY + abs(used - expected)
        self._tokens = self._tokens * DECAY + used
        self._bytes = self._bytes * DECAY + text_bytes
        # The mean, plus twice the mean error of late, and a margin on top.
        learned = (self._tokens + 2 * self._error) / self._bytes * MARGIN
        learned = min(max(learned, MIN_TOKENS_PER_BYTE), MAX_TOKENS_PER_BYTE)
        self.tokens_per_byte = learned if self._calls >= EVIDENCE_CALLS else max(learned, DEFAULT_TOKENS_PER_BYTE)

    @property
    def mean_tokens_per_byte(self) -> float | None:
        """The mean, without a margin; None before there is evidence."""
        return self._tokens / self._bytes if self._calls >= EVIDENCE_CALLS and self._bytes else None

    def observe_estimate(self, estimated: int, used: int) -> None:
        """A call that was estimated at so many tokens was counted as `used`."""
        if estimated:
            ratio = min(max(used / estimated, MIN_RATIO), MAX_RATIO)
            self._used_per_estimated += (ratio - self._used_per_estimated) * RATIO_WEIGHT

    def charge(self, estimated: int) -> float:
        """The tokens that a quota is charged for a call of so many estimated tokens; at least one."""
        return max(1.0, estimated * self._used_per_estimated)
