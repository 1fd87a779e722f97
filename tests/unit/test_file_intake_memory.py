"""However many variants a file has, few megabytes of their inputs wait in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.config.settings import Settings
from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest.file_intake import BUFFERED_BYTES, FileChanged, FileIntake, IntakeTarget
from engine.jobs.ingest.sharding import JobSpec, Prefix
from models.embedding import Options
from tests.fakes import alias, route

SPEC = JobSpec(alias(route(), max_input_tokens=1_000_000), 8, Options(), {}, "req")


def intake(targets: dict[int, IntakeTarget]) -> FileIntake:
    """An intake that is fed, and stores nothing."""
    store = SimpleNamespace(settings=Settings())
    nothing = cast("Any", None)
    return FileIntake(cast("Any", store), nothing, nothing, job_id="job", project="p", targets=targets, guard=nothing)


def records(*texts: str) -> ParsedRecords:
    lines = ParsedRecords()
    for text in texts:
        lines.add(text)
    return lines


def test_the_longest_of_a_thousand_variants_are_stored_early() -> None:
    count, size = 1000, 6000
    fed = intake({n: IntakeTarget(SPEC, n, n * 100, inputs=100) for n in range(count)})
    stored = waiting = 0
    for round_ in range(10):
        for number in range(count):
            drafts = fed.feed([(number, records(f"{number}/{round_} ".ljust(size, "x")))])
            waiting += 1
            for each in drafts:
                assert each.draft.first_index >= each.target * 100 and len(each.draft) > 1
                assert each.draft.first_index + len(each.draft) <= each.target * 100 + round_ + 1
                stored += len(each.draft)
                waiting -= len(each.draft)
            assert waiting * size <= BUFFERED_BYTES + size
    assert stored > 10 * count / 2


def test_one_variant_fills_whole_shards() -> None:
    fed = intake({0: IntakeTarget(SPEC)})
    drafts = [each for n in range(30) for each in fed.feed([(0, records(*(f"{n} {i}" for i in range(100))))])]
    assert [(each.draft.first_index, len(each.draft)) for each in drafts] == [(0, 1024), (1024, 1024)]


def test_equal_texts_of_two_variants_are_no_duplicates() -> None:
    fed = intake({n: IntakeTarget(SPEC, n, n * 2000) for n in range(2)})
    texts = [f"text {n % 600}" for n in range(1100)]
    first, second = fed.feed([(0, records(*texts)), (1, records(*texts))])
    assert first.draft.duplicates == {n: n - 600 for n in range(600, 1024)}
    assert second.draft.duplicates == {n: 2000 + n - 600 for n in range(600, 1024)}


def test_a_variant_gets_no_more_inputs_than_were_counted() -> None:
    fed = intake({0: IntakeTarget(SPEC, 0, 0, inputs=2), 1: IntakeTarget(SPEC, 1, 2, inputs=2)})
    fed.feed([(0, records("a", "b"))])
    with pytest.raises(FileChanged):
        fed.feed([(0, records("c"))])


def test_another_beginning_than_the_stored_one_is_noticed() -> None:
    fed = intake({0: IntakeTarget(SPEC, stored=Prefix(2, b"\0" * 32))})
    with pytest.raises(FileChanged):
        fed.feed([(0, records("a", "b", "c"))])
