"""Every error of the project, as a tree that tells the catcher what to do.

TidemillError
├── ConfigError     fix a setting, a file or an argument and start again; exit code 2
│   └── UnknownModel    a model version or bundle that is not in the store
├── BadRecord       one record is at fault: to ``dead-letters`` with its reason; carry on
├── Unavailable     the outside is away: retry with backoff, keep serving; exit code 3
└── Broken          an invariant failed: stop at once, lose nothing, name the place; exit code 4
    ├── BundleRefused   a bundle whose bytes or answers are not what its manifest says
    └── LogDamaged      a record whose checksum does not match
"""


class TidemillError(Exception):
    """The base of every error that this project raises on purpose; its text is one line for a person."""

    exit_code = 1


class ConfigError(TidemillError):
    """A setting, a file or an argument is wrong: the text says which, where, and what would be valid."""

    exit_code = 2


class UnknownModel(ConfigError, LookupError):
    """A model version or bundle that the store does not hold."""


class BadRecord(TidemillError):
    """One record cannot be used.

    ``reason`` is a short code (``wrong_type``, ``not_json`` ...), ``field`` the field at fault or ``""``, ``detail`` one
    sentence for a person.
    """

    def __init__(self, reason: str, field: str = "", detail: str = "") -> None:
        super().__init__(reason, field, detail)
        self.reason = reason
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        place = f" in {self.field!r}" if self.field else ""
        return f"{self.reason}{place}: {self.detail}" if self.detail else f"{self.reason}{place}"


class Unavailable(TidemillError):
    """Something outside (a broker, a disk, MLflow) does not answer now; trying again later may work."""

    exit_code = 3


class Broken(TidemillError):
    """An invariant does not hold; going on could lose or double something."""

    exit_code = 4


class BundleRefused(Broken):
    """A bundle that must not serve: a hash, a file or a golden answer differs."""


class LogDamaged(Broken):
    """A record of the log whose bytes are not those that were written."""
