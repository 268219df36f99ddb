"""Real-time predictions from a stream of events, with models that keep learning from the outcomes.

``tidemill.connect("project")`` gives a ``Client``: predict, predict_many, report an outcome.
"""

from typing import TYPE_CHECKING, Any

from tidemill.messages import Prediction

if TYPE_CHECKING:
    from tidemill.app.client import Client
    from tidemill.wiring import connect

__all__ = ["Client", "Prediction", "connect"]


def __getattr__(name: str) -> Any:
    """``Client`` and ``connect`` are imported when they are first asked for: a role needs neither."""
    if name == "Client":
        from tidemill.app.client import Client

        return Client
    if name == "connect":
        from tidemill.wiring import connect

        return connect
    raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
