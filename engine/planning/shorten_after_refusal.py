"""Truncates an input that the provider refused as too long, or its windows, where the caller allows that."""

from __future__ import annotations

from dataclasses import replace

from engine.planning import token_estimator
from engine.planning.packing import WHAT_TO_DO_IF_TOO_LONG
from models.embedding import Batch, Input, InputError, Options
from models.errors import UpstreamError, UpstreamRejected, UpstreamTooLarge

# Cuts of one input before it is given up: the first keeps three quarters, the others half of what was left.
MAX_CUTS = 8
# The same where the refusal does not say that it is about the length: 8,192 tokens come down to 512.
MAX_CUTS_UNEXPLAINED = 4
# No model takes less, so a shorter input was refused for something else; by estimate, which is high.
LONG_TOKENS = 384


def shorter(batch: Batch, error: UpstreamError, cuts: int) -> Batch | None:
    """The batch with its single input shortened again, if its length may be the cause of the error; else None.

    `cuts`: how often it was shortened before. Shortened to the limit that the error names, else by a fraction. With
    `truncate: "mean"` nothing is cut off: its windows get shorter, so that there are more of them.
    """
    if batch.options.truncate == "mean":
        return _in_shorter_windows(batch, error, cuts)
    if batch.options.truncate != "end":
        return None
    item = batch.inputs[0]
    is_rejection = isinstance(error, UpstreamRejected)
    if error.code == "input_too_long":
        if cuts >= MAX_CUTS:
            return None
        kept = len(item) // 2 if cuts else len(item) * 3 // 4
    elif isinstance(error, UpstreamTooLarge) or (is_rejection and error.code == UpstreamRejected.code):
        if cuts >= MAX_CUTS_UNEXPLAINED or token_estimator.estimate(item) <= LONG_TOKENS:
            return None
        kept = len(item) // 2
    else:
        return None
    if isinstance(error, UpstreamRejected) and error.token_limit and error.token_count:
        # A little less than the limit, and never nearly the whole again.
        kept = min(len(item) * 9 // 10, len(item) * error.token_limit * 19 // (error.token_count * 20))
    return _cut(batch, kept) if kept >= 1 else None


def too_long_error(error: UpstreamError, options: Options) -> InputError:
    """The error of an input that the provider found too long: with its own number, or none; and what helps."""
    advice = WHAT_TO_DO_IF_TOO_LONG if options.truncate == "none" else "send it in parts"
    limit = error.token_limit if isinstance(error, UpstreamRejected) else None
    if limit is not None:
        return InputError("input_too_long", f"maximum input length is {limit} tokens: {advice}")
    return InputError("input_too_long", f"the input is longer than the provider takes: {advice}")


def _in_shorter_windows(batch: Batch, error: UpstreamError, cuts: int) -> Batch | None:
    # Only where the refusal is about the length, and it is the provider's: what was not sent had too many windows.
    if error.code != "input_too_long" or not error.sent or cuts >= MAX_CUTS:
        return None
    kept = 0.5
    if isinstance(error, UpstreamRejected) and error.token_limit and error.token_count:
        # A count may be of the whole call, so a window never shrinks to almost nothing in one step.
        kept = min(0.9, max(0.125, error.token_limit * 0.95 / error.token_count))
    return replace(batch, window_share=batch.window_share * kept)


def _cut(batch: Batch, kept: int) -> Batch:
    item: Input = batch.inputs[0][:kept]
    size = token_estimator.utf8_bytes(item) + batch.added_bytes if isinstance(item, str) and batch.bytes else 0
    return replace(batch, inputs=[item], tokens=token_estimator.estimate(item), bytes=size, is_truncated=True)
