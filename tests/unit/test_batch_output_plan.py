"""The plan of a batch: each line is joined with the inputs that it stands for, whatever the order of the variants."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batches.lines import BatchLine, LineFault, parse_batch_line
from engine.batches.output_lines import EXPIRED, LineError
from engine.batches.output_plan import (
    LinePlanner,
    Outcomes,
    OutputMisaligned,
    PlannedLine,
    Usage,
    Variant,
    decode_lines,
    render,
)
from engine.batches.output_progress import OutputProgress

BATCH = "batch_0123456789abcdef0123456789abcdef"
NOT_RUN = LineError(*EXPIRED, status=None)
# Of each line: its model, and how many inputs it has.
LINES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), min_size=1, max_size=40)


def parsed(custom_id: str, model: str, inputs: Any, **fields: Any) -> BatchLine:
    body = {"model": model, "input": inputs, **fields}
    text = orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})
    line = parse_batch_line(text, None)
    assert isinstance(line, BatchLine), line
    return line


def variants_of(lines: list[BatchLine], widths: int = 2) -> list[Variant]:
    """Variants as the validation makes them."""
    counts: dict[bytes, int] = {}
    for line in lines:
        counts[line.options_key] = counts.get(line.options_key, 0) + len(line.inputs)
    found, first = [], 0
    for number, (key, inputs) in enumerate(counts.items()):
        found.append(Variant(number, key, widths, first, inputs, inputs, None))
        first += inputs
    return found


def batch_of(shape: list[tuple[str, int]]) -> list[BatchLine]:
    return [parsed(f"id-{n}", model, [f"text {n}.{i}" for i in range(size)]) for n, (model, size) in enumerate(shape)]


@settings(max_examples=200, deadline=None)
@given(LINES, st.integers(0, 40))
def test_each_input_has_one_index_also_after_a_stop(shape: list[tuple[str, int]], stop: int) -> None:
    lines = batch_of(shape)
    variants = variants_of(lines)
    planner = LinePlanner(variants, [])
    planned = [planner.plan(number, line) for number, line in enumerate(lines, 1)]
    planner.check_end()
    indexes = [index for line in planned for index in range(line.first_index, line.stop)]
    assert sorted(indexes) == list(range(sum(size for _, size in shape)))
    for variant in variants:
        own = [line.first_index for line in planned if line.variant == variant]
        assert own == sorted(own) and own[0] == variant.first_index
    # From stored cursors the rest is planned alike.
    before = LinePlanner(variants, [])
    for number, line in enumerate(lines[:stop], 1):
        before.plan(number, line)
    cursors = OutputProgress.of(json.loads(json.dumps(OutputProgress(cursors=before.cursors).to_store()))).cursors
    after = LinePlanner(variants, [], cursors)
    assert [after.plan(n, line) for n, line in enumerate(lines[stop:], stop + 1)] == planned[stop:]


@settings(max_examples=100, deadline=None)
@given(LINES, st.data())
def test_each_line_has_the_vectors_of_its_inputs_or_its_error(
    shape: list[tuple[str, int]], data: st.DataObject
) -> None:
    lines = batch_of(shape)
    total = sum(size for _, size in shape)
    kinds = data.draw(st.lists(st.sampled_from("vvvven"), min_size=total, max_size=total))
    planner = LinePlanner(variants_of(lines), [])
    planned = [planner.plan(number, line) for number, line in enumerate(lines, 1)]
    outcomes = Outcomes()
    for index, kind in enumerate(kinds):
        if kind == "v":
            outcomes.vectors[index] = np.array([index, -index], dtype="<f4")
        elif kind == "e":
            outcomes.errors[index] = {"code": "upstream_rejected", "message": f"index {index}", "retryable": False}
    right = [[kinds[index] for index in range(line.first_index, line.stop)] for line in planned]
    weight = sum(line.weight() for line, own in zip(planned, right, strict=True) if set(own) == {"v"})
    rendered = render(BATCH, planned, outcomes, Usage(997, weight), not_run=NOT_RUN)
    assert [number for number, _, _ in rendered.lines] == list(range(1, len(lines) + 1))
    tokens = 0
    for line, own, (_, has_embeddings, text) in zip(planned, right, rendered.lines, strict=True):
        document = json.loads(text)
        assert document["custom_id"] == line.custom_id and has_embeddings == (set(own) == {"v"})
        if has_embeddings:
            found = [item["embedding"][0] for item in document["response"]["body"]["data"]]
            assert found == list(range(line.first_index, line.stop))
            tokens += document["response"]["body"]["usage"]["total_tokens"]
        elif "e" in own:
            position = own.index("e")
            assert document["error"]["param"] == f"input[{position}]"
            assert f"index {line.first_index + position}" in document["error"]["message"]
        else:
            assert document["error"]["code"] == EXPIRED[0] and document["response"] is None
    assert tokens == (997 if weight else 0)
    while_running = render(BATCH, planned, outcomes, Usage(0, 0))
    left_out = {n for n, own in enumerate(right, 1) if set(own) != {"v"} and "e" not in own}
    assert {number for number, _, _ in while_running.lines} == set(range(1, len(lines) + 1)) - left_out


def test_what_does_not_match_the_validation_is_refused() -> None:
    lines = batch_of([("a", 2), ("b", 1), ("a", 1)])
    variants = variants_of(lines)
    planner = LinePlanner(variants, [])
    with pytest.raises(OutputMisaligned, match=r"line 9 .* options"):
        planner.plan(9, parsed("x", "other", "text"))
    for number, line in enumerate(lines, 1):
        planner.plan(number, line)
    with pytest.raises(OutputMisaligned, match=r"line 4 .* inputs"):
        planner.plan(4, parsed("x", "b", "text"))
    short = LinePlanner(variants, [])
    short.plan(1, lines[0])
    with pytest.raises(OutputMisaligned, match=r"2 inputs of variant 0.* saw 3"):
        short.check_end()


def test_lines_that_cannot_run_take_no_inputs() -> None:
    good, again, bad = parsed("a", "a", "x"), parsed("a", "c", "y"), parsed("b", "b", ["z"])
    error = LineError("model_not_found", "no such model", "body.model", 404)
    variants = [Variant(0, good.options_key, 2, 0, 2, 2, None), Variant(1, bad.options_key, 0, 2, 0, 0, error)]
    planner = LinePlanner(variants, [2])
    fault = LineFault("invalid_json_line", "not JSON", None)
    lines: list[BatchLine | LineFault] = [good, again, bad, fault, good]
    planned = [planner.plan(n, line) for n, line in enumerate(lines, 1)]
    planner.check_end()
    assert [line.first_index for line in planned if line.request is not None] == [0, 1]
    codes = [None if line.error is None else line.error.code for line in planned]
    assert codes == [None, "duplicate_custom_id", "model_not_found", "invalid_json_line", None]
    assert [line.custom_id for line in planned] == ["a", "a", "b", None, "a"]
    assert [line.weight() for line in planned] == [1, 0, 0, 0, 1]


def test_a_single_input_is_named_without_a_position() -> None:
    planned = [
        PlannedLine(1, "a", parsed("a", "m", "x"), None, 5),
        PlannedLine(2, "b", parsed("b", "m", ["x"]), None, 6),
    ]
    error = {"code": "empty_input", "message": "it is empty", "retryable": False}
    lines = render(BATCH, planned, Outcomes(errors={5: error, 6: error}), Usage(0, 0)).lines
    one, many = (json.loads(text)["error"] for _, _, text in lines)
    assert (one["param"], one["message"]) == ("input", "it is empty")
    assert (many["param"], many["message"]) == ("input[0]", "Invalid 'input[0]': it is empty")


@pytest.mark.parametrize("numbers", [[], [3], [9, 1, 2**40]])
def test_numbers_of_duplicate_lines(numbers: list[int]) -> None:
    packed = zlib.compress(np.array(numbers, dtype="<i8").tobytes())
    assert list(decode_lines(packed)) == sorted(numbers)
    assert list(decode_lines(None)) == []
