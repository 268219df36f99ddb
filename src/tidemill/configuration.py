"""Reads and writes a project's files: ``tidemill.toml`` and the schema, with one clear line for every mistake.

A setting comes from its default, from ``tidemill.toml``, or from a variable ``TIDEMILL_SECTION__KEY``; the later one wins.
Paths in settings are relative to the project's folder.

Settings of librdkafka, the client of Kafka, stand in the table ``stream.kafka`` by their own names; a variable
``TIDEMILL_STREAM__KAFKA__SASL_USERNAME`` sets ``sasl.username``.
"""

import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
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
from tidemill.settings import KAFKA_OWNED, KAFKA_PATHS, REFERENCES, KafkaValue, Section, Settings, is_hidden

FILE = "tidemill.toml"
PREFIX = "TIDEMILL_"
LINE_MAX = 125
"""Comments of a rendered file begin in one column, unless a line would then be longer than this."""
KAFKA = "stream.kafka"
KAFKA_EXAMPLE = """\
# "security.protocol" = "SASL_SSL"
# "sasl.mechanism" = "SCRAM-SHA-512"
# "sasl.username" = "tidemill"
# "sasl.password" = "file:kafka.password"  # or the variable TIDEMILL_STREAM__KAFKA__SASL_PASSWORD
"""
KAFKA_ONLY = ("partitions", "replication", "delivery", "node", "kafka")
"""What of ``stream`` a SQLite log does not heed."""
WORKER_GB_MIN = 0.25
"""What a worker takes before it has a row."""
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?\]")


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
    def log_kind(self) -> Literal["sqlite", "kafka"]:
        """What keeps the log."""
        return _log_kind(self.settings)

    @property
    def log_folder(self) -> Path:
        """The folder of a ``sqlite:`` log. Raises ``ConfigError`` for another one."""
        return self.root / self._log_address("sqlite:")

    @property
    def brokers(self) -> str:
        """The brokers of a ``kafka:`` log, as ``host:port,host:port``. Raises ``ConfigError`` for another one."""
        return self._log_address("kafka://")

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

    def kafka_settings(self, environ: Mapping[str, str] = os.environ) -> dict[str, KafkaValue]:
        """The table ``stream.kafka`` with what its values refer to, and with absolute paths: it holds secrets.

        Files and variables are read at each call. Raises ``ConfigError`` where one is missing.
        """
        table = self.settings.stream.kafka
        return {name: self._absolute(name, self._resolved(name, value, environ)) for name, value in table.items()}

    def _resolved(self, name: str, value: KafkaValue, environ: Mapping[str, str]) -> KafkaValue:
        kind, colon, rest = str(value).partition(":")
        match kind + colon:
            case "file:":
                return _read_value(self.root / rest, _entry(name))
            case "env:" if rest in environ:
                return environ[rest]
            case "env:":
                raise ConfigError(f"variable {rest} is not set ({_entry(name)} names it)")
        return value

    def _absolute(self, name: str, value: KafkaValue) -> KafkaValue:
        """A path from the project's folder on; ``probe`` is none: it lets librdkafka look in the usual places."""
        return str(self.root / str(value)) if name in KAFKA_PATHS and value not in ("", "probe") else value

    def _log_address(self, start: str) -> str:
        url = self.settings.stream.url
        if not url.startswith(start):
            place = f"stream.url = {_toml(url)} ({self.origins['stream.url']})"
            raise ConfigError(f"{place}: this is for a {start.rstrip('/')} log only")
        return url.removeprefix(start)


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
    origins = {name: given[name].origin if name in given else "default" for name, _ in _rows(settings)}
    places = {name: one.place for name, one in given.items()}
    _check(settings, places)
    schema = read_schema(project_dir / settings.project.schema)
    check_metric(settings.tune.metric, schema.task, places.get("tune.metric", ""))
    _check_block(settings.drift.block, schema, places.get("drift.block", ""))
    return Configuration(settings, schema, root, origins, digest(settings))


def digest(settings: Settings) -> str:
    """SHA-256 of the settings, as hexadecimal text.

    Without the table ``stream.kafka``, which may hold secrets, and what is of this machine: its name, and what training may
    take of it; for a SQLite log without anything that only Kafka heeds.
    """
    values = msgspec.to_builtins(settings)
    del values["trainer"]
    for key in KAFKA_ONLY if _log_kind(settings) == "sqlite" else ("node", "kafka"):
        del values["stream"][key]
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()


def make_settings(values: Mapping[str, str]) -> Settings:
    """Settings from texts by ``section.key``, typed and checked as variables are. Raises ``ConfigError``."""
    given: dict[str, _Given] = {}
    for name, text in values.items():
        section, _, key = name.partition(".")
        given |= _from_text(section, key, _Given(text, name, name, typed=False), "stream.kafka.security.protocol")
    settings = _settings(given, Path(FILE))
    _check(settings, {name: name for name in values})
    return settings


