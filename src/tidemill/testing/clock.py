"""A clock that a test moves by hand."""

import threading


class ManualClock:
    """Stands still until ``advance`` or ``sleep`` moves it; may be used from several threads."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = now_ms
        self._passed = 0.0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """The start plus what was added since, to the whole millisecond."""
        return self._start_ms + round(self._passed * 1000)

    def monotonic(self) -> float:
        """Seconds added since the start."""
        return self._passed

    def sleep(self, seconds: float) -> None:
        """Return at once, that much later."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move forwards; a negative step raises ``ValueError``."""
        if not seconds >= 0:
            raise ValueError(f"a clock cannot go back, or by no number: {seconds}")
        with self._lock:
            self._passed += seconds
