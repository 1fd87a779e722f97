"""What people read while they wait."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest
from rich.console import Console

from cli.client.types import Counts, Job, Model, Rate
from cli.output.model_table import price
from cli.output.progress import BarProgress, LineProgress, job_progress, summary
from cli.output.terminal import duration


def job(status: str = "in_progress", *, done: int = 12_288, failed: int = 0, total: int | None = 30_000) -> Job:
    return Job(
        id="job_1",
        status=status,
        counts=Counts(total=total, completed=done - failed, failed=failed),
        rate=Rate(8123.4),
        eta_seconds=125,
        cost_usd=Decimal("0.0246"),
    )


def test_one_line_says_it_all() -> None:
    assert summary(job(failed=2)) == "12,288/30,000 · 40% · 8,123/s · eta 2 min 05 s · $0.0246 · 2 failed"


def test_what_is_not_known_is_not_said() -> None:
    unknown = Job(id="job_1", status="validating", counts=Counts(completed=5), waiting_on="quota")
    assert summary(unknown) == "5 so far · $0 · waiting on quota"


def test_a_hundred_per_cent_means_all() -> None:
    assert "99%" in summary(job(done=29_999))
    assert "100%" in summary(job("completed", done=30_000))
    assert "eta" not in summary(job("completed", done=30_000))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (12_000, "3 h 20 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_every_ten_per_cent_or_five_seconds() -> None:
    now = 0.0
    written = io.StringIO()
    with LineProgress(Console(file=written, soft_wrap=True), clock=lambda: now) as shown:
        shown.reading("texts.txt", 0.5)
        for done in (0, 100, 2_999, 3_000, 3_001):
            shown.working(job(done=done))
        now = 4.9
        shown.working(job(done=3_100))
        now = 5.1
        shown.working(job(done=3_200))
        shown.working(job("completed", done=30_000))
        shown.working(job("completed", done=30_000))
    lines = written.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "in progress: 3,000/30,000",
        "in progress: 3,200/30,000",
        "completed: 30,000/30,000",
    ]


def test_a_pause_is_said_at_once_and_once_with_its_reason_and_its_end() -> None:
    written = io.StringIO()
    spent = job("paused", done=100)
    spent.waiting_on = "budget"
    with LineProgress(Console(file=written, soft_wrap=True), clock=lambda: 0.0) as shown:
        for each in (job("paused", done=100), job("paused", done=101), job(done=102), spent, spent):
            shown.working(each)
    lines = written.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["paused by its caller", "paused, its budget is spent"]
    assert lines[0].endswith("(`embedmill jobs resume job_1` lets it go on)")
    assert lines[1].endswith("(`embedmill jobs resume job_1 --max-cost USD` lets it go on)")


def test_a_terminal_gets_a_bar() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    shown = job_progress(console)
    assert isinstance(shown, BarProgress)
    with shown:
        shown.reading("texts.txt", 0.5)
        shown.working(job(failed=2))
        shown.saving("v.npy", 0.1)
    assert isinstance(job_progress(Console(file=written)), LineProgress)


def test_prices_are_for_a_million_tokens() -> None:
    assert price(Model(id="m", pricing={"input": "0.00000002"})) == "0.02"
    assert price(Model(id="m", pricing={"input": "0"})) == "0"
    assert price(Model(id="m")) == ""
