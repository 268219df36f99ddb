"""Reads and writes a project's files: ``tidemill.toml`` and the schema, with one clear line for every mistake.

A setting comes from its default, from ``tidemill.toml``, or from a variable ``TIDEMILL_SECTION__KEY``; the later one wins.
Paths in settings are relative to the project's folder.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.inspect import BoolType, FloatType, IntType, LiteralType, Metadata, StrType, Type, type_info
from msgspec.structs import FieldInfo, fields

from tidemill.core.inference import nearest
from tidemill.core.metrics import metric
from tidemill.core.schema import Schema, Task
from tidemill.errors import ConfigError
from tidemill.schema_file import read_schema
from tidemill.settings import Section, Settings

FILE = "tidemill.toml"
PREFIX = "TIDEMILL_"
LINE_MAX = 125
"""Comments of a rendered file begin in one column, unless a line would then be longer than this."""


class Configuration(Struct, frozen=True):
    """A project as its files and variables describe it: checked, and the same for every role.

    ``origins`` says for each ``section.key`` where its value is from: ``default``, ``tidemill.toml``, or the name of a
    variable. ``digest`` is the SHA-256 of the settings, as hexadecimal text.
    """

    settings: Settings
    schema: Schema
    root: Path
    origins: dict[str, str]
    digest: str

    @property
    def data(self) -> Path:
        """The file of the original data."""
        return self.root / self.settings.project.data

    @property
    def schema_file(self) -> Path:
        """The file of the schema."""
        return self.root / self.settings.project.schema

    @property
    def log_folder(self) -> Path:
        """The folder of a ``sqlite:`` log."""
        return self.root / self.settings.stream.url.removeprefix("sqlite:")

    @property
    def lake(self) -> Path:
        """The folder of the tables."""
        return self.root / self.settings.lake.path

    @property
    def bundles(self) -> Path:
        """The folder of the model versions."""
        return self.root / self.settings.bundles.path

    @property
    def tracking_uri(self) -> str:
        """MLflow's store, with an absolute path."""
        return f"sqlite:///{self.root / self.settings.tracking.uri.removeprefix('sqlite:///')}"


class _Given(Struct, frozen=True):
    """A value and where it was given: ``origin`` for reports, ``place`` for errors; from variables not yet ``typed``."""

    value: Any
    origin: str
    place: str
    typed: bool = True


def load(project_dir: Path, environ: Mapping[str, str]) -> Configuration:
    """The project in a folder. Raises ``ConfigError``: one line with the setting, its place, and what would be valid."""
    root = project_dir.absolute()
    file = project_dir / FILE
    given = _from_toml(_read_toml(file), file) | _from_environment(environ)
    settings = _settings(given, file)
    origins = {f"{s}.{k.name}": "default" for s, keys in _sections().items() for k in keys}
    origins |= {name: one.origin for name, one in given.items()}
    places = {name: one.place for name, one in given.items()}
    _check(settings, places)
    schema = read_schema(project_dir / settings.project.schema)
    check_metric(settings.tune.metric, schema.task, places.get("tune.metric", ""))
    return Configuration(settings, schema, root, origins, digest(settings))


def digest(settings: Settings) -> str:
    """SHA-256 of the settings, as hexadecimal text."""
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()


def make_settings(values: Mapping[str, str]) -> Settings:
    """Settings from texts by ``section.key``, typed and checked as variables are. Raises ``ConfigError``."""
    given = {name: _Given(text, name, name, typed=False) for name, text in values.items()}
    for name in values:
        section, _, key = name.partition(".")
        _check_known(section, key, name)
    settings = _settings(given, Path(FILE))
    _check(settings, {name: name for name in values})
    return settings


def describe(configuration: Configuration) -> list[tuple[str, str, str]]:
    """Every setting as (``section.key``, its value as in the file, where it is from)."""
    values = msgspec.to_builtins(configuration.settings)
    return [
        (f"{section}.{key.name}", _toml(values[section][key.name]), configuration.origins[f"{section}.{key.name}"])
        for section, keys in _sections().items()
        for key in keys
    ]


def render(settings: Settings) -> str:
    """The text of ``tidemill.toml``: every setting with its comment. Loading it gives the same settings."""
    parts = [
        "# The settings of this project, read when a role starts. A variable TIDEMILL_SECTION__KEY overrules a line\n"
        "# (TIDEMILL_TUNE__TRIALS=50). Paths are relative to this folder. `tidemill config` shows what holds, and why.\n"
    ]
    for name, keys in _sections().items():
        section = getattr(settings, name)
        parts.append(_render_section(name, section, keys))
    return "\n".join(parts)


