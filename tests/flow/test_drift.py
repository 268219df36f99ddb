"""Comparisons of two tables: nothing is flagged where nothing changed, what was planted is flagged alone, and each source
gives the rows that it names.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from tidemill.configuration import Configuration
from tidemill.core.inference import Choices
from tidemill.core.schema import Feature, Schema
from tidemill.drift.compare import Comparison, Options, compare, holm
from tidemill.drift.tables import Pair, Table, of_files, of_project
from tidemill.drift.text import render, table
from tidemill.errors import ConfigError
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.new_project import init_project
from tidemill.tables import read_table

ADULT = Path(__file__).parents[2] / "src" / "tidemill" / "datasets" / "adult.parquet"
ROWS = 12_000
DAY_MS = 86_400_000
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def halves() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Adult's rows, shuffled and halved."""
    rows = read_table(ADULT).drop("split").sample(ROWS, shuffle=True, seed=7)
    return rows[: ROWS // 2], rows[ROWS // 2 :]


def compared(folder: Path, a: pl.DataFrame, b: pl.DataFrame, time: str = "", **options: Any) -> Comparison:
    a.write_parquet(folder / "a.parquet")
    b.write_parquet(folder / "b.parquet")
    return compare(of_files(folder / "a.parquet", folder / "b.parquet", time), Options(**options))


def test_halves_of_one_table_are_not_flagged(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    """No column, and MLBox's estimate is near 0; the same seed gives the same figures."""
    found = compared(tmp_path, *halves, joint=True, classifier="lightgbm")
    assert found.shifted == []
    assert found.joint is not None
    assert found.joint < 0.1
    assert {column.name for column in found.columns} == set(halves[0].columns)
    again = compared(tmp_path, *halves)
    assert [one.p for one in again.columns] == [one.p for one in found.columns]
    assert [column.jensen_shannon for column in found.columns] == sorted(
        (column.jensen_shannon for column in found.columns), reverse=True
    )


def test_small_tables_are_held_against_splits_by_chance(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    """Bins that are made of 50 rows fit them better than any others: that is no shift, whatever the seed of the sample."""
    flagged = 0
    for number in range(10):
        rows = halves[0][100 * number : 100 * number + 100]
        found = compared(tmp_path, rows[:50], rows[50:], columns=("age", "workclass", "native_country"))
        assert found.blocks.split
        flagged += len(found.shifted)
    assert flagged <= 1
    assert "mixed and split by chance" in render(found)
    assert not compared(tmp_path, *halves, columns=("age",)).blocks.split


def some(share: float) -> pl.Expr:
    """Of the rows, at regular places."""
    return pl.int_range(pl.len()) % 100 < round(100 * share)


PLANTS: dict[str, tuple[str, pl.Expr]] = {
    "unit": ("hours_per_week", pl.col("hours_per_week").cast(pl.Int64) * 1000),
    "vanished": ("workclass", pl.col("workclass").replace("Private", "Local-gov")),
    "missing": ("occupation", pl.when(~some(0.3)).then("occupation")),
    "new": (
        "native_country",
        pl.when(some(0.15)).then(pl.lit("Atlantis")).otherwise("native_country").alias("native_country"),
    ),
    "gone": ("age", pl.when(False).then("age")),
    "text": ("education_num", pl.format("no. {}", "education_num").alias("education_num")),
}


@pytest.mark.parametrize("case", PLANTS)
def test_a_planted_shift_is_flagged_alone(case: str, halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    """By its name, first in the table, with the figure that sees it."""
    name, change = PLANTS[case]
    found = compared(tmp_path, halves[0], halves[1].with_columns(change))
    assert found.shifted == [name]
    first = found.columns[0]
    assert (first.name, first.kind) == (name, "category" if case in ("vanished", "new", "missing") else "number")
    if case == "unit":
        assert first.outside == 1.0
        assert first.ks == 1.0
        means = [half["hours_per_week"].to_numpy().mean() for half in halves]
        assert first.wasserstein == pytest.approx(1000 * means[1] - means[0])
    elif case == "new":
        assert first.unseen == pytest.approx(0.15, abs=0.001)
        assert "(unseen) 0.0% before, 15.0% now" in first.most
    elif case == "missing":
        assert first.missing_b > 0.3 > 0.1 > first.missing_a
    elif case == "vanished":
        assert first.chi_squared_p is not None
        assert first.chi_squared_p < 1e-100
    else:
        assert first.missing_b == 1.0
        assert first.ks is None
    assert any("values are no number, say 'no. " in note for note in found.notes) == (case == "text")


def test_columns_that_say_nothing_in_one_table(tmp_path: Path) -> None:
    """Constant or empty in A and not so in B is a shift; in both it is nothing; what only one has is told."""
    a = pl.DataFrame(
        {"x": [*range(50)] * 4, "fixed": [1] * 200, "empty": [None] * 200, "same": ["s"] * 200, "old": [1, 2] * 100}
    )
    b = a.drop("old").with_columns(fixed=pl.lit(2), empty=pl.lit("now"), new=pl.lit(3))
    found = compared(tmp_path, a, b)
    assert found.shifted == ["fixed", "empty"]
    assert [column.name for column in found.columns] == ["fixed", "empty", "x"]
    assert "same: not compared: always the same" in found.notes
    assert "old: only A has it" in found.notes
    assert "new: only B has it" in found.notes


def daily(days: range, shift: float = 0.0) -> pl.DataFrame:
    """100 rows a day that share a day's weather."""
    rng = np.random.default_rng(days.start)
    weather = np.repeat(rng.normal(size=len(days)), 100)
    at = [(day * DAY_MS + row * 60_000) for day in days for row in range(100)]
    frame = pl.DataFrame(
        {"at": at, "temp": weather + 0.1 * rng.normal(size=len(at)) + shift, "noise": rng.normal(size=len(at))}
    )
    return frame.with_columns(pl.from_epoch("at", time_unit="ms"))


def test_rows_that_share_a_day_are_not_taken_as_independent(tmp_path: Path) -> None:
    """Another week's weather is ordinary by blocks of days, and would not be by rows; a real shift is seen by blocks too."""
    weeks = daily(range(60)), daily(range(60, 67))
    found = compared(tmp_path, *weeks)
    assert (found.blocks.by, found.blocks.hours, found.blocks.count) == ("time", 24.0, 60)
    assert found.shifted == []
    assert "in 60 blocks of a day, and B is of 7" in render(found)
    assert compared(tmp_path, *weeks, block_hours=0.0).shifted == ["temp"]
    assert compared(tmp_path, weeks[0], daily(range(60, 67), shift=8.0)).shifted == ["temp"]
    longer = compared(tmp_path, *weeks, block_hours=240.0)
    assert longer.blocks.why == "of 240 hours there would be fewer than 14"
    assert 14 <= longer.blocks.count <= 15


def test_of_several_columns_of_times_one_is_named(tmp_path: Path) -> None:
    """Without a name rows are independent, which is told."""
    two = daily(range(30)).with_columns(told=pl.col("at") + pl.duration(hours=1))
    found = compared(tmp_path, two, two.head(500))
    assert found.blocks.count == 1
    assert "at, told hold times: --time COLUMN says by which of them rows stay together" in found.notes
    assert compared(tmp_path, two, two.head(500), "at").blocks.count == 30
    with pytest.raises(ConfigError, match=r"no column of .*a\.parquet is known to hold event times"):
        compared(tmp_path, two, two, block_hours=12.0)


def test_holm_is_that_of_the_book() -> None:
    """Steps down, never falls, never above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_columns_are_chosen_and_a_wrong_one_is_named(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    """Holm's correction is over those that are compared."""
    found = compared(tmp_path, *halves, columns=("age", "sex"), joint=True, classifier="lightgbm")
    assert {column.name for column in found.columns} == {"age", "sex"}
    assert {column.p_holm >= column.p for column in found.columns} == {True}
    assert [len(row) for row in table(found)] == [14] * 3
    with pytest.raises(ConfigError, match="--columns agee: not a column that is compared; did you mean 'age'"):
        compared(tmp_path, *halves, columns=("agee",))


def test_a_cross_is_compared_as_its_model_sees_it() -> None:
    """Its parts may be as before."""
    schema = Schema((Feature("a", "category"), Feature("b", "category")), "y", "binary", (0, 1), crosses=(("a", "b"),))
    first, second = ["p", "q"] * 500, ["p"] * 250 + ["q"] * 250
    one = Table("one", 1000, {"a": first, "b": second * 2})
    other = Table("other", 1000, {"a": first, "b": first})
    assert compare(Pair(schema, one, other, []), Options()).shifted == ["a*b"]


# -- a project's sources

SETTINGS = {"tracking.tracker": "none"}


def put(lake: Lake, name: TableName, rows: list[tuple[Any, ...]]) -> None:
    lake.append(name, pl.DataFrame(rows, schema=COLUMNS[name], orient="row"), {"test": len(rows)})


def features(number: int) -> bytes:
    """Of a request: older people from the 1,000th on, a new category from the 1,500th on."""
    work = "new" if number >= 1500 and number % 2 else ["a", "b"][number % 2]
    return json.dumps({"age": 20 + number % 37 + 40 * (number >= 1000), "work": work}).encode()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Configuration, Lake]]:
    """2,000 requests, 40 a day from 1 March 2013 on; version 1 answered the first half; three of four were labelled."""
    folder = tmp_path_factory.mktemp("drift")
    rows = [(20 + n % 37, ["a", "b"][n % 2], "yes" if n % 5 == 0 else "no") for n in range(800)]
    pl.DataFrame(rows, schema=["age", "work", "paid"], orient="row").write_parquet(folder / "original.parquet")
    configuration = init_project(
        folder / "original.parquet", folder / "p", Choices(target="paid"), "", SETTINGS
    ).configuration
    lake = Lake(configuration.lake)
    start = int(np.datetime64("2013-03-01", "ms").astype(np.int64))
    at = [start + n * DAY_MS // 40 for n in range(2000)]
    asked = [(f"r{n}", 0, n, n, at[n], features(n)) for n in range(2000)]
    bad = [("bad", 0, 2000, 0, at[5], b'{"age": [1]}'), ("r7", 0, 2001, 0, at[1999], features(1999))]
    answered = [(f"r{n}", 0, n, n, 1 + n // 1000, "bundle", b"") for n in range(2000)]
    told = [(f"r{n}", 0, n, n, json.dumps("yes" if n < 1000 and n % 5 == 0 else "no"), None) for n in range(2000) if n % 4]
    put(lake, "requests", asked + bad)
    put(lake, "predictions", answered)
    put(lake, "outcomes", told)
    observed = [
        (number, id, 0, offset, features(offset), label, at[offset], 0, 0, 1, "bundle", None)
        for number, (id, _, offset, _, label, _) in enumerate(told)
    ]
    put(lake, "observations", observed)
    yield configuration, lake
    lake.close()


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("original", 800),
        ("version:1", 1000),
        ("version:2", 1000),
        ("2013-03-01..2013-03-03", 80),
        ("..2013-03-02T12:00:00Z", 60),
        ("2013-03-01T01:00:00+01:00..2013-03-02", 40),
        ("2013-04-19..", 40),
        ("..", 2000),
        ("observations:0..100", 100),
        ("observations:1490..", 10),
        ("observations:..7", 7),
    ],
)
def test_a_source_gives_its_rows(project: tuple[Configuration, Lake], source: str, rows: int) -> None:
    """Of a time from the first on and before the second; each id's first request, and only what could be answered."""
    pair = of_project(source, source, *project)
    assert pair.a.rows == rows
    assert {len(column) for column in pair.a.columns.values()} == {rows} == {len(pair.a.outcomes)}
    assert (source == "original") == (len(pair.a.times_ms) == 0)
    bad = sum("1 requests cannot be read by schema.json" in note for note in pair.notes)
    assert bad == (
        2
        if source in ("..", "2013-03-01..2013-03-03", "..2013-03-02T12:00:00Z", "2013-03-01T01:00:00+01:00..2013-03-02")
        else 0
    )
    assert any("requests are in both" in note for note in pair.notes) == (source != "original")


def test_versions_are_compared_with_their_outcomes(project: tuple[Configuration, Lake]) -> None:
    """The planted shifts, the target among them, on the rows whose outcome is known."""
    found = compare(of_project("version:1", "version:2", *project), Options(block_hours=0.0))
    assert set(found.shifted) == {"age", "work", "paid"}
    target = next(column for column in found.columns if column.target)
    assert (target.rows_a, target.rows_b, target.kind) == (750, 750, "category")
    assert "paid: the outcomes of 750 of A's 1,000 rows" in found.notes
    assert "paid (target)" in render(found)
    assert compare(of_project("original", "..2013-03-26", *project), Options()).shifted == []


def test_a_file_is_read_by_the_projects_schema(project: tuple[Configuration, Lake], tmp_path: Path) -> None:
    """A column that it lacks is told; what a feature cannot take counts as missing."""
    text = pl.DataFrame({"age": ["31", " 40 ", "old"] * 100, "other": [1] * 300})
    text.write_csv(tmp_path / "new.csv")
    pair = of_project("original", str(tmp_path / "new.csv"), *project)
    assert "work: only A has it" in pair.notes
    assert "B: age: 100 values are no number, say 'old': they count as missing" in pair.notes
    found = compare(pair, Options())
    assert [column.name for column in found.columns] == ["age"]
    assert "paid: not compared: B has no outcomes" in found.notes
    assert found.columns[0].missing_b == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("orignal", "'orignal' is nothing to compare; did you mean 'original'?; give a .csv or .parquet file, original"),
        ("version:9", "version:9: it has answered no request; versions 1, 2 have"),
        ("version:x", "version:x: 'x' is no whole number"),
        ("2012-01-01..2012-02-01", "no request is of that time; the lake's 2,001 requests are of 2013-03-01 00:00 to"),
        ("2013-03-02..2013-03-01", "ends before it begins"),
        ("2013-03-99..", "'2013-03-99' is no date or time like 2013-04-04"),
        ("observations:0..9999", "there are 1,500, from number 0 to 1499"),
        ("observations:5..5", "give I below J"),
        ("observations:5", "write observations:I..J"),
        ("gone.csv", "gone.csv: no such file"),
    ],
)
def test_a_source_that_is_none_is_told(project: tuple[Configuration, Lake], source: str, hint: str) -> None:
    """In one line, with what there is."""
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as told:
        of_project("original", source, *project)
    assert hint in str(told.value)


def test_a_lake_without_rows_says_so(project: tuple[Configuration, Lake], tmp_path: Path) -> None:
    """Before the first request."""
    for source, hint in {
        "..": "the lake has no requests yet",
        "version:1": "nor has any other",
        "observations:..": "there are none yet",
    }.items():
        with pytest.raises(ConfigError, match=hint):
            of_project("original", source, project[0], Lake(tmp_path))


def test_blocks_by_the_projects_feature(project: tuple[Configuration, Lake]) -> None:
    """Where drift.block names one; hours that are asked for go before."""
    pair = of_project("version:1", "version:2", *project)
    found = compare(pair, Options(block="work"))
    assert (found.blocks.by, found.blocks.count) == ("work", 2)
    assert "2 blocks of one work, and B is of 2 (few: p is rough)" in render(found)
    assert compare(pair, Options(block="work", block_hours=24.0)).blocks.by == "time"
    with pytest.raises(ConfigError, match=r"drift\.block: no column 'shop' is compared; there are age, work"):
        compare(pair, Options(block="shop"))


def test_texts_of_others_do_not_steer_the_terminal() -> None:
    """Control characters of a category are shown escaped."""
    schema = Schema((Feature("a", "category"),), "y", "binary", (0, 1))
    pair = Pair(schema, Table("one", 100, {"a": ["x"] * 100}), Table("two", 100, {"a": ["\x1b[2J"] * 100}), ["\x1b[2J"])
    assert "\x1b" not in render(compare(replace(pair, a=replace(pair.a, columns={"a": ["\x1b[31m"] * 100})), Options()))


def test_the_page_is_one_file_with_texts_escaped(tmp_path: Path) -> None:
    """Names, categories and files of others become no element; no element asks for anything; one picture a column."""
    pytest.importorskip("plotly")
    from tidemill.drift.page import page

    schema = Schema((Feature(EVIL, "category"), Feature("n", "number")), "y", "binary", (0, 1))
    one = Table(EVIL, 100, {EVIL: ["x", EVIL] * 50, "n": [1.0, 2.0] * 50})
    text = page(compare(Pair(schema, one, replace(one, columns={EVIL: ["x"] * 100, "n": [3.0] * 100}), [EVIL]), Options()))
    body = text.partition("<body>")[2]
    assert "<img" not in text
    assert text.count("</script>") == 3
    assert "Content-Security-Policy\" content=\"default-src 'none';" in text
    assert not [part for part in ('src="http', "src='http", "<link", "href=") if part in body]
    figures = json.loads(body.partition('id="figures">')[2].partition("</script>")[0])
    assert len(figures) == body.count('class="figure"') == 2
    assert {len(figure["data"]) for figure in figures} == {2}
    assert body.index("<h3>n: shifted") < body.index("<h3>&lt;/script")
