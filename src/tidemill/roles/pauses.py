"""What keeps a role from its work, told to people."""

from contextlib import suppress

import structlog

from tidemill.clock import Clock
from tidemill.errors import Unavailable
from tidemill.log.base import Log, Message
from tidemill.messages import Event, Topics, to_bytes

logger = structlog.get_logger()

AGAIN_SECONDS = 60.0


class Pauses:
    """A role that tries again each second says why at once, and the same reason once a minute: in its log, and by an event,
    which ``tidemill status`` shows while it is young.
    """

    def __init__(self, role: str, event: str, log: Log, topics: Topics, clock: Clock) -> None:
        self._role = role
        self._event = event
        self._log = log
        self._topics = topics
        self._clock = clock
        self._said = ""
        self._again = 0.0

    def tell(self, error: Exception) -> None:
        """Say it, where that is due."""
        now = self._clock.monotonic()
        if str(error) == self._said and now < self._again:
            return
        self._said, self._again = str(error), now + AGAIN_SECONDS
        logger.warning(self._event, error=str(error))
        event = Event(self._event, self._role, self._clock.now_ms(), {"error": str(error)})
        with suppress(Unavailable):  # the log itself may be what is away
            self._log.append([Message(self._topics.events, to_bytes(event))])
