"""A log that has compacted the topic ``models`` as hard as a broker may."""

from collections.abc import Iterator

from tidemill.log.base import Record, Start
from tidemill.log.sqlite import SqliteLog


class CompactedLog(SqliteLog):
    """Of each slot's records only the last is left, at every moment; the offsets of the others are missing."""

    def follow(self, topic: str, start: Start = "beginning", timeout: float = 0.25) -> Iterator[list[Record]]:
        """See ``Log.follow``; compacted is what comes in one list, so all that stood at the call."""
        for records in super().follow(topic, start, timeout):
            last = {record.key: record.offset for record in records}
            compacted = topic.endswith(".models")
            yield [record for record in records if not compacted or record.offset == last[record.key]]
