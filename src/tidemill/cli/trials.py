"""Commands about trials: leaderboard, trials, report, import."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.cli.options import Commands, Parser, check_page, number, open_project, say, write_page

if TYPE_CHECKING:
    from tidemill.core.importing import Format, Imported
    from tidemill.core.leaderboard import Leaderboard
    from tidemill.messages import Trial
    from tidemill.wiring import Wiring

LINES = 20
"""Of a table, unless told otherwise; a script gets all."""
NAMED = 3
"""Names of what was not imported that a line gives."""
EXPERIMENT_HELP = "its id, the beginning of its id, or latest"


def declare(commands: Commands) -> None:
    """Add them."""
    board = commands.add("leaderboard", leaderboard)
    board.add_argument("--metric", default="", metavar="NAME", help="the newest trials by this metric")
    board.add_argument(
        "--all", dest="every", action="store_true", help="every environment, the newest first, each ranked alone"
    )
    _declare_forms(board)
    one = commands.add("trials", trials)
    one.add_argument("experiment", help=EXPERIMENT_HELP)
    _declare_forms(one)
    page = commands.add("report", report)
    page.add_argument("experiment", help=EXPERIMENT_HELP)
    page.add_argument("--output", type=Path, metavar="FILE", help="by default report-EXPERIMENT.html, here")
    given = commands.add("import", import_)
    given.add_argument("source", type=Path, help="a HyperparameterHunterAssets folder, or Hyperopt's trials as a JSON file")
    given.add_argument("--format", dest="kind", choices=("hh", "hyperopt"), help="by default hh for a folder, else hyperopt")
    given.add_argument("--learner", default="", metavar="NAME", help="hyperopt: whose parameters they are")
    given.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help="hyperopt: what the loss measures; hh: the metric to take, the project's by default",
    )
    given.add_argument(
        "--choices",
        type=Path,
        metavar="FILE",
        help='hyperopt: JSON, {"LABEL": [VALUES of its hp.choice], "LABEL of an hp.randint": null}',
    )


def _declare_forms(parser: Parser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="for scripts")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="for scripts: a line a trial")
    limit_help = f"trials of a board, the best first; 0: all (by default {LINES}; with --json and --csv all)"
    parser.add_argument("--limit", type=number(int, 0), metavar="N", help=limit_help)


def leaderboard(project: Path, metric: str, every: bool, form: str | None, limit: int | None) -> None:
    """Rank the trials that can be compared. Those of the newest trial's environment (metric, folds, training rows, schema),
    whatever their learner; which others are left out is told, and why.
    """
    from tidemill.core.leaderboard import leaderboard

    with open_project(project) as wiring:
        found = leaderboard(_trials(wiring), metric, every)
    if found.boards or form:
        _print(found, form, limit, all_rows=False)
    else:
        say(f"there is no trial{f' by {metric}' if metric else ''} yet")


def trials(project: Path, experiment: str, form: str | None, limit: int | None) -> None:
    """List an experiment's trials. The best first; pruned and failed ones at the end."""
    from tidemill.core.leaderboard import leaderboard

    with open_project(project) as wiring:
        found = leaderboard(_of(_trials(wiring), experiment), every=True)
    _print(found, form, limit, all_rows=True)


def report(project: Path, experiment: str, output: Path | None) -> None:
    """Write an experiment's page. One HTML file that needs no network: the search, its parameters, the model's errors."""
    import re

    from tidemill.messages import JournalEntry
    from tidemill.report import page
    from tidemill.roles.reading import read_messages

    check_page(output)
    with open_project(project) as wiring:
        found = _of(_trials(wiring), experiment)
        id = found[0].experiment
        journal = read_messages(wiring.log, wiring.topics.journal, JournalEntry)
        entry = next((entry for entry in reversed(journal) if (entry.kind, entry.experiment) == ("experiment", id)), None)
        html = page(wiring.store, found, entry, wiring.configuration.schema)
    file = output or Path(f"report-{re.sub('[^A-Za-z0-9._-]', '_', id)}.html")
    write_page(html, file, told=f"{len(found)} trials, ")


