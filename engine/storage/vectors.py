"""Vectors as float32 rows: truncated to a narrower width, encoded as base64 or JSON, decoded from blobs."""

from __future__ import annotations

import numpy as np
import orjson
import pybase64

from models.embedding import Matrix


def truncate(rows: Matrix, width: int) -> Matrix:
    """Matryoshka: keep the first `width` numbers of each row and bring it back to unit length."""
    if rows.shape[1] == width:
        return rows
    head = rows[:, :width].copy()  # never a view: rows read from a reply cannot be written to
    lengths = np.linalg.norm(head, axis=1, keepdims=True)
    # A row whose kept part is all zeros has no direction; it stays zero, and the check after the cut refuses it.
    np.divide(head, lengths, out=head, where=lengths > 0)
    return head


def normalized(rows: Matrix) -> Matrix:
    """Each row at unit length; one of zeros stays as it is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows.copy()  # never in place: rows read from a reply cannot be written to
    np.divide(rows, lengths, out=unit, where=lengths > 0)
    return unit


def encode_base64(row: Matrix) -> bytes:
    """One vector as OpenAI's base64: little-endian float32, no header."""
    return pybase64.b64encode(row.data)


def encode_json(row: Matrix) -> bytes:
    """One vector as a JSON array of the shortest numbers that read back as the same float32."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_blob(data: bytes, width: int) -> Matrix:
    """Rows of a blob of float32 vectors of this width."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, width)
