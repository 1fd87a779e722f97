"""Suggests known names for an unknown one. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

# Comparing costs the product of both lengths, and callers choose the name.
MAX_CHARS = 64
MAX_NAMES = 512
MAX_SUGGESTIONS = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to append to an error message, with a leading space; "" where no known name is close."""
    if len(name) > MAX_CHARS:
        return ""
    choices = {each[:MAX_CHARS].lower(): each for each in islice(known, MAX_NAMES)}
    near = [choices[each] for each in difflib.get_close_matches(name.lower(), choices, n=MAX_SUGGESTIONS)]
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{each}'" for each in near) + "?"
