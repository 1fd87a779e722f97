"""The fake's vectors are the oracle of many other tests, so what those rely on is pinned here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.embedding import Input
from providers.fake import fake_tokens, fake_vectors, input_hash

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 256, 1536, 8192])
def test_rows_are_unit_and_do_not_depend_on_their_batch(width: int) -> None:
    inputs: list[Input] = ["", "a", "b" * 5000, "ключ", "\ud800", [1, 2], [1, 2, 3]]
    rows = fake_vectors(inputs, width, "m")
    assert rows.dtype == np.float32 and rows.shape == (len(inputs), width) and rows.flags.c_contiguous
    assert np.allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)
    alone = [fake_vectors([item], width, "m")[0] for item in inputs]
    assert rows.tobytes() == np.array(alone).tobytes()
    assert fake_vectors(inputs[::-1], width, "m")[::-1].tobytes() == rows.tobytes()


def test_100_000_texts_have_100_000_vectors() -> None:
    rows = fake_vectors([f"text {number}" for number in range(100_000)], 8, "m")
    assert len({row.tobytes() for row in rows}) == 100_000


def test_near_inputs_are_far_apart() -> None:
    rows = fake_vectors(["a", "b", "a ", [97], [97, 97]], 1536, "m")
    cosines = rows @ rows.T
    assert np.abs(cosines - np.diag(np.diag(cosines))).max() < 0.15
    assert abs(float(rows[0] @ fake_vectors(["a"], 1536, "another model")[0])) < 0.15


def test_a_narrower_row_is_the_wider_one_cut() -> None:
    wide, narrow = fake_vectors(["text"], 1536, "m")[0], fake_vectors(["text"], 256, "m")[0]
    assert np.allclose(wide[:256] / np.linalg.norm(wide[:256]), narrow, atol=1e-6)


def test_another_process_makes_the_same_bits() -> None:
    code = "from providers.fake import fake_vectors; print(fake_vectors(['text', [1]], 64, 'm').tobytes().hex())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ran.stdout.strip() == fake_vectors(["text", [1]], 64, "m").tobytes().hex()


def test_bits_are_pinned() -> None:
    """Stored vectors of an older release must still be recognised."""
    assert input_hash("text", "m") == "691c570bd587ca06"
    assert fake_vectors(["text"], 4, "m").tobytes().hex() == "d8426a3e6e02bb3d7ab777bff60c603d"


def test_tokens() -> None:
    assert [fake_tokens(item) for item in ("", "abcd", "abcde", "жжж", [7, 8, 9])] == [1, 1, 2, 2, 3]
