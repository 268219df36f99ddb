"""Named places where a test can make a process die: ``TIDEMILL_FAILPOINT=recorder.appended:3`` kills at the third pass.

Several are separated by commas. Without the variable a pass costs one dictionary look-up.
"""

import os
import signal


def _parse(text: str) -> dict[str, int]:
    points: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, count = item.partition(":")
        points[name] = int(count or 1)
    return points


_points = _parse(os.environ.get("TIDEMILL_FAILPOINT", ""))


def failpoint(name: str) -> None:
    """Pass the place ``name``; the chosen pass ends the process with SIGKILL."""
    if name not in _points:
        return
    _points[name] -= 1
    if _points[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
