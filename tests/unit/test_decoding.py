"""Decoding: what a request may be, and the reason and field of what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.decoding import (
    ID_BYTES_MAX,
    Decoder,
    check_content,
    deadline,
    event_time,
    outcome_id,
    outcome_time,
    parse_time,
    plain_ids,
    request_id,
    request_id_or_place,
)
from tidemill.core.encoder import Encoder
from tidemill.core.inspection import REASONS
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BadRecord, ConfigError

SCHEMA = Schema(
    (Feature("age", "number"), Feature("workclass", "category"), Feature("member", "boolean")),
    "income",
    "binary",
    ("no", "yes"),
)
DECODER = Decoder(SCHEMA)
GOOD = b'{"age": 39, "workclass": "Private", "member": true}'
CORPUS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "bad_requests.jsonl").read_text().splitlines()]


def as_bytes(value: Any) -> bytes:
    """Latin-1 text stands for bytes; a list for text, then pieces with how often each is repeated."""
    parts = [value] if isinstance(value, str) else [value[0], value[1] * value[2], value[3] * value[4], *value[5:]]
    return "".join(parts).encode("latin-1")


BAD_VALUES = [bad for bad in CORPUS if "key" not in bad and "headers" not in bad]
NUMBERS = b"9e-999 1.5E-100 0e-999 -7e-308 1e400 12345678901234567890123 0." + b"0" * 400 + b"1"
OTHERS = rb'"1e-99" "1e-999" "a:b" "\u0000" "\\u0000" {"a":{"b":[1,2]}} "}{"'
TOKENS = [*NUMBERS.split(), *OTHERS.split(), b'"\xff"', b'"\xc3\xa9"', b"[" * 70 + b"]" * 70]
MORE = [
    *(b', "more": ' + token for token in TOKENS),
    *(b', "age": 40, "workclass": null, "member": false', b', "x": 1, "x": 2', b"}", b""),
]
"""What may stand behind the first field of a value, good or bad."""


def one(value: bytes) -> dict[str, Any]:
    """The fields of a good value."""
    decoded = DECODER.decode([value])
    assert decoded.bad == []
    return {name: column[0] for name, column in decoded.columns.items()}


@pytest.mark.parametrize("bad", BAD_VALUES, ids=lambda bad: bad["name"])
def test_a_bad_value_is_told_with_reason_and_field_and_leaves_its_neighbours_alone(bad: dict[str, Any]) -> None:
    """What is bad alone is bad in a batch, for the same reason, and the others are as without it."""
    value, reason, field = as_bytes(bad["value"]), bad["reason"], bad["field"]
    other = b'{"age": "40", "workclass": 7, "more": "12:00"}'
    decoded = DECODER.decode([GOOD, value, other, value, GOOD])
    assert [(row, error.reason, error.field) for row, error in decoded.bad] == [(1, reason, field), (3, reason, field)]
    assert decoded.rows == [0, 2, 4]
    assert decoded.columns == DECODER.decode([GOOD, other, GOOD]).columns
    assert all(error.detail and len(error.detail) < 300 for _, error in decoded.bad)
    alone = DECODER.decode([value])
    assert [(row, error.reason, error.field) for row, error in alone.bad] == [(0, reason, field)]
    assert alone.rows == []


def test_every_bad_value_in_one_batch_is_found() -> None:
    """Bad values do not hide each other."""
    values = [as_bytes(bad["value"]) for bad in BAD_VALUES]
    decoded = DECODER.decode([v for value in values for v in (value, GOOD)])
    assert [error.reason for _, error in decoded.bad] == [bad["reason"] for bad in BAD_VALUES]
    assert decoded.rows == list(range(1, 2 * len(values), 2))


@pytest.mark.parametrize("feature", SCHEMA.features, ids=lambda feature: feature.name)
def test_the_quick_checks_never_suspect_too_little(feature: Feature) -> None:
    """Where every value has all fields in their own types the matrix is made at once: what the exact inspection of a value
    says comes out all the same.
    """
    decoder = MatrixDecoder(Encoder.fit(Schema((feature,), "income", "binary", ("no", "yes")), {}))
    tokens = {"age": b"39", "workclass": b'"Private"', "member": b"true"}
    plain = [b'{"%s": %s%s}' % (feature.name.encode(), tokens[feature.name], more) for more in MORE]
    for value in [as_bytes(bad["value"]) for bad in BAD_VALUES] + plain:
        expected = None
        try:
            decoder.decoder.inspect(value)
        except BadRecord as error:
            expected = error.reason, error.field
        for decoded in (decoder.decode([value]), decoder.decode([plain[-1], value, plain[-1]])):
            assert [(error.reason, error.field) for _, error in decoded.bad] == ([] if expected is None else [expected])


def test_the_corpus_has_every_reason_that_a_request_can_have() -> None:
    """A new reason needs an example."""
    elsewhere = {"missing_id", "non_finite_score", "missing_outcome", "unknown_class", "not_a_command"}
    assert {bad["reason"] for bad in CORPUS} == REASONS.keys() - elsewhere


@pytest.mark.parametrize(
    ("token", "number"),
    [
        (b"39", 39.0),
        (b"-0", 0.0),
        (b"1.5e3", 1500.0),
        (b'"39"', 39.0),
        (b'" 39\\n"', 39.0),
        (b'"+1.5E3"', 1500.0),
        (b'".5"', 0.5),
        (b'"5."', 5.0),
        (b'"007"', 7.0),
        (b"null", None),
        (b"9007199254740992", 2.0**53),
        (b"9007199254740994", 2.0**53 + 2),
        (b"5e-324", 5e-324),
        (b"0e-999", 0.0),
        (b'"0.000e-999"', 0.0),
        (b"1e300", 1e300),
        (b"0.1234567890123456789", 0.1234567890123456789),
    ],
)
def test_a_number_is_a_number_or_its_text(token: bytes, number: float | None) -> None:
    """Numbers in strings are numbers, and what a float holds exactly is let through however odd it looks."""
    assert one(b'{"age": ' + token + b"}")["age"] == number


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b'"Private"', "Private"),
        (b'""', ""),
        (b"1", "1"),
        (b"1.0", "1"),
        (b'"1"', "1"),
        (b"-0.0", "0"),
        (b"0.1", "0.1"),
        (b"1e22", "10000000000000000000000"),
        (b"true", "true"),
        (b"18446744073709551615", "18446744073709551615"),
        (b'"18446744073709551616"', "18446744073709551616"),
        (b'"\\u00e9\\ud83d\\ude00"', "é😀"),
        ('"é😀"'.encode(), "é😀"),
        (b'"a: {b} [c] 1e-999 \\\\u0000"', "a: {b} [c] 1e-999 \\u0000"),
        (b"null", None),
    ],
)
def test_a_category_is_known_by_its_text(token: bytes, text: str | None) -> None:
    """Any scalar is a category; one value has one text however JSON writes it."""
    assert one(b'{"workclass": ' + token + b"}")["workclass"] == text


@pytest.mark.parametrize(
    ("token", "value"),
    [(b"true", True), (b"0", False), (b"1.0", True), (b'"False"', False), (b'" 1"', True), (b"null", None)],
)
def test_a_boolean_may_be_a_number_or_text(token: bytes, value: bool | None) -> None:
    """True and false as other programs write them."""
    assert one(b'{"member": ' + token + b"}")["member"] is value


def test_absent_and_null_are_missing_and_unknown_fields_are_ignored() -> None:
    """Also where the unknown fields repeat, are nested 63 deep, or hold what a known one may not."""
    nested = b"[" * 63 + b"]" * 63
    value = b'{"x": 1, "x": "12:00", "age": null, "y": ' + nested + b', "z": 1e999, "n": "\\u0000", "i": 9007199254740993}'
    assert one(value) == {"age": None, "workclass": None, "member": None}
    assert one(b"{}") == {"age": None, "workclass": None, "member": None}
    assert one(b' \n{"age":1}\n\n')["age"] == 1


def test_a_doubtful_value_that_is_good_stays_as_it_is() -> None:
    """The exact inspection acquits without a trace, whatever else the record holds."""
    doubtful = b'{"a:b": 1, "workclass": 7, "age": "1e22", "member": "TRUE", "big": 1e-999}'
    assert DECODER.decode([GOOD, doubtful]).columns == {
        "age": [39.0, 1e22],
        "workclass": ["Private", "7"],
        "member": [True, True],
    }


def test_an_empty_batch_and_an_empty_schema_decode() -> None:
    """No rows, or no columns, are no special case for a caller."""
    assert DECODER.decode([]).columns == {"age": [], "workclass": [], "member": []}
    decoded = Decoder(Schema((), "y", "regression")).decode([b"{}", b'{"a": 1, "a": 2}', b"[]"])
    assert decoded.rows == [0, 1]


def test_a_feature_name_that_json_must_escape_is_refused_at_the_start() -> None:
    """The person who can mend the schema is told, not the dead letters."""
    with pytest.raises(ConfigError, match="feature names"):
        Decoder(Schema((Feature('a"b', "number"),), "y", "regression"))


def test_an_id_is_the_keys_text_or_the_place_in_the_log() -> None:
    """Without a key a replay gives the same id."""
    assert request_id("é-1".encode(), "adult.requests", 0, 7, require_id=True) == "é-1"
    assert request_id(None, "adult.requests", 2, 7, require_id=False) == "adult.requests-2-7"
    with pytest.raises(BadRecord, match="missing_id"):
        request_id(None, "adult.requests", 0, 7, require_id=True)


ODD_KEYS = [
    b"",
    b"\0",
    b"a\0b",
    b"\xff",
    b"\xc3",
    b"\xa9",
    b"\0\0",
    "é".encode(),
    b"k" * ID_BYTES_MAX,
    b"k" * (ID_BYTES_MAX + 1),
]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=4), st.sampled_from(ODD_KEYS), st.just(b"plain")), max_size=6))
def test_the_ids_of_a_batch_are_those_of_its_records(keys: list[bytes | None]) -> None:
    """Or it is said that they must be looked at one by one, which is so where one is bad."""
    found = plain_ids(keys, [()] * len(keys))
    if found is not None:
        assert found == [request_id(key, "t", 0, 0, require_id=True) for key in keys]
    if keys and all(key == b"plain" for key in keys):
        assert found == ["plain"] * len(keys)
        assert plain_ids(keys, [*[()] * (len(keys) - 1), ((b"ce_id".decode(), b"x"),)]) is None


@pytest.mark.parametrize("bad", [bad for bad in CORPUS if "key" in bad], ids=lambda bad: bad["name"])
def test_a_bad_key_is_told(bad: dict[str, Any]) -> None:
    """An id that other programs could not hold is refused before it spreads."""
    with pytest.raises(BadRecord, match=bad["reason"]):
        request_id(bad["key"].encode("latin-1"), "t", 0, 0, require_id=False)


def test_the_id_of_a_cloud_event_is_the_request_id() -> None:
    """The key then only chooses the partition, whatever its bytes are; of two headers the last counts, none other does."""
    event = [("ce_id", b"first"), ("ce_source", b"/shop"), ("ce_id", "é-1".encode()), ("content-type", b"application/json")]
    for key in (None, b"customer-7", b"", b"\xff\0", b"k" * 9999):
        for require in (True, False):
            assert request_id(key, "t", 0, 7, require, event) == "é-1"
        assert request_id_or_place(key, "t", 0, 7, event) == "é-1"
    others = [("CE_ID", b"x"), ("ce-id", b"x"), ("ce_id ", b"x"), ("id", b"x"), ("ce_subject", b"x"), ("request_id", b"x")]
    assert request_id(b"key", "t", 0, 7, False, others) == "key"
    assert request_id(None, "t", 0, 7, False, others) == "t-0-7"
    with pytest.raises(BadRecord, match="missing_id"):
        request_id(None, "t", 0, 7, True, others)


@pytest.mark.parametrize("name", [b"", b"\xff", b"a\0b", b"i" * 513])
def test_a_bad_id_of_a_cloud_event_is_told(name: bytes) -> None:
    """Like a bad key, with the header's name; a good key does not heal it. What is recorded has its place for an id."""
    for key in (b"good", None):
        with pytest.raises(BadRecord, match="bad_id in 'ce_id'"):
            request_id(key, "t", 0, 7, False, [("ce_id", name)])
        assert request_id_or_place(key, "t", 0, 7, [("ce_id", name)]) == "t-0-7"
        with pytest.raises(BadRecord, match="bad_id"):
            outcome_id(name)
    with pytest.raises(BadRecord, match="bad_id in 'ce_subject'"):
        outcome_id(None, [("ce_subject", name)])
    assert request_id_or_place(name, "t", 0, 7, ()) == "t-0-7"
    assert request_id(b"i" * 512, "t", 0, 7, True, [("ce_id", b"j" * 512)]) == "j" * 512


