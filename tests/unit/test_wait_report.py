"""How long a job's reason of waiting stands before it is written again."""

from __future__ import annotations

import pytest

from engine.jobs.recording.wait_report import is_current


@pytest.mark.parametrize(
    ("age_s", "is_late", "expected"),
    [(9.9, False, True), (10.1, False, False), (4.2, True, True), (4.3, True, False)],
)
def test_the_same_reason_is_written_again_after_ten_seconds_or_after_a_probe(
    age_s: float, is_late: bool, expected: bool
) -> None:
    assert is_current("provider", "provider", age_s, is_late=is_late) is expected


@pytest.mark.parametrize("shown", [None, "quota"])
def test_another_reason_is_written_at_once(shown: str | None) -> None:
    assert not is_current(shown, "provider", 0.5, is_late=False)