def describe(configuration: Configuration) -> list[tuple[str, str, str]]:
    """Every setting as (``section.key``, its value as in the file, where it is from); secrets as ``***``."""
    return [(name, value, configuration.origins[name]) for name, value in _rows(configuration.settings)]


def _rows(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every setting as (name, value to be shown); one of ``stream.kafka`` each, unless it is empty."""
    for section, keys in _sections().items():
        for key in keys:
            value = getattr(getattr(settings, section), key.name)
            if value and isinstance(value, dict):
                yield from ((_entry(name), "***" if is_hidden(name, one) else _toml(one)) for name, one in value.items())
            else:
                yield f"{section}.{key.name}", _toml(value)


def render(settings: Settings) -> str:
    """The text of ``tidemill.toml``: every setting with its comment. Loading it gives the same settings."""
    parts = [
        "# The settings of this project, read when a role starts. A variable TIDEMILL_SECTION__KEY overrules a line\n"
        "# (TIDEMILL_TUNE__TRIALS=50). Paths are relative to this folder. `tidemill config` shows what holds, and why.\n"
    ]
    for name, keys in _sections().items():
        section = getattr(settings, name)
        plain = [key for key in keys if f"{name}.{key.name}" != KAFKA]
        parts.append(_render_section(name, section, plain))
        parts += [_render_kafka(settings.stream.kafka, key) for key in keys if key not in plain]
    return "\n".join(parts)


def _render_section(name: str, section: Section, keys: list[FieldInfo]) -> str:
    key_width = max(len(key.name) for key in keys)
    settings = [f"{key.name:<{key_width}} = {_toml(getattr(section, key.name))}" for key in keys]
    column = max(len(line) for line in settings if len(line) <= 40) + 2
    title = f"[{name}]"
    lines = [f"{title:<{column}}# {(type(section).__doc__ or '').strip().rstrip('.')}"]
    for line, key in zip(settings, keys, strict=True):
        lines.append(f"{line:<{column - 2}}  # {_description(key)}")
    return "\n".join(lines) + "\n"


def _render_kafka(settings: Mapping[str, KafkaValue], key: FieldInfo) -> str:
    lines = [f"{_toml(name)} = {_toml(value)}\n" for name, value in settings.items()]
    return f"[{KAFKA}]  # {_description(key)}\n" + ("".join(lines) or KAFKA_EXAMPLE)


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
    given: dict[str, _Given] = {}
    for section, table in tables.items():
        _check_known(section, None, f"{file}: [{section}]")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} must be a table: write [{section}] and its settings below")
        for key, value in table.items():
            name = f"{section}.{key}"
            _check_known(section, key, f"{file}: {name}")
            if name == KAFKA:
                given |= _from_kafka_table(value, file)
            else:
                given[name] = _Given(value, FILE, f"{file}: {name}")
    return given


def _from_kafka_table(table: Any, file: Path) -> dict[str, _Given]:
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {KAFKA} must be a table: write [{KAFKA}] and its settings below")
    given = {}
    for name, value in table.items():
        place = f"{file}: {_entry(name)}"
        if isinstance(value, dict):
            raise ConfigError(f"{place} is a table: a name with dots stands in quotes{_example(name, value)}")
        _check_kafka_name(name, place)
        given[_entry(name)] = _Given(value, FILE, place)
    return given


def _example(name: str, table: dict[str, Any]) -> str:
    """The name that was meant where ``a.b = 1`` stands without quotes."""
    for key, value in table.items():
        longer = f"{name}.{key}"
        return _example(longer, value) if isinstance(value, dict) else f", {_toml(longer)} = ..."
    return ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for variable, text in sorted(environ.items()):
        section, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
        if not variable.startswith(PREFIX):
            continue
        if not separator:
            _check_underscores(variable)
            continue
        if key.startswith("kafka__"):
            key = "kafka." + key.removeprefix("kafka__").replace("_", ".")
        one = _Given(text, variable, f"variable {variable}", typed=False)
        given |= _from_text(section, key, one, f"{PREFIX}STREAM__KAFKA__SECURITY_PROTOCOL", shout=True)
    return given


def _check_underscores(variable: str) -> None:
    """One that would be a setting with a second underscore was meant to be one."""
    section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
    if any(one.name == key for one in _sections().get(section, ())):
        meant = f"{PREFIX}{section}__{key}".upper()
        raise ConfigError(f"variable {variable}: two underscores stand behind the section: {meant}")


def _from_text(section: str, key: str, given: _Given, example: str, shout: bool = False) -> dict[str, _Given]:
    """A value given as text, by its name; ``key`` is ``kafka.NAME`` for a setting of librdkafka, as ``example`` is one."""
    table, _, name = key.partition(".")
    if f"{section}.{table}" != KAFKA:
        _check_known(section, key, given.place, shout)
        return {f"{section}.{key}": given}
    name = name.removeprefix('"').removesuffix('"')
    if not name:
        raise ConfigError(f"{given.place}: must name one of its settings, as in {example}")
    _check_kafka_name(name, given.place)
    return {_entry(name): given}


def _entry(name: str) -> str:
    """A setting of librdkafka as a setting of the project."""
    return f"{KAFKA}.{_toml(name)}"


def _check_kafka_name(name: str, place: str) -> None:
    if name in KAFKA_OWNED:
        raise ConfigError(f"{place}: tidemill sets {name} itself: {KAFKA_OWNED[name]}")
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", name):
        raise ConfigError(f"{place}: no setting of librdkafka: their names are of a-z, 0-9 and _, with dots between")


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
            if name == KAFKA:
                values[key.name] = _kafka_table(given)
            elif name in given:
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


def _kafka_table(given: Mapping[str, _Given]) -> dict[str, KafkaValue]:
    start = f"{KAFKA}."
    entries = {json.loads(name.removeprefix(start)): one for name, one in given.items() if name.startswith(start)}
    return {name: _kafka_value(name, one) for name, one in entries.items()}


def _kafka_value(name: str, given: _Given) -> KafkaValue:
    """The value, which no error shows: it may be a secret."""
    value = given.value
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{given.place}: must be a text, a number, or true or false")
    if value in REFERENCES:
        raise ConfigError(f"{given.place} = {_toml(value)}: must be file:PATH or env:VARIABLE")
    if name in KAFKA_PATHS and str(value).startswith("file:"):
        raise ConfigError(f"{given.place}: must be the path itself, without file:")
    return value


def _read_value(file: Path, name: str) -> str:
    """The text in a file, without the end of its last line."""
    try:
        return file.read_text(encoding="utf-8-sig").rstrip("\n")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror} ({name} names it)") from None
    except ValueError:
        raise ConfigError(f"{file}: not a text in UTF-8 ({name} names it)") from None


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


def _check_block(name: str, schema: Schema, place: str) -> None:
    if name and name not in schema.columns:
        known = nearest(name, schema.columns) or f"; there are {', '.join(schema.columns)}"
        raise ConfigError(f"{place} = {_toml(name)}: there is no such feature{known}")


def _check(settings: Settings, places: Mapping[str, str]) -> None:
    """What a type cannot say."""
    url, uri = settings.stream.url, settings.tracking.uri
    fault = _url_fault(url)
    if fault is not None:
        place = places.get("stream.url", "stream.url")
        valid = "sqlite:FOLDER, a path on a local disk, or kafka://HOST:PORT[,HOST:PORT...]"
        raise ConfigError(f"{place} = {_without_login(url)}: must be {valid}{fault}")
    if not uri.startswith("sqlite:///") or uri == "sqlite:///":
        place = places.get("tracking.uri", "tracking.uri")
        raise ConfigError(f"{place} = {_without_login(uri)}: must be sqlite:///FILE, a path on a local disk")
    memory_gb, least = settings.trainer.memory_gb, WORKER_GB_MIN * settings.tune.workers
    if 0 < memory_gb < least:
        place = places.get("trainer.memory_gb", "trainer.memory_gb")
        raise ConfigError(f"{place} = {memory_gb:g}: must be 0, or {WORKER_GB_MIN:g} for each of tune.workers, {least:g}")


def _without_login(url: str) -> str:
    """An address to be shown: what may be a password is left out."""
    return _toml(re.sub(":.*@", ":***@", url, flags=re.DOTALL))


def _log_kind(settings: Settings) -> Literal["sqlite", "kafka"]:
    return "kafka" if settings.stream.url.startswith("kafka://") else "sqlite"


def _url_fault(url: str) -> str | None:
    """What is wrong with the log's address, as the end of a line; None where nothing is."""
    if not url.startswith("kafka://"):
        good = url.startswith("sqlite:") and url != "sqlite:" and not url.startswith("sqlite://")
        return None if good else ""
    if "@" in url:
        return '; a login stands in [stream.kafka], as "sasl.username" and "sasl.password"'
    faults = map(_broker_fault, url.removeprefix("kafka://").split(","))
    return next((f"; {fault}" for fault in faults if fault), None)


def _broker_fault(address: str) -> str:
    """What is wrong with a broker's ``HOST:PORT``; empty where nothing is."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return f"{address!r} has no port" if address else "an address is empty"
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        return f"the port {port!r} of {address!r} is no number from 1 to 65535"
    return "" if _HOST.fullmatch(host) else f"{host!r} is no host name or address (one of IPv6 stands in brackets)"
