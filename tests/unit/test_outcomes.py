"""Outcomes: however an app writes a label, the schema's own comes out."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core import outcomes
from tidemill.core.outcomes import OutcomeDecoder, decode_outcome, label_numbers
from tidemill.core.schema import Schema
from tidemill.errors import BadRecord, ConfigError
from tidemill.messages import Label, Outcome

TEXTS = Schema((), "income", "binary", ("<=50K", ">50K"))
NUMBERS = Schema((), "delayed", "binary", (0, 1))
BOOLEANS = Schema((), "delayed", "binary", (False, True))
DIGITS = Schema((), "digit", "multiclass", ("1", "true", "2.5"))
VALUES = Schema((), "price", "regression")


@pytest.mark.parametrize(
    ("schema", "value", "label"),
    [
        (TEXTS, b'{"outcome": ">50K"}', ">50K"),
        (TEXTS, b'{"income": "<=50K", "other": [1]}', "<=50K"),
        (TEXTS, b'{"income": "<=50K", "outcome": ">50K"}', ">50K"),
        (TEXTS, b'{"income": "<=50K", "outcome": null}', "<=50K"),
        (NUMBERS, b'{"delayed": 1}', 1),
        (NUMBERS, b'{"delayed": 1.0}', 1),
        (NUMBERS, b'{"delayed": "1"}', 1),
        (NUMBERS, b'{"delayed": " 1.0 "}', 1),
        (NUMBERS, b'{"delayed": -0}', 0),
        (NUMBERS, b'{"delayed": true}', 1),
        (NUMBERS, b'{"delayed": "false"}', 0),
        (BOOLEANS, b'{"delayed": true}', True),
        (BOOLEANS, b'{"delayed": 0}', False),
        (BOOLEANS, b'{"delayed": "1.0"}', True),
        (DIGITS, b'{"digit": 1}', "1"),
        (DIGITS, b'{"digit": true}', "true"),
        (DIGITS, b'{"digit": 2.50}', "2.5"),
        (VALUES, b'{"price": 12}', 12.0),
        (VALUES, b'{"price": "12.5"}', 12.5),
    ],
)
def test_a_label_may_be_written_in_any_way_that_means_one_class(schema: Schema, value: bytes, label: Label) -> None:
    """The label is the schema's own, with its type."""
    outcome = decode_outcome(b"a", value, schema)
    assert outcome == Outcome(label)
    assert type(outcome.outcome) is type(label)


@pytest.mark.parametrize(
    ("key", "value", "schema", "reason", "field"),
    [
        (None, b'{"income": "<=50K"}', TEXTS, "missing_id", ""),
        (b"", b'{"income": "<=50K"}', TEXTS, "bad_id", ""),
        (b"a", b"", TEXTS, "empty", ""),
        (b"a", b"<=50K", TEXTS, "not_json", ""),
        (b"a", b'"<=50K"', TEXTS, "not_an_object", ""),
        (b"a", b'{"income": "<=50K", "income": ">50K"}', TEXTS, "duplicate_key", "income"),
        (b"a", b"{}", TEXTS, "missing_outcome", "outcome"),
        (b"a", b'{"outcome": null}', TEXTS, "missing_outcome", "outcome"),
        (b"a", b'{"outcome": "rich"}', TEXTS, "unknown_class", "outcome"),
        (b"a", b'{"outcome": 1}', TEXTS, "unknown_class", "outcome"),
        (b"a", b'{"outcome": 2}', NUMBERS, "unknown_class", "outcome"),
        (b"a", b'{"outcome": NaN}', NUMBERS, "unknown_class", "outcome"),
        (b"a", b'{"outcome": [1]}', NUMBERS, "wrong_type", "outcome"),
        (b"a", b'{"outcome": true}', VALUES, "wrong_type", "outcome"),
        (b"a", b'{"outcome": "much"}', VALUES, "wrong_type", "outcome"),
        (b"a", b'{"outcome": NaN}', VALUES, "not_finite", "outcome"),
        (b"a", b'{"outcome": 1e999}', VALUES, "not_finite", "outcome"),
        (b"a", b'{"outcome": 9007199254740993}', VALUES, "not_exact", "outcome"),
        (b"a", b'{"outcome": 1, "time": "2026-01-01"}', NUMBERS, "bad_time", "time"),
        (b"a", b'{"outcome": 1, "time": 1.5}', NUMBERS, "bad_time", "time"),
        (b"a", b'{"outcome": 1, "time": true}', NUMBERS, "bad_time", "time"),
        (b"a", b'{"outcome": 1, "pad": "' + b"x" * 70_000 + b'"}', NUMBERS, "too_large", ""),
    ],
)
def test_a_bad_outcome_is_told(key: bytes | None, value: bytes, schema: Schema, reason: str, field: str) -> None:
    """With the reason and the field at fault."""
    with pytest.raises(BadRecord) as caught:
        decode_outcome(key, value, schema)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_an_outcome_may_say_when_it_became_true() -> None:
    """In milliseconds, or in RFC 3339."""
    for time in (b"1767323045006", b'"1767323045006"', b'"2026-01-02T03:04:05.006Z"'):
        assert decode_outcome(b"a", b'{"outcome": 1, "time": ' + time + b"}", NUMBERS).time == 1767323045006
    assert decode_outcome(b"a", b'{"outcome": 1, "time": null}', NUMBERS).time is None


