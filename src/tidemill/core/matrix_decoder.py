"""Bytes of requests -> the matrix that a model takes: decoder and encoder in one step where that can be.

A request is *plain* where every field that it has is null or of its feature's own type: a number, true or false, a text. The
typed parse of such a one gives the row of the matrix itself: it reads a category's text as an enumeration, whose members are
the codes. All others, and those in which there may be more than that parse sees, go the long way through ``Decoder`` and
``Encoder``; what comes out is the same bit for bit.
"""

from collections.abc import Sequence
from enum import Enum
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import numpy as np
from msgspec import Struct

from tidemill.core.decoding import BYTES_MAX, Decoder, typed_parse
from tidemill.core.encoder import UNSEEN, Encoded, Encoder, Matrix
from tidemill.core.inspection import EXACT
from tidemill.core.schema import Feature
from tidemill.errors import BadRecord

_ABSENT = np.inf
"""What stands for a field that a plain request does not have; JSON cannot say it."""
_CODES_MAX = 2_000
"""With more categories all requests go the long way."""
_PLAIN_SHARE, _REFUSALS = 8, 16
"""With fewer plain ones before each refusal but the first few, the long way alone is shorter: one costs several parses."""


class DecodedMatrix(Struct, frozen=True):
    """The good values as rows of the matrix, ``rows`` with their places among the values given, the bad ones with theirs."""

    encoded: Encoded
    rows: list[int]
    bad: list[tuple[int, BadRecord]]


class MatrixDecoder:
    """Decodes and encodes requests. Immutable; may be shared by threads."""

    def __init__(self, encoder: Encoder, bytes_max: int = BYTES_MAX) -> None:
        """Raises ``ConfigError`` as ``Decoder`` does."""
        self.encoder = encoder
        self.decoder = Decoder(encoder.schema, bytes_max)
        self._decode_plain = None
        if sum(map(len, encoder.categories.values())) <= _CODES_MAX:
            self._decode_plain = typed_parse(encoder.schema, list(map(self._plain_type, encoder.schema.features)), _ABSENT)

    def decode(self, values: Sequence[bytes]) -> DecodedMatrix:
        """Decode and encode a batch; a bad value never changes what becomes of the others."""
        own, plain = self._plain(values)
        if len(plain) == len(values):
            return DecodedMatrix(self.encoder.complete(own), plain, [])
        others = sorted({*range(len(values))}.difference(plain))
        decoded = self.decoder.decode([values[row] for row in others])
        rows = np.array([*plain, *(others[row] for row in decoded.rows)], dtype=np.int64)
        order = rows.argsort()
        own = np.concatenate([own, self.encoder.own(decoded.columns)])[order]
        bad = [(others[row], error) for row, error in decoded.bad]
        return DecodedMatrix(self.encoder.complete(own), rows[order].tolist(), bad)

    def _plain(self, values: Sequence[bytes]) -> tuple[Matrix, list[int]]:
        """The rows of the values that are plain, as ``Encoder.own``, and their places."""
        records, rows = self._parse(values)
        width = len(self.encoder.schema.features)
        flat = chain.from_iterable(map(msgspec.structs.astuple, records))
        own = np.fromiter(flat, np.float64, len(records) * width).reshape(len(records), width)
        if not rows:
            return own, rows
        absent = own == _ABSENT
        count = int(np.count_nonzero(absent))
        if count:
            own[absent] = np.nan
        doubtful = self.decoder.doubtful(values if len(rows) == len(values) else [values[row] for row in rows], count)
        large = np.abs(own) >= EXACT
        if large.any():
            doubtful.update(np.flatnonzero(large.any(axis=1)).tolist())
        if doubtful:
            places = sorted({*range(len(rows))} - doubtful)
            own, rows = own[places], [rows[place] for place in places]
        return own, rows

    def _parse(self, values: Sequence[bytes]) -> tuple[list[Any], list[int]]:
        """What the typed parse takes, and the places of its values; nothing where too many are not plain."""
        if self._decode_plain is None or max(map(len, values), default=0) > self.decoder.bytes_max:
            return [], []
        records, others = list[Any](), set[int]()
        coming = map(self._decode_plain, values)
        while True:
            try:
                records.extend(coming)  # what came before a refusal stays in the list
            except (ValueError, RecursionError):
                others.add(len(records) + len(others))
                if _PLAIN_SHARE * (len(others) - _REFUSALS) > len(records):
                    return [], []
            else:
                return records, [row for row in range(len(values)) if row not in others]

    def _plain_type(self, feature: Feature) -> Any:
        if feature.type == "category":
            return _enumeration(tuple(self.encoder.categories[feature.name])) | None
        return {"number": float, "boolean": bool}[feature.type] | None


class _Code(float, Enum):
    """A code, which is read from its category's text; from any other text it is ``UNSEEN``."""

    def __new__(cls, code: float, text: str) -> "_Code":
        """``text`` is the member's value, what JSON says."""
        member = float.__new__(cls, code)
        member._value_ = text
        return member

    @classmethod
    def _missing_(cls, _: object) -> "_Code":
        # No member: msgspec takes what it gets here.
        return float.__new__(cls, UNSEEN)


_enumerations: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()
"""Those in use: the next version mostly has the same ones."""


def _enumeration(categories: tuple[str, ...]) -> Any:
    """The codes of a feature: 20 us and 1 kB each, in a class, which is let go by Python's collector only."""
    found = _enumerations.get(categories)
    if found is None:
        # One member there must be; a text with NUL is no good request's.
        codes = {"\0": UNSEEN} | {text: float(code) for code, text in enumerate(categories)}
        make: Any = _Code
        found = make("Code", {f"c{number}": (code, text) for number, (text, code) in enumerate(codes.items())})
        _enumerations[categories] = found
    return found
