"""``tidemill drift``: two tables, versions' windows or time ranges, column by column."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tidemill.cli.options import Commands, check_page, number, open_project, say, write_page

if TYPE_CHECKING:
    from tidemill.drift.compare import Comparison, Options
    from tidemill.drift.tables import Pair

SOURCE_HELP = (
    "a .csv or .parquet file; original; version:N (requests it answered); FROM..UNTIL (requests of that time, UTC,"
    " before UNTIL; either may be left out); observations:I..J"
)


def declare(commands: Commands) -> None:
    """Add it."""
    parser = commands.add("drift", drift, project=False)
    parser.add_argument("a", metavar="A", help=SOURCE_HELP)
    parser.add_argument("b", metavar="B", help="likewise: what is held against A")
    project_help = "the project's folder, by default this one; two files need none, and are then compared by A's columns"
    parser.add_argument("-p", "--project", type=Path, metavar="FOLDER", help=project_help)
    parser.add_argument("--columns", default="", metavar="NAMES", help="these only: a,b")
    parser.add_argument("--joint", action="store_true", help="add MLBox's estimate: how well a classifier tells A from B")
    parser.add_argument(
        "--classifier",
        choices=("forest", "lightgbm"),
        default="forest",
        help="of the joint estimate: MLBox's own, or a fast one (%(default)s)",
    )
    block_help = "A's rows of so many hours are kept together; 0: none are (by default a day, or the project's setting)"
    parser.add_argument("--block-hours", type=number(float, 0, 1e6), metavar="H", help=block_help)
    time_help = "two files without a project: A's column of times (by default its only one of dates or times)"
    parser.add_argument("--time", default="", metavar="COLUMN", help=time_help)
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=1, metavar="N", help="of all chance (%(default)s)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the distributions side by side")
    parser.add_argument("--json", dest="as_json", action="store_true", help="for scripts: all of it")


def drift(
    a: str,
    b: str,
    project: Path | None,
    columns: str,
    joint: bool,
    classifier: Literal["forest", "lightgbm"],
    block_hours: float | None,
    time: str,
    seed: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare two tables column by column. Each side is a file, the original data, or recorded requests: of a version, of a
    time, or by number. It is told how far B lies from A, whether ordinary stretches of A lie as far apart, and what moved.
    docs/drift.md says how to read it.
    """
    from tidemill.drift.compare import Options, compare

    check_page(html)
    names = tuple(name for name in columns.split(",") if name)
    options = Options(columns=names, block_hours=block_hours, joint=joint, classifier=classifier, seed=int(seed))
    found = compare(*_read(a, b, project, time, options))
    _print(found, as_json)
    if html is not None:
        from tidemill.drift.page import page

        write_page(page(found), html, quiet=as_json)


def _read(a: str, b: str, project: Path | None, time: str, options: "Options") -> "tuple[Pair, Options]":
    """Both sides, and the options with what the project's settings say."""
    from msgspec.structs import replace

    from tidemill.drift.tables import check_source, is_file, of_files, of_project
    from tidemill.errors import ConfigError

    if project is None and is_file(a) and is_file(b):
        return of_files(Path(a), Path(b), time), options
    for source in (a, b):
        check_source(source)
    if time:
        raise ConfigError(f"--time {time}: is for two files without a project, whose schema.json names its column")
    with open_project(project or Path(".")) as wiring:
        own = wiring.settings.drift
        options = replace(options, block=own.block, usual_hours=own.block_hours, effect_min=own.effect_min)
        return of_project(a, b, wiring.configuration, wiring.lake), options


def _print(found: "Comparison", as_json: bool) -> None:
    import msgspec

    from tidemill.drift.text import render

    say(msgspec.json.encode(found).decode() if as_json else render(found))
