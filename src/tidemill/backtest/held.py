"""A log in which new versions are seen later than they were announced: a training takes its time of the stream."""

from collections.abc import Iterable, Iterator, Sequence

from tidemill.log.base import Log, Message, Reader, Record, Start, Topic


class HeldLog:
    """``log`` as it is, but that records of ``topic`` from the offset ``seen`` on are not there yet; None shows all."""

    def __init__(self, log: Log, topic: str) -> None:
        self.seen: int | None = None
        self._log = log
        self._topic = topic

    def hold(self) -> None:
        """Show nothing that comes from now on."""
        self.seen = self._log.bounds(self._topic)[0][1]

    def follow(self, topic: str, start: Start = "beginning", timeout: float = 0.25) -> Iterator[list[Record]]:
        """See ``Log.follow``."""
        followed = self._log.follow(topic, start, timeout)
        return self._shown(followed) if topic == self._topic else followed

    def _shown(self, followed: Iterator[list[Record]]) -> Iterator[list[Record]]:
        waiting: list[Record] = []
        for records in followed:
            waiting += records
            seen = self.seen
            shown = [record for record in waiting if seen is None or record.offset < seen]
            waiting = waiting[len(shown) :]
            if shown or not records:
                yield shown

    def create(self, topics: Iterable[Topic]) -> None:
        """See ``Log.create``."""
        self._log.create(topics)

    def append(self, messages: Sequence[Message]) -> None:
        """See ``Log.append``."""
        self._log.append(messages)

    def join(self, group: str, topics: Sequence[str], start: Start = "beginning") -> Reader:
        """See ``Log.join``."""
        return self._log.join(group, topics, start)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """See ``Log.bounds``."""
        return self._log.bounds(topic)

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """See ``Log.committed``."""
        return self._log.committed(group)

    def close(self) -> None:
        """See ``Log.close``."""
        self._log.close()
