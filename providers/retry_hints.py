"""Reads when a provider may be called again, in all the forms that providers use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_GO_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_IN_WORDS = re.compile(
    r"(?:try again|retry) (?:in|after) (?:((?:\d+(?:\.\d+)?(?:ms|h|m|s))+)\b|(\d+(?:\.\d+)?) *([a-z]+))", re.I
)
_WORD_S = {"millisecond": 0.001, "second": 1.0, "minute": 60.0, "ms": 0.001, "s": 1.0, "m": 60.0}
MAX_WAIT_S = 120.0
MIN_UNIX_TIME = 1e9  # a larger number of seconds is an instant


def retry_after_s(headers: Mapping[str, str], message: str = "") -> float | None:
    """Seconds to wait, more than 0 and at most 120; None without a usable hint.

    `retry-after-ms` wins over `retry-after`, as in OpenAI's own SDK; a date is read against the reply's own Date
    header, because a provider must not need a clock. A hint of 0 or of the past is no hint: obeying it would repeat the
    call as fast as the provider refuses it.
    """
    hints = (
        _in_milliseconds(headers),
        _in_seconds_or_date(headers),
        _in_words(message),
        _until_reset(headers),
    )
    return next((min(seconds, MAX_WAIT_S) for seconds in hints if seconds is not None and seconds > 0), None)


def _in_milliseconds(headers: Mapping[str, str]) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    return None if milliseconds is None else milliseconds / 1000


def _in_seconds_or_date(headers: Mapping[str, str]) -> float | None:
    text = (headers.get("retry-after") or "").strip()
    seconds = _number(text)
    if seconds is None and text:
        seconds = duration_s(text)
    if seconds is not None or not text:
        return seconds
    try:
        return (parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
    except (TypeError, ValueError):
        return None


def _in_words(message: str) -> float | None:
    words = _IN_WORDS.search(message)
    if not words:
        return None
    if words[1]:
        return duration_s(words[1].lower())
    unit = words[3].lower()
    scale = _WORD_S.get(unit) or _WORD_S.get(unit.removesuffix("s"))
    return None if scale is None else float(words[2]) * scale


def _until_reset(headers: Mapping[str, str]) -> float | None:
    """Where there is no other hint: seconds until the quota that is used up is full again."""
    spent = [kind for kind in ("requests", "tokens") if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"]
    resets = [headers.get(f"x-ratelimit-reset-{kind}") for kind in spent] or [headers.get("x-ratelimit-reset")]
    waits = [wait for text in resets if (wait := reset_s((text or "").strip(), headers.get("date", ""))) is not None]
    return max(waits, default=None)


def reset_s(text: str, date: str) -> float | None:
    """A duration, seconds, or an instant as unix seconds or milliseconds, read against the reply's Date."""
    number = _number(text)
    if number is None:
        return duration_s(text) if text else None
    if number < MIN_UNIX_TIME:
        return number
    try:
        return (number / 1000 if number > MIN_UNIX_TIME * 1000 else number) - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def duration_s(text: str) -> float | None:
    """A Go or protobuf duration ('1h2m3.5s', '20ms', '34s') in seconds; None when it is not one."""
    if not re.fullmatch(rf"(?:{_GO_DURATION.pattern})+", text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _GO_DURATION.findall(text))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and value == value else None
