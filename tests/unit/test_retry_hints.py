"""When a provider may be asked again, in all the forms that providers use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.retry_hints import duration_s, retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
text_like = st.text("0123456789.:-+eE smhnaif,GMT", max_size=30)


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-4"}, None),
        ({"retry-after": "120.5"}, 120.0),
        ({"retry-after": "86400"}, 120.0),
        ({"retry-after": "inf"}, 120.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "0"}, None),
        ({"retry-after-ms": "0", "retry-after": "9"}, 9.0),
        ({"retry-after": "20ms"}, 0.02),
        ({"retry-after": "1m2.5s"}, 62.5),
        ({"retry-after": "34s"}, 34.0),
        ({"retry-after": DATE, "date": "Wed, 21 Oct 2026 07:27:30 GMT"}, 30.0),
        ({"retry-after": DATE, "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, None),
        ({"retry-after": DATE}, None),
        ({"retry-after": DATE, "date": "today"}, None),
    ],
)
def test_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 2.812s. Visit the site.", 2.812),
        ("Please try again in 20ms.", 0.02),
        ("Please try again in 0s.", None),
        ("Please try again in 6m0s.", 120.0),
        ("Please try again in 1m30.5s.", 90.5),
        ("Please retry after 7 seconds.", 7.0),
        ("Please retry after 1 second.", 1.0),
        ("try again in 2 minutes", 120.0),
        ("TRY AGAIN IN 1 MINUTE", 60.0),
        ("try again in 500 milliseconds", 0.5),
        ("try again in 3 s", 3.0),
        ("try again in 3 moons", None),
        ("try again later", None),
        ("Limit 1000000, Used 976163, Requested 70716.", None),
    ],
)
def test_words(message: str, seconds: float | None) -> None:
    assert retry_after_s({}, message) == seconds


def test_a_header_says_more_than_words() -> None:
    assert retry_after_s({"retry-after": "4"}, "try again in 9s") == 4.0
    assert retry_after_s({"retry-after": "0"}, "try again in 9s") == 9.0


@pytest.mark.fault(24)
@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), text_like | st.text()), st.text())
def test_whatever_is_said_the_wait_is_bounded(headers: dict[str, str], message: str) -> None:
    seconds = retry_after_s(headers, message)
    assert seconds is None or 0.0 < seconds <= 120.0


@given(text_like)
def test_try_again_in_anything(words: str) -> None:
    seconds = retry_after_s({}, f"Please try again in {words}")
    assert seconds is None or 0.0 < seconds <= 120.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h2m3.5s", 3723.5), ("20ms", 0.02), ("6m0s", 360.0), ("", None), ("5", None), ("5s x", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds
