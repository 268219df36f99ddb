"""Where a record goes that a role cannot use: to ``dead-letters``, as it came, with the reason."""

from tidemill.errors import BadRecord
from tidemill.log.base import Headers, Message, Record

DETAIL_CHARACTERS_MAX = 500


def dead_letter(topic: str, record: Record, error: BadRecord, role: str) -> Message:
    """The record's own key and bytes for the topic ``topic``, with where it stood and what was wrong in the headers."""
    told = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "reason": error.reason,
        "field": error.field,
        "detail": error.detail[:DETAIL_CHARACTERS_MAX],
        "role": role,
    }
    headers: Headers = tuple((name, text.encode("utf-8", "replace")) for name, text in told.items())
    return Message(topic, record.value, record.key, headers)
