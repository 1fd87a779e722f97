"""Vectors as bytes: the Matryoshka cut, and the two ways of writing a row."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.storage import vectors
from models.embedding import Matrix
from models.errors import UpstreamProtocolError
from providers.base import check_vectors
from providers.fake import fake_vectors

numbers = st.floats(-10, 10, width=32)
rows_of_8 = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(8)), elements=numbers)


@given(rows_of_8, st.integers(1, 7))
def test_a_cut_row_is_its_head_at_unit_length(rows: Matrix, width: int) -> None:
    before = rows.copy()
    cut = vectors.truncate(rows, width)
    assert cut.shape == (len(rows), width) and cut.dtype == np.float32 and cut.flags.c_contiguous
    assert (rows == before).all()
    lengths = np.linalg.norm(cut.astype(np.float64), axis=1)
    for head, row, length in zip(before[:, :width].astype(np.float64), cut, lengths, strict=True):
        if np.linalg.norm(head) > 1e-15:
            assert length == pytest.approx(1.0, abs=1e-5)
            assert row == pytest.approx(head / np.linalg.norm(head), abs=1e-5)


def test_the_native_width_is_left_alone() -> None:
    rows = fake_vectors(["a"], 8, "m")
    assert vectors.truncate(rows, 8) is rows


def test_a_row_without_direction_is_refused_after_the_cut() -> None:
    with pytest.raises(UpstreamProtocolError):
        check_vectors(vectors.truncate(np.array([[0, 0, 1, 1]], dtype=np.float32), 2), 1, 2)


@given(rows_of_8)
def test_base64_and_json_read_back_to_the_same_bits(rows: Matrix) -> None:
    for row in rows:
        assert base64.b64decode(vectors.encode_base64(row), validate=True) == row.tobytes()
        assert (np.array(orjson.loads(vectors.encode_json(row)), dtype=np.float32) == row).all()


def test_the_golden_pair() -> None:
    assert vectors.encode_base64(np.array([1.0, -0.5, 0.25, 0.0], dtype=np.float32)) == b"AACAPwAAAL8AAIA+AAAAAA=="


@given(rows_of_8)
def test_blobs(rows: Matrix) -> None:
    assert (vectors.decode_blob(rows.tobytes(), 8) == rows).all()


@pytest.mark.parametrize("count", [1, 2])
def test_rows_read_from_a_reply_can_be_cut_though_nobody_may_write_to_them(count: int) -> None:
    rows = vectors.decode_blob(fake_vectors(["a", "b"][:count], 8, "m").tobytes(), 8)
    assert not rows.flags.writeable
    assert vectors.truncate(rows, 4).shape == (count, 4)
