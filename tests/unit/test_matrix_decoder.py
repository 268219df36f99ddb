"""Decoding into the matrix: which requests take one step, and that categories of any text do."""

import gc
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tidemill.core import matrix_decoder
from tidemill.core.decoding import Decoded, Decoder
from tidemill.core.encoder import Encoder
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Feature, Schema

SCHEMA = Schema((Feature("n", "number"), Feature("b", "boolean"), Feature("c", "category")), "y", "binary", ("no", "yes"))
ENCODER = Encoder.fit(SCHEMA, {"c": ["x", "y"]})
PLAIN: list[dict[str, Any]] = [
    {"n": 1, "b": True, "c": "x"},
    {"c": "y", "n": -0.0, "b": False},
    {"n": None, "b": None, "c": None},
    {"n": 2.5},
    {},
    {"n": 3, "b": True, "c": "never seen"},
    {"n": 4, "b": True, "c": "y", "more": 1},
]
OTHERS: list[dict[str, Any]] = [{"n": "1"}, {"b": 1}, {"c": 1}, {"n": 2**60}, {"c": "\0"}, {"n": []}]


def as_bytes(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


@pytest.fixture
def the_long_way(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The values that went through ``Decoder``."""
    taken: list[bytes] = []
    decode = Decoder.decode

    def recorded(self: Decoder, values: Sequence[bytes]) -> Decoded:
        taken.extend(values)
        return decode(self, values)

    monkeypatch.setattr(Decoder, "decode", recorded)
    return taken


def test_plain_requests_become_the_matrix_in_one_step(the_long_way: list[bytes]) -> None:
    """Absent and null fields, unknown fields and unseen categories do not hinder that."""
    decoded = MatrixDecoder(ENCODER).decode(as_bytes(PLAIN))
    nan = np.nan
    rows = [[1, 1, 0], [0, 0, 1], [nan, nan, nan], [2.5, nan, nan], [nan, nan, nan], [3, 1, nan], [4, 1, 1]]
    np.testing.assert_array_equal(decoded.encoded.matrix, rows)
    assert not np.signbit(decoded.encoded.matrix[1, 0])
    assert (decoded.rows, decoded.bad) == (list(range(7)), [])
    assert (decoded.encoded.missing.tolist(), decoded.encoded.unseen.tolist()) == ([2, 3, 3], [0, 0, 1])
    assert the_long_way == []


def test_the_others_alone_go_the_long_way(the_long_way: list[bytes]) -> None:
    """And come back in their places."""
    values = as_bytes(5 * PLAIN)
    odd = as_bytes(OTHERS)
    for number, value in enumerate(odd):
        values.insert(6 * number, value)
    decoded = MatrixDecoder(ENCODER).decode(values)
    assert sorted(the_long_way) == sorted(odd)
    assert [(row, error.field) for row, error in decoded.bad] == [(24, "c"), (30, "n")]
    assert decoded.rows == [row for row in range(len(values)) if row not in (24, 30)]
    expected = [MatrixDecoder(ENCODER).decode([values[row]]).encoded.matrix[0] for row in decoded.rows]
    np.testing.assert_array_equal(decoded.encoded.matrix, expected)


def test_where_most_are_odd_nothing_is_tried_twice(the_long_way: list[bytes]) -> None:
    """A service that sends its numbers as text: what is plain among them goes their way; ten do not decide."""
    values = as_bytes([{"n": "1", "b": True, "c": "x"}] * 100 + [{"n": 2, "b": True, "c": "y"}])
    decoded = MatrixDecoder(ENCODER).decode(values)
    assert decoded.encoded.matrix.tolist() == [*[[1, 1, 0]] * 100, [2, 1, 1]]
    assert the_long_way == values
    the_long_way.clear()
    MatrixDecoder(ENCODER).decode(values[90:])
    assert the_long_way == values[90:100]


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["mro", "name", "value", "_value_", "__class__", "c0", "None"], ["\0", "a"], ["é", "😀", '"', "\\", "\n"]],
    ids=["none", "empty", "Python's names", "NUL", "escaped"],
)
def test_a_category_may_have_any_text(texts: list[str]) -> None:
    """The code is the text's place; a good request cannot hold NUL."""
    schema = Schema((Feature("c", "category"),), "y", "regression")
    decoder = MatrixDecoder(Encoder.fit(schema, {"c": texts}))
    decoded = decoder.decode([json.dumps({"c": text}).encode() for text in [*texts, "another"]])
    good = [text for text in texts if "\0" not in text]
    assert decoded.encoded.matrix[:-1, 0].tolist() == [texts.index(text) for text in good]
    assert np.isnan(decoded.encoded.matrix[-1, 0])
    assert decoded.encoded.unseen.tolist() == [1]
    assert len(decoded.bad) == len(texts) - len(good)


def test_with_very_many_categories_all_go_the_long_way(the_long_way: list[bytes]) -> None:
    """Their codes would take more memory than the model."""
    texts = [f"text {number}" for number in range(2_001)]
    decoder = MatrixDecoder(Encoder.fit(Schema((Feature("c", "category"),), "y", "regression"), {"c": texts}))
    assert decoder.decode([b'{"c": "text 2000"}']).encoded.matrix.tolist() == [[2_000]]
    assert the_long_way == [b'{"c": "text 2000"}']


def test_nothing_is_left_of_a_decoder_that_is_not_used() -> None:
    """A predictor makes one for each version, and lives through thousands."""
    texts = ("a text of this test", "another")
    schema = Schema((Feature("c", "category"),), "y", "regression")
    first = MatrixDecoder(Encoder.fit(schema, {"c": texts}))
    second = MatrixDecoder(Encoder.fit(schema, {"c": texts}))
    assert matrix_decoder._enumerations[texts] is not None
    del first, second
    gc.collect()
    assert texts not in matrix_decoder._enumerations


def test_a_request_that_is_too_large_is_told_beside_good_ones() -> None:
    """Whatever it holds."""
    decoder = MatrixDecoder(ENCODER, bytes_max=50)
    decoded = decoder.decode([b'{"n": 1}', b'{"n": 1, "more": "' + b"x" * 50 + b'"}', b'{"n": 2}'])
    assert (decoded.rows, [(row, error.reason) for row, error in decoded.bad]) == ([0, 2], [(1, "too_large")])
    assert decoder.decode([]).encoded.matrix.shape == (0, 3)
