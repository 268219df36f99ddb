"""The one definition of correct: proves from the log, the lake and the bundles what the project promises.

It may run beside the roles. What it can no longer look at (deleted, pruned, mended) is unchecked, never good.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import polars as pl
from msgspec import Struct

from tidemill.audit_facts import (
    JOINED,
    PLACE,
    REQUEST,
    Facts,
    Told,
    answers_in,
    dead_letters_in,
    joined,
    outcome_ids,
    read_facts,
    refused_by,
    requests_in,
    scattered,
    told_in,
)
from tidemill.bundles import Bundle, BundleStore
from tidemill.core import auditing
from tidemill.core.answers import Answerer
from tidemill.core.auditing import Check, Place, Traffic, found
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.retraining import is_first
from tidemill.core.schema import Schema
from tidemill.core.versions import Slots, announced
from tidemill.errors import BundleRefused, UnknownModel
from tidemill.lake import Lake, TableName
from tidemill.log.base import Log
from tidemill.messages import ModelVersion, Prediction, Topics, to_bytes
from tidemill.settings import Labels

BYTES_MAX = 1 << 62
"""What was answered was not too large for the predictor then, whatever the setting is now."""
LABELS_WAIT_MS = int(Labels().wait_hours * 3_600_000)

_prediction = msgspec.json.Decoder(Prediction)


class Report(Struct, frozen=True):
    """What was found. ``waiting`` requests are behind the predictor: not lost. ``lost``, ``doubled`` and ``wrong`` count
    requests without an answer, answers too many, and answers that their bundle does not give.
    """

    requests: int
    answers: int
    dead_letters: int
    waiting: int
    lost: int
    doubled: int
    recomputed: int
    unchecked: int
    wrong: int
    observations: int
    retrainings: int
    bundles: int
    versions: list[int]
    checks: list[Check]
    clean: bool


def audit(
    log: Log,
    topics: Topics,
    lake: Lake,
    store: BundleStore,
    sample: int = 1000,
    seed: int = 0,
    labels_wait_ms: int = LABELS_WAIT_MS,
) -> Report:
    """Check every promise; ``sample`` answers, drawn with ``seed``, are computed again. ``labels_wait_ms`` must be the
    monitor's.
    """
    facts = read_facts(log, topics, lake)
    told = told_in(facts)
    slots = Slots.of(map(to_bytes, told.models))
    bundles = sorted({version.bundle for version in announced(told.models, told.journal).values()})
    asked, given, letters = requests_in(facts, topics), answers_in(facts), dead_letters_in(facts)
    known = given.drop_nulls("value")
    traffic = _traffic(facts, topics, asked, given, letters)
    drawn = _with_features(given, asked, traffic).sample(min(sample, len(given)), seed=seed)
    checks = [
        told.check,
        auditing.answered(traffic),
        auditing.answered_once(traffic),
        auditing.asked_for(traffic),
        auditing.dead_letters_carry(*_letters_and_originals(facts, topics, letters)),
        auditing.answers_announced(
            _versions_named(known), auditing.announced_pairs(told.models, told.journal), len(given) - len(known)
        ),
        recomputed(drawn, store),
        *_lake_checks(facts, topics, asked, known, letters, _schemas(bundles, store)),
        *_observation_checks(facts, labels_wait_ms),
        *_decision_checks(facts, topics, told),
        bundles_verify(bundles, slots.champion, store),
        auditing.positions_within(*_all_positions(facts, topics)),
    ]
    return _report(facts, traffic, given, letters, told, bundles, checks)


def render(report: Report) -> str:
    """The report as a table for a terminal: the totals, a line a check, and a verdict."""
    totals = {name: getattr(report, name) for name in report.__struct_fields__ if name not in {"checks", "clean"}}
    totals["versions"] = ", ".join(map(str, report.versions)) or "none"
    lines = [f"{name.replace('_', ' '):<14} {value}" for name, value in totals.items()]
    lines += ["", f"{'check':<20} {'checked':>9} {'unchecked':>9} {'problems':>8}"]
    for check in report.checks:
        lines.append(f"{check.name:<20} {check.checked:>9} {check.unchecked:>9} {check.problems:>8}")
        lines += [f"    {example}" for example in check.examples]
        if check.problems > len(check.examples):
            lines.append(f"    and {check.problems - len(check.examples)} more")
    broken = [check.name for check in report.checks if check.problems]
    return "\n".join([*lines, "", f"broken: {', '.join(broken)}" if broken else "clean", ""])


def _report(
    facts: Facts,
    traffic: Traffic,
    given: pl.DataFrame,
    letters: pl.DataFrame,
    told: Told,
    bundles: Sequence[str],
    checks: list[Check],
) -> Report:
    by_name = {check.name: check for check in checks}
    finished = {entry.experiment for entry in told.journal if entry.kind == "experiment"}
    return Report(
        requests=len(traffic.requests),
        answers=len(given),
        dead_letters=len(letters),
        waiting=sum(not traffic.done(place) for place in traffic.requests),
        lost=by_name["answered"].problems,
        doubled=by_name["answered-once"].problems,
        recomputed=by_name["recomputed"].checked,
        unchecked=sum(check.unchecked for check in checks),
        wrong=by_name["recomputed"].problems,
        observations=len(facts.tables["observations"]),
        retrainings=sum(not is_first(id) for id in finished),
        bundles=len(bundles),
        versions=sorted(given["version"].drop_nulls().unique()),
        checks=checks,
        clean=not any(check.problems for check in checks),
    )


# Observations against the obvious join.


def numbers_count_up(observations: pl.DataFrame) -> Check:
    """The observations' numbers are 0, 1, 2 ... without a gap, and no request is observed twice."""
    numbers = Counter(observations["number"].to_list())
    problems = [f"number {number} is missing" for number in range(len(observations)) if number not in numbers]
    problems += [f"number {number} stands {times} times" for number, times in sorted(numbers.items()) if times > 1]
    repeated = observations.group_by(REQUEST).agg(pl.len(), pl.first("request_id")).filter(pl.col("len") > 1).sort(REQUEST)
    problems += [f"request {name} at {p}:{o} is observed {times} times" for p, o, times, name in repeated.iter_rows()]
    return found("observations-once", len(observations), problems)