def test_an_outcome_may_come_as_a_cloud_event() -> None:
    """Its time counts where the value has none, its subject where there is no key; a structured one has no label to read."""
    event = (("ce_id", b"told-1"), ("ce_time", b"2026-01-02T03:04:05.006Z"), ("ce_subject", b"a"))
    assert decode_outcome(None, b'{"outcome": 1}', NUMBERS, event) == Outcome(1, 1767323045006)
    assert decode_outcome(b"b", b'{"outcome": 1, "time": null}', NUMBERS, event).time == 1767323045006
    assert decode_outcome(None, b'{"outcome": 1, "time": 7}', NUMBERS, event).time == 7
    assert decode_outcome(b"a", b'{"outcome": 1, "time": 7}', NUMBERS, [("ce_time", b"yesterday")]).time == 7
    for headers, problem in (
        ([("ce_id", b"told-1")], "missing_id"),
        ([("ce_subject", b"")], "bad_id in 'ce_subject'"),
        ([("ce_subject", b"a"), ("ce_time", b"yesterday")], "bad_time in 'ce_time'"),
        ([("ce_subject", b"a"), ("content-type", b"application/cloudevents+json")], "wrong_type in 'content-type'"),
    ):
        with pytest.raises(BadRecord, match=problem):
            decode_outcome(None, b'{"outcome": 1}', NUMBERS, headers)


def test_labels_become_class_numbers_or_values() -> None:
    """In the order of the schema's classes; the original data's way to write a label counts like an app's."""
    assert label_numbers(TEXTS, [">50K", "<=50K"]).tolist() == [1.0, 0.0]
    assert label_numbers(BOOLEANS, [True, 0, "true"]).tolist() == [1.0, 0.0, 1.0]
    assert label_numbers(VALUES, [1, 2.5]).tolist() == [1.0, 2.5]
    assert label_numbers(VALUES, []).shape == (0,)
    with pytest.raises(BadRecord, match="unknown_class"):
        label_numbers(TEXTS, ["rich"])


def test_classes_that_look_the_same_are_refused() -> None:
    """No outcome could tell 1 from "1"."""
    with pytest.raises(ConfigError, match="same text"):
        label_numbers(Schema((), "y", "binary", (1, "1")), [1])


def _told(decode: Callable[[bytes], Outcome], value: bytes) -> object:
    """What comes of a value: the outcome with its label's type, or the reason why there is none."""
    try:
        outcome = decode(value)
    except BadRecord as error:
        return error.reason, error.field
    return outcome, type(outcome.outcome)


KEYS = ["outcome", "income", "time", "other", "out\\u0063ome", "", "ö", "a:b", "outcome "]
TOKENS = [*("1", "1.0", "-0", "0", "true", "false", "null", '"1"', '"true"', '"<=50K"', '">50K"', '"rich"', '"2.5"', "2.50")]
TOKENS += [
    *("12.5", '"12.5"', "1e3", "1E999", "NaN", "9007199254740993", "01", "7", "1767323045006", "1234567890123456", "-5")
]
TOKENS += [*('"1767323045006"', '"2026-01-02T03:04:05.006Z"', '"2026-01-02"', "[1]", '{"outcome":1}', '"a:b"', '"\\u0000"')]
TOKENS += [*('"', "", "tru", '"\x01"', '"ö"', '"\\""')]
FIELDS = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(TOKENS)), max_size=4)
ENDS = st.sampled_from(
    [(b"{", b"}"), (b" {\n", b"} "), (b"[{", b"}]"), (b"{", b"} x"), (b"\xef\xbb\xbf{", b"}"), (b"", b"")]
)


@settings(max_examples=600, deadline=None)
@given(
    schema=st.sampled_from([TEXTS, NUMBERS, BOOLEANS, DIGITS, VALUES]),
    fields=FIELDS,
    ends=ENDS,
    colon=st.sampled_from(":::::,"),
)
def test_the_fast_way_tells_the_same(
    schema: Schema, fields: list[tuple[str, str]], ends: tuple[bytes, bytes], colon: str
) -> None:
    """Of whatever bytes: the same outcome, or the same reason. Also of bytes that it has met before."""
    schema = msgspec.structs.replace(schema, target="income")
    decoder = OutcomeDecoder(schema)
    value = ", ".join(f'"{key}"{colon} {token}' for key, token in fields).encode().join(ends)
    slow = _told(lambda value: decode_outcome(b"a", value, schema), value)
    for _ in range(2):
        assert _told(lambda value: decoder.decode(b"a", value), value) == slow


@pytest.mark.parametrize("target", ["outcome", "time"])
def test_a_target_may_have_a_name_that_means_something_else(target: str) -> None:
    """It is read as ever."""
    schema = Schema((), target, "binary", (0, 1))
    for value in (b'{"outcome": 1}', b'{"outcome": null, "time": 1}', b'{"time": 1}', b"{}"):
        slow = _told(lambda value: decode_outcome(b"a", value, schema), value)
        assert _told(lambda value: OutcomeDecoder(schema).decode(b"a", value), value) == slow


def test_the_fast_way_keeps_a_bounded_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a regression every label may be another."""
    monkeypatch.setattr(outcomes, "LABELS_MAX", 10)
    decoder = OutcomeDecoder(VALUES)
    for number in range(100):
        assert decoder.decode(b"a", b'{"outcome": %d}' % number) == Outcome(float(number))
        assert max(len(decoder._labels), len(decoder._known)) <= 10


def test_the_fast_way_looks_at_the_id() -> None:
    """As the slow one does."""
    with pytest.raises(BadRecord, match="missing_id"):
        OutcomeDecoder(NUMBERS).decode(None, b'{"outcome": 1}')
    assert OutcomeDecoder(NUMBERS).decode(None, b'{"outcome": 1}', (("ce_subject", b"a"),)) == Outcome(1)