def test_an_outcome_is_about_its_key_or_its_subject() -> None:
    """An outcome's ``ce_id`` names the outcome, not the request."""
    event = [("ce_id", b"told-1"), ("ce_subject", b"other"), ("ce_subject", b"asked-1")]
    assert outcome_id(None, event) == "asked-1"
    assert outcome_id(b"asked-2", event) == "asked-2"
    for headers in ((), [("ce_id", b"told-1")], [("subject", b"x")]):
        with pytest.raises(BadRecord, match="missing_id"):
            outcome_id(None, headers)


def test_the_time_of_a_cloud_event_stands_in_for_the_header_time() -> None:
    """``time`` wins; what does not count is not judged, what does is."""
    event = [("ce_time", b"1"), ("ce_time", b"2026-01-02T03:04:05Z")]
    assert event_time(event, 5) == outcome_time(event) == 1767323045000
    assert event_time([*event, ("time", b"7")], 5) == 7
    assert event_time([("time", b"7"), ("ce_time", b"yesterday")], 5) == 7
    assert outcome_time([("time", b"7")]) is None
    assert event_time([("ce_time_", b"7")], 5) == 5
    for bad in (b"yesterday", b"", b"\xff", b"2026-01-02T03:04:05"):
        for read in (lambda headers: event_time(headers, 5), outcome_time):
            with pytest.raises(BadRecord, match="bad_time in 'ce_time'"):
                read([("ce_time", bad)])