def observations_are_the_join(observations: pl.DataFrame, join: pl.DataFrame, unchecked: int) -> Check:
    """Every observation has the values of its request, prediction and outcome."""
    columns = [column for column in join.columns if column not in {*REQUEST, "answer"}]
    both = observations.join(join.with_columns(there=True), on=REQUEST, how="left", suffix="_due").sort("number")
    other_scores = pl.Series(map(_other_scores, both["scores"].to_list(), both["answer"]), dtype=pl.Boolean)
    differing = [pl.when(pl.col(c).ne_missing(pl.col(f"{c}_due"))).then(pl.lit(c)) for c in columns]
    differing.append(pl.when(other_scores).then(pl.lit("scores")))
    texts = both.with_columns(pl.concat_str(differing, separator=", ", ignore_nulls=True).alias("differing"))
    wrong = texts.filter(pl.col("there").is_null() | (pl.col("differing") != ""))
    problems = [
        f"observation {number} ({name}) has another {differing}"
        if there
        else f"observation {number} ({name}) has no request, prediction or outcome of its own"
        for number, name, there, differing in wrong.select("number", "request_id", "there", "differing").iter_rows()
    ]
    return found("observations-join", len(observations), problems, unchecked)


def _other_scores(scores: list[float], answer: bytes | None) -> bool:
    """Scores may stand in the order of another schema's classes; of another number of classes they are not compared."""
    if answer is None:
        return False
    prediction = _prediction.decode(answer)
    single = [number for number in (prediction.probability, prediction.value) if number is not None]
    due = [*single, *(prediction.probabilities or {}).values()]
    return len(scores) == len(due) and sorted(scores) != sorted(due)