def import_(project: Path, source: Path, kind: "Format | None", learner: str, metric: str, choices: Path | None) -> int:
    """Take trials of HyperparameterHunter or Hyperopt as a past experiment. The best are tried again when the next search
    begins. The same files twice add nothing. docs/coming_from.md says how to write such files.
    """
    from tidemill.core import importing
    from tidemill.core.metrics import DEFAULTS

    kind = kind or ("hh" if source.is_dir() else "hyperopt")
    with open_project(project) as wiring:
        schema = wiring.configuration.schema
        preferred = wiring.settings.tune.metric or DEFAULTS[schema.task]
        reading = importing.Reading(learner, metric, preferred, _choices(choices))
        files = _assets(source) if kind == "hh" else {source.name: _bytes(source)}
        found = importing.read(kind, files, reading, schema, wiring.clock.now_ms())
        added = _append(wiring, found)
    for line in _told(found, added):
        say(line)
    return 0 if found.trials else 1


def _trials(wiring: "Wiring") -> list["Trial"]:
    from tidemill.roles.reading import read_trials

    return read_trials(wiring.log, wiring.topics)


def _of(trials: list["Trial"], experiment: str) -> list["Trial"]:
    from tidemill.core.leaderboard import named

    id = named(experiment, [trial.experiment for trial in trials])
    return [trial for trial in trials if trial.experiment == id]


def _print(found: "Leaderboard", form: str | None, limit: int | None, all_rows: bool) -> None:
    import shutil

    from tidemill.core.leaderboard import render, to_csv, to_json

    if form == "json":
        say(to_json(found, limit or 0))
    elif form == "csv":
        say(to_csv(found, limit or 0).rstrip("\n"))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        say(render(found, LINES if limit is None else limit, width, all_rows))


def _choices(file: Path | None) -> dict[str, list[Any] | None]:
    import msgspec

    from tidemill.errors import ConfigError

    try:
        return msgspec.json.decode(_bytes(file), type=dict[str, list[Any] | None]) if file else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON of lists by label: {error}") from error


def _assets(folder: Path) -> dict[str, bytes]:
    """What is read of HyperparameterHunter's folder, or of the folder that holds it."""
    from tidemill.core.importing import DESCRIPTIONS, LEADERBOARD
    from tidemill.errors import ConfigError

    root = next((root for root in (folder, folder / "HyperparameterHunterAssets") if (root / DESCRIPTIONS).is_dir()), None)
    if root is None:
        raise ConfigError(f"{folder} is no HyperparameterHunterAssets folder: it has no {DESCRIPTIONS}")
    files = [*sorted((root / DESCRIPTIONS).glob("*.json")), *root.glob(LEADERBOARD)]
    return {file.relative_to(root).as_posix(): _bytes(file) for file in files}


def _bytes(file: Path) -> bytes:
    from tidemill.errors import ConfigError

    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error


def _append(wiring: "Wiring", found: "Imported") -> int:
    """Those trials that the topic does not have yet: an import may have been killed in the middle, or read another way."""
    from tidemill.core.importing import PREFIX, facts
    from tidemill.log.base import Message
    from tidemill.messages import to_bytes

    known = {facts(trial) for trial in _trials(wiring) if trial.experiment.startswith(PREFIX)}
    new = [trial for trial in found.trials if facts(trial) not in known]
    keys = [f"{trial.experiment}/{trial.number}".encode() for trial in new]
    if new:
        wiring.log.append([Message(wiring.topics.trials, to_bytes(one), key) for one, key in zip(new, keys, strict=True)])
    return len(new)


def _told(found: "Imported", added: int) -> Iterator[str]:
    from collections import Counter

    counts = Counter(f"{trial.learner} by {trial.metric}" for trial in found.trials)
    if not found.trials:
        yield "nothing of it can be used"
    elif not added:
        yield f"{found.experiment}: its {len(found.trials)} trials are there already, nothing was added"
    else:
        yield f"{found.experiment}: {added} trials added ({', '.join(f'{count} {what}' for what, count in counts.items())})"
    for reason, names in found.refused.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"not used, {len(names)}: {reason} ({', '.join(names[:NAMED])}{more})"
    for note in found.notes:
        yield f"note: {note}"
    if added:
        yield f"tidemill trials {found.experiment} lists them"