def _render_section(name: str, section: Section, keys: tuple[FieldInfo, ...]) -> str:
    key_width = max(len(key.name) for key in keys)
    settings = [f"{key.name:<{key_width}} = {_toml(getattr(section, key.name))}" for key in keys]
    column = max(len(line) for line in settings if len(line) <= 40) + 2
    title = f"[{name}]"
    lines = [f"{title:<{column}}# {(type(section).__doc__ or '').strip().rstrip('.')}"]
    for line, key in zip(settings, keys, strict=True):
        lines.append(f"{line:<{column - 2}}  # {_description(key)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _sections() -> dict[str, tuple[FieldInfo, ...]]:
    return {section.name: fields(section.type) for section in fields(Settings)}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        folder = file.parent.absolute()
        raise ConfigError(f"no {FILE} in {folder}: run tidemill init DATA --target COLUMN") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not valid TOML: the text is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _from_toml(tables: dict[str, Any], file: Path) -> dict[str, _Given]:
    given = {}
    for section, table in tables.items():
        _check_known(section, None, f"{file}: [{section}]")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} must be a table: write [{section}] and its settings below")
        for key, value in table.items():
            name = f"{section}.{key}"
            _check_known(section, key, f"{file}: {name}")
            given[name] = _Given(value, FILE, f"{file}: {name}")
    return given


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    given = {}
    for variable, text in sorted(environ.items()):
        section, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        if not (variable.startswith(PREFIX) and separator):
            continue
        _check_known(section, key, f"variable {variable}", shout=True)
        given[f"{section}.{key}"] = _Given(text, variable, f"variable {variable}", typed=False)
    return given


def _check_known(section: str, key: str | None, place: str, shout: bool = False) -> None:
    """Raise for an unknown section, or (unless None) an unknown key of a known one, with the nearest known name."""
    sections = _sections()
    known, name, kind = list(sections), section, "section"
    if section in sections and key is not None:
        known, name, kind = [field.name for field in sections[section]], key, "setting"
    if name in known:
        return
    known, name = ([k.upper() for k in known], name.upper()) if shout else (known, name)
    raise ConfigError(f"{place}: unknown {kind}{nearest(name, known) or '; there are ' + ', '.join(known)}")


def _settings(given: Mapping[str, _Given], file: Path) -> Settings:
    """Each value converted on its own, so that an error can name it."""
    sections = {}
    for field in fields(Settings):
        values = {}
        for key in fields(field.type):
            name = f"{field.name}.{key.name}"
            if name in given:
                values[key.name] = _convert(given[name], key)
            elif key.required:
                raise ConfigError(f"{file}: {name} is missing: {_description(key)}")
        sections[field.name] = field.type(**values)
    return Settings(**sections)


def _convert(given: _Given, key: FieldInfo) -> Any:
    try:
        value = msgspec.convert(given.value, key.type, strict=given.typed)
    except msgspec.ValidationError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        shown = repr(given.value) if given.typed else given.value
        raise ConfigError(f"{given.place} = {shown}: must be {_allowed(key)}")
    return value


def _description(key: FieldInfo) -> str:
    info = type_info(key.type)
    schema = info.extra_json_schema if isinstance(info, Metadata) else None
    return str((schema or {}).get("description", ""))


def _allowed(key: FieldInfo) -> str:
    info = type_info(key.type)
    if isinstance(info, Metadata):
        if info.extra and "valid" in info.extra:
            return cast(str, info.extra["valid"])
        info = info.type
    return _type_text(info)


def _type_text(info: Type) -> str:
    match info:
        case LiteralType(values=values):
            return " or ".join(json.dumps(value) for value in values)
        case BoolType():
            return "true or false"
        case IntType():
            return "a whole number" + _range_text(info)
        case FloatType():
            return "a number" + _range_text(info)
        case StrType(min_length=length):
            return "a text that is not empty" if length else "a text"
    return "another kind of value"


def _range_text(info: IntType | FloatType) -> str:
    bounds = [("above", info.gt), ("from", info.ge), ("up to", info.le), ("below", info.lt)]
    given = [f"{word} {bound}" for word, bound in bounds if bound is not None]
    return "".join(f" {text}" for text in given) + (" on" if given[-1:] and given[-1].startswith("from") else "")


def check_metric(name: str, task: Task, place: str) -> None:
    """Raise ``ConfigError`` for a metric that is none, or not one of the task."""
    try:
        if name:
            metric(name, task)
    except ConfigError as error:
        raise ConfigError(f"{place.removesuffix(': tune.metric')}: {error}") from None


def _check(settings: Settings, places: Mapping[str, str]) -> None:
    """What a type cannot say."""
    starts: list[tuple[str, str, Literal["sqlite:", "sqlite:///"], str]] = [
        ("stream.url", settings.stream.url, "sqlite:", "sqlite:FOLDER"),
        ("tracking.uri", settings.tracking.uri, "sqlite:///", "sqlite:///FILE"),
    ]
    for name, value, start, valid in starts:
        if not value.startswith(start) or value == start or (start == "sqlite:" and value.startswith("sqlite://")):
            raise ConfigError(f"{places.get(name, name)} = {_toml(value)}: must be {valid}, a path on a local disk")