def none_missing(observations: pl.DataFrame, due: pl.DataFrame) -> Check:
    """Every request that the monitor has read with its answer and its outcome is observed."""
    missing = due.join(observations, on=REQUEST, how="anti").sort(REQUEST)
    problems = [f"request {name} is labelled and answered, but not observed" for name in missing["request_id"]]
    return found("observations-all", len(due), problems)


# Answers through their own bundles.


def recomputed(answers: pl.DataFrame, store: BundleStore) -> Check:
    """Each answer (``value``) is what its bundle makes of the request's bytes (``features``), bit for bit.

    Answers whose bundle was pruned, or is refused, or whose request is gone, are unchecked, and those that are null.
    """
    problems: list[str] = []
    checked = 0
    for (bundle,), rows in answers.drop_nulls(["features", "value"]).group_by("bundle", maintain_order=True):
        try:
            loaded = store.load(str(bundle))
        except (UnknownModel, BundleRefused):
            continue
        with loaded:
            problems += _differing(rows, loaded)
        checked += len(rows)
    return found("recomputed", checked, problems, len(answers) - checked)


def _differing(rows: pl.DataFrame, bundle: Bundle) -> Iterator[str]:
    answerer = Answerer(MatrixDecoder(bundle.encoder, BYTES_MAX), bundle.model.predict, bundle.threshold)
    due = answerer.answer(rows["features"].to_list())
    for row, error in due.bad:
        yield f"answer to {rows['request_id'][row]} was given to a bad request ({error})"
    columns = due.rows, due.predictions, due.probability, due.probabilities, due.value
    for row, *expected in zip(*columns, strict=True):
        answer = _prediction.decode(rows["value"][row])
        given = [answer.prediction, answer.probability, answer.probabilities, answer.value]
        # As JSON, floats are equal where all their bits are, and 1, 1.0 and true are not.
        if msgspec.json.encode(given) != msgspec.json.encode(expected):
            yield f"answer to {answer.request_id} by version {answer.version} is {_shown(given)}, due is {_shown(expected)}"


def _shown(answer: Sequence[object]) -> str:
    return msgspec.json.encode([part for part in answer if part is not None]).decode()


def bundles_verify(bundles: Iterable[str], champion: ModelVersion | None, store: BundleStore) -> Check:
    """Every announced bundle that the store holds has the bytes of its hash, and the champion's is there."""
    problems: list[str] = []
    checked = unchecked = 0
    for bundle in bundles:
        try:
            store.verify(bundle)
            checked += 1
        except BundleRefused as error:
            checked += 1
            problems.append(str(error))
        except UnknownModel:
            if champion is not None and bundle == champion.bundle:
                problems.append(f"bundle {bundle} of the champion, version {champion.version}, is not in the store")
            else:
                unchecked += 1
    return found("bundles", checked, problems, unchecked)


def _traffic(facts: Facts, topics: Topics, asked: pl.DataFrame, given: pl.DataFrame, letters: pl.DataFrame) -> Traffic:
    kept_from = {partition: first for partition, (first, _) in facts.bounds["requests"].items()}
    requests = {(partition, offset): name for partition, offset, name in asked.select(*PLACE, "request_id").iter_rows()}
    deleted = Counter(partition for partition, offset in requests if offset < kept_from.get(partition, 0))
    return Traffic(
        requests=requests,
        answers=given["request_id"].to_list(),
        refused=refused_by(letters, "predictor", topics.requests),
        kept_from=kept_from,
        done_to=facts.done_to("predictor", topics.requests),
        whole=all(deleted[partition] == first for partition, first in kept_from.items()),
    )


