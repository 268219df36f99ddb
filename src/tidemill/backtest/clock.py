"""The stream's time for roles that play it again."""

from tidemill.clock import SystemClock


class StreamClock(SystemClock):
    """``now_ms`` is the stream's, moved by hand; seconds pass as the machine has them, so that work can be measured."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Where ``move_to`` has left it."""
        return self._now_ms

    def move_to(self, now_ms: int) -> None:
        """Move forwards; an earlier time is passed over."""
        self._now_ms = max(self._now_ms, now_ms)


class StreamSeconds(SystemClock):
    """The same time in which the seconds pass with the stream too: for roles that decide by them."""

    def __init__(self, clock: StreamClock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def monotonic(self) -> float:
        return self._clock.now_ms() / 1000
