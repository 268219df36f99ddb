"""What a user's service imports: ``import tidemill`` is all it needs."""

import subprocess
import sys

import tidemill
from tidemill import errors


def test_the_names_that_are_offered() -> None:
    """A client, what it gives, and what it raises; each can be had, and a name that is not there is no name."""
    assert set(tidemill.__all__) == {
        *("connect", "Client", "Prediction"),
        *("TidemillError", "ConfigError", "BadRecord", "Unavailable", "NoAnswer", "Broken"),
    }
    for name in tidemill.__all__:
        assert getattr(tidemill, name).__name__ == name
    assert not hasattr(tidemill, "anything")


def test_errors_are_caught_by_what_is_to_be_done() -> None:
    """One base for all; an answer that did not come is like anything that does not answer, and a timeout."""
    raised = [getattr(tidemill, name) for name in tidemill.__all__ if name.endswith(("Error", "Record"))]
    assert all(issubclass(error, errors.TidemillError) for error in raised)
    assert issubclass(tidemill.NoAnswer, tidemill.Unavailable)
    assert issubclass(tidemill.NoAnswer, TimeoutError)


def test_importing_it_is_quick() -> None:
    """A role that needs no client does not load one."""
    code = "import sys, tidemill; sys.exit('tidemill.app.client' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
