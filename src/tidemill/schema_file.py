"""Reads and writes the schema as a JSON file that a person can edit: one line a feature, one line for every mistake."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tidemill.core.inference import nearest
from tidemill.core.inspection import category_text
from tidemill.core.schema import UNREADABLE, Feature, Schema, is_readable
from tidemill.errors import ConfigError
from tidemill.messages import Label


def read_schema(file: Path) -> Schema:
    """The schema in a file. Raises ``ConfigError``: the file, the feature, the field, and what would be valid."""
    raw = _read_json(file)
    try:
        schema = msgspec.convert(raw, Schema)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_explain(error, raw)}") from None
    if mistake := _mistake(schema):
        raise ConfigError(f"{file}: {mistake}")
    return schema


def render_schema(schema: Schema) -> str:
    """The schema as JSON, one feature a line. Reading it gives the same schema."""
    plain = _tidy(msgspec.to_builtins(schema))
    features = plain.pop("features")
    head = [f"  {_dump(key)}: {_dump(value)}," for key, value in plain.items()]
    lines = ",\n".join(f"    {_dump(feature)}" for feature in features)
    return "\n".join(["{", *head, '  "features": [', lines, "  ]", "}"]) + "\n"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tidy(value: Any) -> Any:
    """17.0 as 17: easier on the eye, and read back as the same number."""
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tidy(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file (project.schema names it; tidemill init writes it)") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not valid JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not valid JSON: the text is not UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{file}: not a schema: nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _explain(error: msgspec.ValidationError, raw: Any) -> str:
    """The error's text with the feature's name in place of ``$.features[3]``, and the nearest name of an unknown field."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    place = path.lstrip(".")
    struct: type[Schema | Feature] = Schema
    if match := re.match(r"\.features\[(\d+)\]\.?(.*)", path):
        number, place, struct = int(match[1]), match[2], Feature
        place = f"{_feature_name(raw['features'][number], number)}{': ' + place if place else ''}"
    if match := re.search(r"unknown field `(.*)`", text):
        known = struct.__struct_fields__
        text = f"unknown field {match[1]!r}{nearest(match[1], known) or '; there are ' + ', '.join(known)}"
    elif place.endswith(("type", "task")):
        valid = {"type": "number, boolean or category", "task": "binary, multiclass or regression"}[place[-4:]]
        text = f"must be {valid}"
    return f"{place}: {text}" if place else text


def _feature_name(feature: Any, number: int) -> str:
    name = feature.get("name") if isinstance(feature, dict) else None
    return f"feature {name!r}" if isinstance(name, str) else f"feature number {number + 1}"


def _mistake(schema: Schema) -> str:
    """The first thing that types cannot say and that is wrong, or ``""``."""
    names = [feature.name for feature in schema.features]
    if not names:
        return "features is empty: there is nothing to learn from"
    if "" in names:
        return "a feature has an empty name"
    if not schema.target:
        return "target is empty"
    if doubled := _doubled(names):
        return f"feature {doubled!r} stands there twice"
    for role, name in [("target", schema.target), ("id", schema.id), ("time", schema.time)]:
        if name in names:
            return f"feature {name!r} is also the {role}: take one of them out"
    return next(filter(None, map(_feature_mistake, schema.features)), "") or _class_mistake(schema) or _cross_mistake(schema)


def _feature_mistake(feature: Feature) -> str:
    place = f"feature {feature.name!r}"
    if not is_readable(feature.name):
        return f"{place}: {UNREADABLE}: rename the column in the data and the field in the requests"
    if feature.categories and feature.type != "category":
        return f"{place}: categories belong to the type category, not {feature.type}"
    if doubled := _doubled(list(feature.categories)):
        return f"{place}: category {doubled!r} stands there twice"
    if (feature.minimum, feature.maximum) != (None, None) and feature.type != "number":
        return f"{place}: minimum and maximum belong to the type number, not {feature.type}"
    if feature.minimum is not None and feature.maximum is not None and feature.minimum > feature.maximum:
        return f"{place}: minimum {feature.minimum:g} is above maximum {feature.maximum:g}"
    return ""


def _class_mistake(schema: Schema) -> str:
    count = len(schema.classes)
    if doubled := _doubled([json.dumps(label) for label in schema.classes]):
        return f"classes: {doubled} stands there twice"
    texts: dict[str, Label] = {}
    for label in schema.classes:
        other = texts.setdefault(category_text(label), label)
        if other is not label:
            return f"classes: {json.dumps(other)} and {json.dumps(label)} have the same text"
    if schema.task == "regression" and count:
        return "classes: a regression has none: take them out, or change task"
    if schema.task == "binary" and count != 2:
        return f"classes: there are {count}, a binary task has 2, the positive one last"
    if schema.task == "multiclass" and count < 3:
        return f"classes: there are {count}, a multiclass task has 3 or more"
    return ""


def _cross_mistake(schema: Schema) -> str:
    types = {feature.name: feature.type for feature in schema.features}
    for cross in schema.crosses:
        shown = "*".join(cross)
        if len(cross) < 2 or _doubled(list(cross)):
            return f"crosses: {shown!r} needs two or more different features"
        for name in cross:
            if name not in types:
                return f"crosses: {shown!r}: there is no feature {name!r}{nearest(name, types)}"
            if types[name] != "category":
                return f"crosses: {shown!r}: feature {name!r} is a {types[name]}, only categories are crossed"
    doubled = _doubled(list(schema.columns))
    return f"crosses: two columns would be named {doubled!r}" if doubled else ""


def _doubled(values: list[str]) -> str:
    return next((value for value, count in Counter(values).items() if count > 1), "")
