"""A comparison as text: for a person at a terminal, and the lines and the table of its page."""

from collections.abc import Iterator

from tidemill.core.drift_estimator import THRESHOLD
from tidemill.core.reference import BLOCKS_MIN
from tidemill.drift.compare import Blocking, ColumnShift, Comparison, Side
from tidemill.texts import aligned, moment


def facts(found: Comparison) -> list[tuple[str, str]]:
    """Which tables these are."""
    return [("A", _of(found.a)), ("B", _of(found.b))]


def _of(side: Side) -> str:
    times = "" if side.since is None or side.until is None else f", {moment(side.since)} to {moment(side.until)} UTC"
    return f"{side.name}: {side.rows:,} rows{times}"


def table(found: Comparison) -> list[list[str]]:
    """A head, and a row a column."""
    head = ["column", "shift", "effect", "p", "JS", "PSI", "missing A", "missing B", "unseen", "outside"]
    head += ["test", "its p", "Wasserstein", *(["MLBox"] if found.joint is not None else [])]
    return [head, *(_row(column, found.joint is not None) for column in found.columns)]


def _row(one: ColumnShift, joint: bool) -> list[str]:
    test = f"KS {one.ks:.3f}" if one.ks is not None else "" if one.chi_squared is None else f"chi2 {one.chi_squared:.5g}"
    test_p = one.ks_p if one.ks is not None else one.chi_squared_p
    cells = [f"{one.name} (target)" if one.target else one.name, "yes" if one.shifted else "", f"{one.effect:.3f}"]
    cells += [f"{one.p:.2g}", f"{one.jensen_shannon:.3f}", f"{one.psi:.3f}", f"{one.missing_a:.1%}", f"{one.missing_b:.1%}"]
    cells += ["" if share is None else f"{share:.1%}" for share in (one.unseen, one.outside)]
    cells += [test, "" if test_p is None else f"{test_p:.2g}", "" if one.wasserstein is None else f"{one.wasserstein:.4g}"]
    return cells + (["" if one.mlbox is None else f"{one.mlbox:.3f}"] if joint else [])


def conclusion(found: Comparison) -> Iterator[str]:
    """What shifted, and what the figures mean."""
    count, names = len(found.columns), found.shifted
    yield f"shifted: {f'{len(names)} of {count} columns: ' + ', '.join(names) if names else f'none of {count} columns'}"
    yield from (f"  {column.most}" for column in found.columns if column.shifted)
    yield (
        f"shift: p is at most {found.alpha:g} after Holm's correction over {count} columns, and the effect"
        f" {found.effect_min:g} or more; effect: the Jensen-Shannon distance (JS) beyond that of ordinary stretches"
    )
    whose = f"a stretch of {found.b.rows:,} rows of A lies as far from A as B does"
    if found.blocks.split:
        whose = "the rows of both, mixed and split by chance, lie as far apart"
    yield f"p: how often {whose}; {_assumed(found.blocks)}"
    yield "test: KS of numbers, chi-squared of categories; its own p takes rows as independent, and many rows make it small"
    if found.joint is not None:
        yield (
            f"MLBox: all columns together {found.joint:.3f} ({found.classifier}; 0: cannot be told apart, 1: always), each"
            f" alone as in the table (MLBox drops those from {THRESHOLD:g} on)"
        )
        yield (
            "  a joint score near 1 is normal for a time series whose rows share a day's weather, a month or a price level:"
            " the classifier tells the times apart, not a change; go by each column's p"
        )


def _assumed(blocks: Blocking) -> str:
    if blocks.count == 1:
        return f"rows are taken as independent ({blocks.why})"
    what = f"of {_length(blocks.hours)}" if blocks.by == "time" else f"of one {blocks.by}"
    reasons = [blocks.why] * bool(blocks.why) + ["few: p is rough"] * (blocks.count < BLOCKS_MIN)
    more = f" ({'; '.join(reasons)})" if reasons else ""
    together = f"they stay together in {blocks.count} blocks {what}, and B is of {blocks.b:.3g}{more}"
    return f"A's rows are not taken as independent: {together}"


def _length(hours: float) -> str:
    return f"{hours / 24:.3g} days" if hours > 24 else "a day" if hours == 24 else f"{hours:.3g} hours"


def render(found: Comparison) -> str:
    """All of it for a terminal."""
    lines = [f"{name}  {text}" for name, text in facts(found)]
    lines += ["", *aligned(table(found)), "", *conclusion(found), *(f"note: {note}" for note in found.notes)]
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """Texts of a table are its writer's: nothing of them steers a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
