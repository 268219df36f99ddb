"""A dead letter carries the record as it came, and nothing that a sender writes can pass for what a role says."""

from tidemill.errors import BadRecord
from tidemill.log.base import Headers, Message, Record
from tidemill.roles.dead_letters import DETAIL_CHARACTERS_MAX, HEADERS_BYTES_MAX, dead_letter

ERROR = BadRecord("wrong_type", "age", "text for a number")
OURS = ("topic", "partition", "offset", "request_id", "reason", "field", "detail", "role")


def letter_of(headers: Headers, error: BadRecord = ERROR, request_id: str = "r1") -> Message:
    return dead_letter(
        "shop.dead-letters", Record("shop.requests", 3, 7, 0, b"k", b"v", headers), error, "predictor", request_id
    )


def said(headers: Headers) -> dict[str, str]:
    return {name: value.decode() for name, value in headers}


def test_a_letter_has_the_record_and_what_was_wrong() -> None:
    """Key and bytes, the record's own headers in their order, then ours."""
    own = (("traceparent", b"00-1"), ("x", b"\xff"), ("x", b"\0"), ("", b""))
    letter = letter_of(own)
    assert (letter.topic, letter.key, letter.value) == ("shop.dead-letters", b"k", b"v")
    assert letter.headers[:4] == own
    values = ("shop.requests", "3", "7", "r1", "wrong_type", "age", "text for a number", "predictor")
    assert said(letter.headers[4:]) == dict(zip(OURS, values, strict=True))


def test_headers_with_our_names_do_not_count() -> None:
    """They are kept, but ours are the last ones, also where ours is empty."""
    spoofed = tuple((name, b"spoofed") for name in (*OURS, *OURS))
    for name in ("r1", ""):
        headers = letter_of(spoofed, request_id=name).headers
        assert headers[: len(spoofed)] == spoofed
        assert "spoofed" not in said(headers).values()
        assert said(headers)["request_id"] == name


def test_too_large_headers_are_left_out_and_it_is_said() -> None:
    """Up to the limit all are kept, above it none, however the bytes are dealt out; a long detail does not hide it."""
    fits = (("x", b"y" * (HEADERS_BYTES_MAX - 3)),)
    assert letter_of(fits).headers[0] == fits[0]
    for headers in (
        (("x", b"y" * (HEADERS_BYTES_MAX - 2)),),
        (("", b""),) * (HEADERS_BYTES_MAX // 2 + 1),
        (("é" * 40_000, b""),),
    ):
        letter = letter_of(headers, BadRecord("not_json", "", "z" * 10_000))
        assert [name for name, _ in letter.headers] == list(OURS)
        detail = said(letter.headers)["detail"]
        assert len(detail) == DETAIL_CHARACTERS_MAX
        assert detail.endswith(" bytes, were left out)")
        assert f"its own {len(headers)} headers" in detail


def test_a_letter_is_little_larger_than_its_record() -> None:
    """What a log takes as a request it can take as a dead letter, given 8 KiB more: whatever the text is made of."""
    error = BadRecord("wrong_type", "é" * 200, "\U0001f600" * 10_000)
    added = letter_of((), error, "\U0001f600" * 128).headers
    assert sum(len(name.encode()) + len(value) for name, value in added) < 8192
