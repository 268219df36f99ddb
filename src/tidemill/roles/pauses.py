"""What keeps a role from its work, told to people."""

import structlog

from tidemill.clock import Clock

logger = structlog.get_logger()

AGAIN_SECONDS = 60.0


class Pauses:
    """A role that tries again each second says why at once, and the same reason once a minute."""

    def __init__(self, event: str, clock: Clock) -> None:
        self._event = event
        self._clock = clock
        self._said = ""
        self._again = 0.0

    def tell(self, error: Exception) -> None:
        """Log it, where that is due."""
        now = self._clock.monotonic()
        if str(error) != self._said or now >= self._again:
            logger.warning(self._event, error=str(error))
            self._said, self._again = str(error), now + AGAIN_SECONDS
