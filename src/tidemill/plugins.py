"""What a setting names: a learner or a proposer, of this package or of another, and a project's own functions."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from tidemill.core.inference import nearest
from tidemill.errors import ConfigError

Made = TypeVar("Made", bound=Callable[..., Any])

logger = structlog.get_logger()


class Plugins(Generic[Made]):
    """Makers by name: the built-in ones, then the entry points of the group ``tidemill.KINDs`` of installed packages."""

    def __init__(self, kind: str, built_in: Mapping[str, Made]) -> None:
        self._kind = kind
        self._built_in = dict(built_in)

    def names(self) -> list[str]:
        """All that are there, the built-in ones first."""
        return list(dict.fromkeys([*self._built_in, *(found.name for found in entry_points(group=self._group))]))

    def find(self, name: str) -> Made:
        """The maker of that name. Raises ``ConfigError`` for one that this installation does not have."""
        if name in self._built_in:
            return self._built_in[name]
        for found in entry_points(group=self._group, name=name):
            try:
                made: Made = found.load()
            except Exception as error:  # whatever another package does when it is imported
                text = f"{self._kind} {name!r}: {found.value} cannot be had: {type(error).__name__}: {error}"
                raise ConfigError(text) from error
            return made
        raise ConfigError(self._missing(name))

    def check(self, name: str, place: str) -> None:
        """The same without loading it, for a setting."""
        if name not in self._built_in and not entry_points(group=self._group, name=name):
            raise ConfigError(f"{place}: {self._missing(name)}")

    @property
    def _group(self) -> str:
        return f"tidemill.{self._kind}s"

    def _missing(self, name: str) -> str:
        known = self.names()
        return f"{self._kind} {name!r} is not one of {', '.join(known)}{nearest(name, known)}"


def callback(root: Path, text: str, place: str) -> Callable[[Any], None]:
    """The function ``MODULE:FUNCTION`` of the project's folder, or of an installed package; ``""`` is one that does nothing.

    What it raises is logged, and stops nothing. Raises ``ConfigError`` where there is no such function.
    """
    if not text:
        return lambda value: None
    module, _, name = text.partition(":")
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", text):
        raise ConfigError(f"{place} = {text!r}: must be MODULE:FUNCTION")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever a person's module does when it is imported
        raise ConfigError(f"{place} = {text!r}: cannot be had from {root}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(f"{place} = {text!r}: {name} is no function")

    def call(value: Any) -> None:
        try:
            function(value)
        except (Exception, SystemExit) as error:
            logger.warning("callback_failed", setting=place, function=text, error=f"{type(error).__name__}: {error}")

    return call
