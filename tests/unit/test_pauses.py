"""What keeps a role from its work is said at once, and again once a minute."""

from structlog.testing import capture_logs

from tidemill.errors import Unavailable
from tidemill.roles.pauses import Pauses
from tidemill.testing.clock import ManualClock


def test_the_same_reason_is_said_once_a_minute() -> None:
    """Another one at once."""
    clock = ManualClock()
    pauses = Pauses("recording_paused", clock)
    with capture_logs() as lines:
        for second in range(130):
            pauses.tell(Unavailable("the disk is full" if second != 10 else "the lake is read-only"))
            clock.advance(1)
    assert [line["error"] for line in lines] == ["the disk is full", "the lake is read-only", *["the disk is full"] * 2]
    assert {line["event"] for line in lines} == {"recording_paused"}
