"""Where a record goes that a role cannot use: to ``dead-letters``, as it came, with the reason."""

from tidemill.errors import BadRecord
from tidemill.log.base import Headers, Message, Record

DETAIL_CHARACTERS_MAX = 500
HEADERS_BYTES_MAX = 65_536
"""What is kept of a record's own headers. Anybody can send more: a letter must not outgrow what the log takes."""


def dead_letter(topic: str, record: Record, error: BadRecord, role: str, request_id: str = "") -> Message:
    """The record's own key, bytes and headers for the topic ``topic``, and behind them, in headers of ours, where it stood,
    which request it is or is about (if that is known), and what was wrong.

    Ours come last: of two headers of one name the last counts, so nothing that a sender writes can pass for them.
    """
    kept, note = _kept(record.headers)
    told = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "request_id": request_id,
        "reason": error.reason,
        "field": error.field,
        "detail": error.detail[: DETAIL_CHARACTERS_MAX - len(note)] + note,
        "role": role,
    }
    ours: Headers = tuple((name, text.encode("utf-8", "replace")) for name, text in told.items())
    return Message(topic, record.value, record.key, (*kept, *ours))


def _kept(headers: Headers) -> tuple[Headers, str]:
    """The headers, or none of them and a note, where they are too large; each costs two bytes besides its own."""
    size = sum(len(name.encode("utf-8", "replace")) + len(value) + 2 for name, value in headers)
    if size <= HEADERS_BYTES_MAX:
        return headers, ""
    return (), f" (its own {len(headers)} headers, {size} bytes, were left out)"