@pytest.mark.parametrize(
    "content", [b"application/cloudevents+json", b"Application/CloudEvents+JSON; charset=UTF-8", b"application/cloudevents"]
)
def test_a_cloud_event_in_structured_mode_is_refused(content: bytes) -> None:
    """Read as a request its envelope would be one in which every feature is missing; as an outcome, one without a label."""
    with pytest.raises(BadRecord, match="wrong_type in 'content-type'"):
        check_content([("ce_id", b"1"), ("content-type", content)])
    for other in ((), [("content-type", b"application/json")], [("content-type", b"\xff")], [("x", content)]):
        check_content(other)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1767323045006", 1767323045006),
        ("-1", -1),
        ("2026-01-02T03:04:05Z", 1767323045000),
        ("2026-01-02t03:04:05.0069z", 1767323045006),
        ("2026-01-02 03:04:05.5+02:00", 1767315845500),
        ("1969-12-31T23:59:59.999-00:00", -1),
        ("2026-01-01T23:34:05-03:30", 1767323045000),
        ("0001-01-01T00:00:00Z", -62135596800000),
    ],
)
def test_a_time_is_milliseconds_or_rfc_3339(text: str, milliseconds: int) -> None:
    """Both ways that apps write times give the same whole milliseconds."""
    assert parse_time(text, "time") == milliseconds
    assert event_time([("other", b"x"), ("time", text.encode())], 5) == milliseconds
    assert deadline([("deadline", text.encode())]) == milliseconds


def test_without_the_headers_there_is_the_default_and_no_deadline() -> None:
    """The record's own time stands in."""
    assert event_time([], 5) == 5
    assert deadline([("time", b"1")]) is None


@pytest.mark.parametrize(
    "text", ["2026-01-02T24:00:00Z", "2026-01-02T03:60:00Z", "2026-13-02T03:00:00Z", "", " 1", "+1", "9" * 16]
)
def test_what_is_no_time_is_told(text: str) -> None:
    """A time that means something else to another program is worse than none."""
    with pytest.raises(BadRecord, match=r"bad_time in 'time'"):
        parse_time(text, "time")
