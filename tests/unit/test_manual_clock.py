"""ManualClock: time goes on only by hand."""

import threading

import pytest

from tidemill.clock import Clock
from tidemill.testing.clock import ManualClock


def test_it_stands_still_until_moved() -> None:
    """Asking for the time does not change it; both readings move by the same step."""
    clock: Clock = (manual := ManualClock(now_ms=1000))
    assert [clock.now_ms(), clock.now_ms(), clock.monotonic()] == [1000, 1000, 0.0]
    manual.advance(1.5)
    assert (clock.now_ms(), clock.monotonic()) == (2500, 1.5)


def test_sleep_returns_at_once_and_later() -> None:
    """A day's sleep costs no time and moves the clock by a day."""
    clock = ManualClock(now_ms=0)
    clock.sleep(86_400)
    assert clock.now_ms() == 86_400_000


def test_many_small_steps_lose_nothing() -> None:
    """Steps below a millisecond add up: rounding happens when read, not when moved."""
    clock = ManualClock(now_ms=0)
    for _ in range(10_000):
        clock.sleep(0.0001)
    assert clock.now_ms() == 1000


@pytest.mark.parametrize("step", [-0.001, float("nan")])
def test_it_does_not_go_back(step: float) -> None:
    """A negative step, or one that is not a number, is the test's mistake."""
    with pytest.raises(ValueError, match="cannot go back"):
        ManualClock().advance(step)


def test_threads_share_it() -> None:
    """Two threads that sleep a thousand times each move it by the sum."""
    clock = ManualClock(now_ms=0)

    def sleep_often() -> None:
        for _ in range(1000):
            clock.sleep(0.25)

    threads = [threading.Thread(target=sleep_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.monotonic() == 500.0
