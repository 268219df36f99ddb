"""Real-time predictions from a stream of events, with models that keep learning from the outcomes.

``tidemill.connect("project")`` gives a ``Client``: predict, predict_many, report an outcome. What it raises is a
``TidemillError``: ``BadRecord`` (the request is at fault), ``NoAnswer`` (none came in time), ``Unavailable`` (try again
later), ``ConfigError`` (mend a setting), ``Broken`` (the log is not what it should be).
"""

from typing import TYPE_CHECKING, Any

from tidemill.errors import BadRecord, Broken, ConfigError, TidemillError, Unavailable

if TYPE_CHECKING:
    from tidemill.app.client import Client, NoAnswer
    from tidemill.messages import Prediction
    from tidemill.wiring import connect

__all__ = [
    "BadRecord",
    "Broken",
    "Client",
    "ConfigError",
    "NoAnswer",
    "Prediction",
    "TidemillError",
    "Unavailable",
    "connect",
]


def __getattr__(name: str) -> Any:
    """What needs more than the standard library is imported when it is first asked for: a role does not ask."""
    if name in ("Client", "NoAnswer"):
        from tidemill.app import client

        return getattr(client, name)
    if name == "Prediction":
        from tidemill.messages import Prediction

        return Prediction
    if name == "connect":
        from tidemill.wiring import connect

        return connect
    raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
