"""The vectors of the fake upstream, which depend on the text alone: tests compare replies with them.

A vector is the sum of two windows into a fixed table, with its first components replaced by bits of the input's hash,
divided by its length. The windows make it wide at the price of one addition; the hash bits make every input's vector
its own, so that a swapped pair shows. All terms are small whole numbers (the hash bits: multiples of 2^-11), so the sum
of squares is exact in any order of summation: an input has the same bits alone, in any batch, on any machine.
"""

from __future__ import annotations

import hashlib
import math
import struct
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.embedding import Input, Matrix

MAX_WIDTH = 8192
DIGEST_BYTES = 24  # 8 leading components of 2 bytes, 2 window offsets of 4 bytes

_LEAD = 8
_TABLE_SIZE = 1 << 17  # 512 KiB of float32: stays in a core's cache
_DIGEST_FIELDS = struct.Struct("<8h2I")
_RANDOM = hashlib.shake_256(b"embedmill fake vectors").digest(_TABLE_SIZE + MAX_WIDTH)
_TABLE_BYTES = np.frombuffer(_RANDOM, dtype=np.uint8)
# High plus low half of a random byte: whole numbers from -15 to 15, bell-shaped, with mean 0. The sum of 8,192 squares
# of two of them stays under 2^24, where float32 holds every whole number.
_TABLE: npt.NDArray[np.float32] = ((_TABLE_BYTES >> 4).astype(np.float32) + (_TABLE_BYTES & 15)) - np.float32(15)


QUERY_TYPES = frozenset({"query", "code_query"})
"""Values of our input_type whose vectors differ from all others, where a vendor's field says them."""


def name_of_space(model: str, *, is_query: bool) -> str:
    """What vectors depend on beside the input: queries have others than documents."""
    return f"{model}\0query" if is_query else model


def fake_vectors(inputs: Sequence[Input], width: int, model: str, input_type: str | None = None) -> Matrix:
    """Unit float32 rows, one per input, that depend on nothing but the input, the model, the width and `input_type`.

    The vectors of queries differ from those of documents, which are those of inputs without a type.

    Different inputs give different rows from width 4 upwards (narrower rows cannot hold enough of the hash). A narrower
    row is the wider one, cut and renormalised (to float32 rounding), as it is with Matryoshka models.
    """
    space = name_of_space(model, is_query=input_type in QUERY_TYPES)
    return vectors_of_digests(fake_digests(inputs, space), width)


def fake_tokens(item: Input) -> int:
    """The fake's token count: max(1, ceil(UTF-8 bytes / 4)) for a text, the length for an array of token ids."""
    if isinstance(item, str):
        size = len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        return max(1, (size + 3) // 4)
    return len(item)


def fake_digests(inputs: Sequence[Input], model: str) -> bytes:
    """The hashes of all inputs, `DIGEST_BYTES` each, that their vectors are made from."""
    prefix = model.encode("utf-8", "surrogatepass")
    text_prefix, token_prefix = prefix + b"\0text\0", prefix + b"\0tokens\0"
    blake2b = hashlib.blake2b
    return b"".join(
        [
            blake2b(text_prefix + item.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
            if isinstance(item, str)
            else blake2b(token_prefix + array("q", item).tobytes(), digest_size=DIGEST_BYTES).digest()
            for item in inputs
        ]
    )


def input_hash(item: Input, model: str) -> str:
    """The 16 hex characters by which the billing log names one input."""
    return fake_digests([item], model)[:8].hex()


def vectors_of_digests(digests: bytes, width: int) -> Matrix:
    """The rows of `fake_vectors` from the hashes of `fake_digests`."""
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"the fake makes vectors of 1 to {MAX_WIDTH} numbers, not {width}")
    if len(digests) == DIGEST_BYTES:
        return _one_row(digests, width)
    count = len(digests) // DIGEST_BYTES
    rows: Matrix = np.empty((count, width), dtype=np.float32)
    words = np.frombuffer(digests, dtype="<u4").reshape(count, DIGEST_BYTES // 4)
    offsets = (words[:, 4:] & (_TABLE_SIZE - 1)).tolist()
    table = _TABLE
    for row, (first, second) in zip(rows, offsets, strict=True):
        np.add(table[first : first + width], table[second : second + width], out=row)
    lead_width = min(_LEAD, width)
    # An odd number is never 0, so no row is.
    bits = np.frombuffer(digests, dtype="<i2").reshape(count, DIGEST_BYTES // 2)[:, :lead_width] | 1
    lead = bits / np.float64(2048)
    rows[:, :lead_width] = lead
    tail = rows[:, lead_width:]
    squares = np.einsum("ij,ij->i", tail, tail).astype(np.float64) + np.einsum("ij,ij->i", lead, lead)
    rows *= (1.0 / np.sqrt(squares)).astype(np.float32)[:, None]
    return rows


def _one_row(digest: bytes, width: int) -> Matrix:
    """The same bits for a single input, without the fixed price of array operations on small arrays."""
    *bits, first, second = _DIGEST_FIELDS.unpack(digest)
    first &= _TABLE_SIZE - 1
    second &= _TABLE_SIZE - 1
    row: npt.NDArray[np.float32] = _TABLE[first : first + width] + _TABLE[second : second + width]
    lead = [(number | 1) / 2048 for number in bits[:width]]
    row[:_LEAD] = lead
    tail = row[_LEAD:]
    squares = float(np.dot(tail, tail)) + sum([number * number for number in lead])
    row *= np.float32(1.0 / math.sqrt(squares))
    return row.reshape(1, width)