def _with_features(given: pl.DataFrame, asked: pl.DataFrame, traffic: Traffic) -> pl.DataFrame:
    """The answers with the bytes of their requests: of several requests with one id, each answer's is the next.

    Null where the request is gone; so also for ids that were sent more than once, if some requests are unknown, or if they
    stand in several partitions, which have no order between them.
    """
    refused = pl.DataFrame(list(traffic.refused), schema={"partition": pl.Int32, "offset": pl.Int64}, orient="row")
    turn = pl.int_range(pl.len()).over("request_id")
    apart = pl.col("partition").n_unique().over("request_id") > 1
    asks = asked.join(refused, on=PLACE, how="anti").sort(PLACE)
    asks = asks.with_columns(turn=turn, times=pl.len().over("request_id"), apart=apart)
    times = asks.select("request_id", "times").unique()
    answers = given.sort(PLACE).with_columns(turn=turn).join(times, on="request_id", how="left")
    answers = answers.with_columns(turn=pl.min_horizontal("turn", pl.col("times") - 1))
    features = asks.filter(~pl.col("apart")).select("request_id", "turn", pl.col("value").alias("features"))
    if not traffic.whole:
        answers = answers.with_columns(turn=pl.when(pl.len().over("request_id") == 1).then("turn"))
        features = features.filter(pl.len().over("request_id") == 1)
    return answers.join(features, on=["request_id", "turn"], how="left")


def _versions_named(given: pl.DataFrame) -> list[tuple[str, tuple[int, str]]]:
    return [
        (name, (version, bundle)) for name, version, bundle in given.select("request_id", "version", "bundle").iter_rows()
    ]


def _letters_and_originals(
    facts: Facts, topics: Topics, letters: pl.DataFrame
) -> tuple[list[tuple[str, Place, bytes]], dict[tuple[str, Place], set[bytes]]]:
    columns = letters.select("topic", "source_partition", "source_offset", "value")
    named = [(topic, (partition, offset), value) for topic, partition, offset, value in columns.iter_rows()]
    wanted = {(topic, place) for topic, place, _ in named}
    originals = {
        (getattr(topics, name), place): values
        for name in JOINED
        for place, values in _bytes_of(facts, name)
        if (getattr(topics, name), place) in wanted
    }
    return named, originals


def _bytes_of(facts: Facts, name: TableName) -> Iterator[tuple[Place, set[bytes]]]:
    """The records' bytes; of a mended one what it is now and what the table has, or nothing where the table has no bytes."""
    records, table = facts.records[name], facts.tables[name]
    for partition, offset, value in records.whole().select(*PLACE, "value").iter_rows():
        yield (partition, offset), {value}
    if "value" in table.columns:
        remembered = table.join(records.mended, on=PLACE, how="semi").select(*PLACE, "value")
        for partition, offset, value in remembered.iter_rows():
            yield (partition, offset), {value, b""}


def _schemas(bundles: Iterable[str], store: BundleStore) -> list[Schema]:
    """The schemas of the announced bundles that can be read."""
    found: dict[str, Schema] = {}
    for bundle in bundles:
        with suppress(UnknownModel, BundleRefused):
            schema = store.schema(bundle)
            found[schema.digest()] = schema
    return list(found.values())


def _lake_checks(
    facts: Facts, topics: Topics, asked: pl.DataFrame, given: pl.DataFrame, letters: pl.DataFrame, schemas: Sequence[Schema]
) -> Iterator[Check]:
    """The tables of the recorder against the log."""
    yield _table_check(facts, "requests", asked, asked.columns)
    yield _table_check(facts, "predictions", given, given.columns)
    yield _table_check(facts, "dead_letters", letters, letters.columns)
    refused = refused_by(letters, "recorder", topics.outcomes)
    (records, headers, _), table = facts.records["outcomes"], facts.tables["outcomes"]
    mended = _mended(facts, "outcomes")
    rows = {(p, o): (label, at) for p, o, label, at in table.select(*PLACE, "outcome", "outcome_at").iter_rows()}
    done_to = facts.done_to("recorder", topics.outcomes)
    named = records.with_columns(request_id=pl.Series(outcome_ids(facts), dtype=pl.String))
    is_due = [
        place not in mended and (place in rows or (not refused[place] and place[1] < done_to.get(place[0], 0)))
        for place in records.select(PLACE).iter_rows()
    ]
    yield _table_check(
        facts, "outcomes", named.filter(pl.Series(is_due, dtype=pl.Boolean)), [*PLACE, "request_id", "time_ms"]
    )
    contents = zip(records.select(PLACE).iter_rows(), records["key"], records["value"], headers, strict=True)
    whole = (content for content in contents if content[0] not in mended)
    yield auditing.outcomes_read(whole, rows, refused, schemas, len(mended))


