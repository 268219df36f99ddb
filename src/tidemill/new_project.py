"""Makes a project of a table: infers the schema, writes ``tidemill.toml`` and the schema, and says what it found."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from tidemill.configuration import FILE, Configuration, check_metric, load, make_settings, render
from tidemill.core.inference import Choices, Column, Inferred, infer, label_text
from tidemill.core.schema import Schema
from tidemill.errors import ConfigError
from tidemill.schema_file import render_schema
from tidemill.tables import columns_for_inference, read_table


class NewProject(Struct, frozen=True):
    """A project just made: its configuration, and lines for a person who wants to know whether it was understood."""

    configuration: Configuration
    summary: list[str]


def init_project(
    data: Path,
    directory: Path,
    choices: Choices,
    name: str = "",
    overrides: Mapping[str, str] | None = None,
    force: bool = False,
) -> NewProject:
    """Write ``tidemill.toml`` and the schema into ``directory``, which is made if it is not there.

    ``name`` is made from the folder's name if it is empty. ``overrides`` are settings by ``section.key``, as text. The path
    of the data is kept relative where it lies in the project. Raises ``ConfigError``, having written nothing, where the
    table or a choice is unusable, or a file would be overwritten without ``force``.
    """
    columns = columns_for_inference(read_table(data))
    inferred = infer(columns, choices)
    own = {"project.name": name or _name_of(directory), "project.data": _relative(data, directory)}
    settings = make_settings(own | dict(overrides or {}))
    check_metric(settings.tune.metric, inferred.schema.task, "--set")
    files = {
        directory / settings.project.schema: render_schema(inferred.schema),
        directory / FILE: render(settings),
    }
    for file in files:
        if file.exists() and not force:
            raise ConfigError(f"{file} exists: choose another folder, or --force to overwrite it")
    for file, text in files.items():
        _write(file, text)
    return NewProject(load(directory, {}), summarise(settings.project.name, columns, inferred))


def summarise(name: str, columns: list[Column], inferred: Inferred) -> list[str]:
    """What was found in the table, as lines: rows, target, features by type, what is ignored and why."""
    schema = inferred.schema
    target = next(column for column in columns if column.name == schema.target)
    lines = [f"{name}: {target.rows:,} rows, {len(schema.features)} features, a {schema.task} of {schema.target}"]
    lines += [f"  target      {text}" for text in _target_lines(schema, target)]
    for kind, plural in [("number", "numbers"), ("category", "categories"), ("boolean", "booleans")]:
        names = [feature.name for feature in schema.features if feature.type == kind]
        if names:
            lines.append(f"  {plural:<11} {len(names)}: {', '.join(names)}")
    lines.append(f"  id          {schema.id or 'none: requests are named by their keys only'}")
    lines.append(f"  time        {schema.time or 'none: rows count as being in no order'}")
    lines += [f"  ignored     {column}: {reason}" for column, reason in inferred.ignored.items()]
    lines += [f"  check       {remark}" for remark in inferred.remarks]
    return lines


def _target_lines(schema: Schema, target: Column) -> list[str]:
    lines = [f"{target.minimum:g} to {target.maximum:g}"] if not schema.classes else []
    if schema.classes:
        shares = [f"{label_text(label)} {target.counts[label] / target.present:.1%}" for label in schema.classes[:10]]
        more = f" and {len(schema.classes) - 10} more" if len(schema.classes) > 10 else ""
        positive = f" ({label_text(schema.classes[-1])} is the positive one)" if schema.task == "binary" else ""
        lines = [", ".join(shares) + more + positive]
    if target.missing:
        lines.append(f"missing in {target.missing:,} of the rows, which are not trained on")
    return lines


def _name_of(directory: Path) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", directory.absolute().name.lower()).strip("-")
    return slug[:41].rstrip("-") if slug[:1].isalpha() else f"p-{slug}"[:41].rstrip("-")


def _relative(data: Path, directory: Path) -> str:
    """The path as the settings keep it: relative to the project if inside it, so that the project can be moved."""
    path, root = Path(os.path.abspath(data)), Path(os.path.abspath(directory))
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(file.name + ".draft")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