def _mended(facts: Facts, name: str) -> set[Place]:
    return {(partition, offset) for partition, offset in facts.records[name].mended.select(PLACE).iter_rows()}


def _table_check(facts: Facts, name: TableName, due: pl.DataFrame, columns: list[str]) -> Check:
    columns = [*PLACE, *(column for column in columns if column not in PLACE)]
    expected = {(p, o): tuple(values) for p, o, *values in due.select(columns).iter_rows()}
    rows = facts.tables[name].select(columns).iter_rows()
    return auditing.table_is_log(name, rows, expected, facts.stored[name], facts.bounds[name], _mended(facts, name))


def _observation_checks(facts: Facts, wait_ms: int) -> list[Check]:
    """Which of the records that are scattered over partitions came first nobody can say: what came of them is unchecked."""
    observations = facts.tables["observations"]
    past: dict[TableName, pl.DataFrame] = {name: _read_past(facts, name) for name in JOINED}
    apart = scattered(facts.tables)
    made, due = observations.join(apart, on="request_id", how="anti"), joined(past, wait_ms)
    return [
        numbers_count_up(observations),
        observations_are_the_join(made, joined(facts.tables, wait_ms), len(observations) - len(made)),
        none_missing(made, due.join(apart, on="request_id", how="anti")),
    ]


def _read_past(facts: Facts, name: TableName) -> pl.DataFrame:
    """The rows of a table that the monitor has read."""
    limit = pl.col("partition").replace_strict(facts.read[name], default=0, return_dtype=pl.Int64)
    return facts.tables[name].filter(pl.col("offset") < limit)


def _decision_checks(facts: Facts, topics: Topics, told: Told) -> list[Check]:
    commands = [command for _, command in told.commands]
    trials = [(bytes(key or b"").decode("utf-8", "replace"), value) for key, value in _keyed(facts, "trials")]
    return [
        auditing.commands_unique(commands),
        auditing.commands_due(commands, facts.observed),
        auditing.commands_decided(told.commands, facts.done_to("trainer", topics.retrain), told.journal),
        auditing.same_when_repeated("trials", trials),
        auditing.sequences_rise(told.models, told.journal),
        auditing.versions_rise(told.models, told.journal),
    ]


def _keyed(facts: Facts, name: str) -> Iterable[tuple[Any, ...]]:
    return facts.records[name].whole().select("key", "value").iter_rows()


def _all_positions(
    facts: Facts, topics: Topics
) -> tuple[dict[tuple[str, str, int], int], dict[tuple[str, int], tuple[int, int]]]:
    """The groups' positions in the log and the monitor's in the tables, with what bounds them."""
    positions = {(group, *place): at for group, places in facts.committed.items() for place, at in places.items()}
    bounds = {
        (getattr(topics, name), partition): (facts.firsts[name][partition], end)
        for name, partitions in facts.bounds.items()
        for partition, (_, end) in partitions.items()
    }
    for name in JOINED:
        positions |= {("monitor", f"lake-{name}", partition): at for partition, at in facts.read[name].items()}
        bounds |= {(f"lake-{name}", partition): (0, at) for partition, at in facts.stored[name].items()}
    return positions, bounds
