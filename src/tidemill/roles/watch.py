"""The watch: holds what is served against what the champion learnt from, and raises an alarm where that means something.

A **look** is a row of the lake's table ``looks``: what was counted of the requests that the recorder wrote since the last
one, with the positions after them and the whole state, in one commit. So a restart repeats no look and leaves none out. When
the outcomes of its requests have come, as far as they ever will, a second row says what they were.

What is said (events, and the command of an alarm) follows the commit; killed between the two, the next start says it again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray

from tidemill.bundles import BundleStore
from tidemill.clock import Clock
from tidemill.core.alarms import Limits, Watch, alpha_of, evidence, look, passing
from tidemill.core.delays import Arrivals, Waits, arrivals
from tidemill.core.expected_quality import ESTIMATED, Calibration, calibrate, expect, widening
from tidemill.core.looking import Known, Size, Tally, window
from tidemill.core.metrics import Metric
from tidemill.core.outcomes import label_numbers
from tidemill.core.reference import answers
from tidemill.core.representative import LEAST, Representative, representative
from tidemill.core.retraining import AHEAD_MS, for_alarm
from tidemill.errors import BadRecord
from tidemill.lake import Lake
from tidemill.log.base import Log, Message
from tidemill.messages import Event, JournalEntry, Retrain, Topics, to_bytes
from tidemill.roles.looks import KEPT, Look, Matured, Positions, interval, marks_of, read_looks, within, write_look
from tidemill.roles.promotion import acknowledged, announced, read_slots
from tidemill.roles.reading import read_messages
from tidemill.roles.tail import Tail
from tidemill.roles.watched import Watched, watched
from tidemill.settings import Drift
from tidemill.settings import Retrain as RetrainSettings

logger = structlog.get_logger()

ROLE = "monitor"
LOOK_WINDOWS, LOOK_ROWS = 5, 20_000
"""Where the monitor is behind, a look takes so many times ``drift.window_rows``, and so many rows of each partition, at
most: its outcomes are judged with the next one.
"""
TIMES = (0.05, 0.95)
"""A look reaches from here to there of its requests' times: one that lies in another century must not stretch it."""
CONFIDENCE = 0.9
"""Of the interval for the expected metric."""
MATURED_SHARE = 0.95
ERROR_TIMES = 8.0
"""So many times the training's mean error, larger ones count as this: detectors are made for values with an end."""
CALIBRATION_ROWS, CALIBRATION_WINDOWS = 5_000, 50
"""The newest observations say what a score means now, once there are so many of a model."""
TOLD_SHIFTS = 5
"""Shifts that an event names."""


class Watcher:
    """The one writer of ``looks``; a part of the monitor, in its thread. ``send`` appends a command, once an id."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        lake: Lake,
        store: BundleStore,
        drift: Drift,
        retrain: RetrainSettings,
        wait_hours: float,
        metric: Metric,
        seed: int,
        clock: Clock,
    ) -> None:
        self._log = log
        self._topics = topics
        self._lake = lake
        self._store = store
        self._drift = drift
        self._retrain = retrain
        self._wait_ms = round(wait_hours * 3_600_000)
        self._metric = metric
        self._seed = seed
        self._clock = clock
        self._rows_max = max(drift.window_rows, min(LOOK_ROWS, LOOK_WINDOWS * drift.window_rows))
        self._limits = Limits(drift.false_alarms, drift.effect_min, _ms(drift.cooldown_hours), _ms(drift.known_hours))

    def hold(self) -> bool:
        """Become the table's writer; False while another process is."""
        return self._lake.hold("looks")

    def start(self, send: Callable[[Retrain | None], None]) -> None:
        """Take up where the table stands; say again what the last look may not have said."""
        self._send = send
        self._looks, self._matured = read_looks(self._lake)
        last = self._last
        self._requests = Tail(self._lake, "requests", dict(last.requests) if last else {})
        self._predictions = Tail(self._lake, "predictions", dict(last.predictions) if last else {})
        self._waits = Waits(list(last.delays)) if last else Waits()
        self._counted = last.counted if last else 0
        self._now_ms = max([0, *(one.tally.ended_at for one in self._looks.values())])
        self._model: Watched | None = None
        self._serving = -1
        self._short_at = -2
        self._checked = -1
        if last:
            self._say(last)

    @property
    def _last(self) -> Look | None:
        return self._looks[max(self._looks)] if self._looks else None

    def turn(self, observed: int) -> bool:
        """The outcomes of an older look, which the next one judges, or else a look; False where there is neither."""
        return self._mature(observed) or self._look(observed)

    # -- looking

    def _look(self, observed: int) -> bool:
        version = self._lake.version("requests")
        if version == self._short_at:
            return False
        rows = self._requests.read(self._rows_max)
        if rows is None or rows.height < self._drift.window_rows:
            self._short_at = version
            return False
        model = self._champion()
        if model is None:
            self._short_at = version
            return False
        self._count_delays(observed)
        began = dict(self._requests.positions)
        mine = rows.filter(pl.col("time_ms") >= model.announced_at)
        counts, scores = model.features(mine), self._served(model)
        self._requests.advance(rows)
        asked = mine if mine.height else rows
        # A time that lies ahead of the log's own would hold all that comes before it to be old.
        capped = np.minimum(asked["event_at"].to_numpy(), asked["time_ms"].to_numpy() + AHEAD_MS)
        times = np.quantile(capped, TIMES, method="nearest")
        tally = Tally(mine.height, int(times[0]), int(times[1]), counts, model.counted(scores))
        self._now_ms = max(self._now_ms, tally.ended_at)
        found = self._judged(model, tally, began, observed)
        if model.calibration is not None and len(scores) and self._metric.name in ESTIMATED[model.schema.task]:
            threshold = model.threshold
            found.expected = expect(model.calibration, scores, self._metric, CONFIDENCE, self._seed, threshold)
            found.widened = self._widening()
        marks = marks_of("requests", found.requests) | marks_of("predictions", found.predictions)
        write_look(self._lake, found, marks, found.bundle)
        self._looks[found.number] = found
        self._checked = -1
        self._say(found)
        self._forget()
        return True

    def _served(self, model: Watched) -> NDArray[np.float64]:
        """The champion's new answers."""
        rows = self._predictions.read(max(LOOK_ROWS, self._rows_max))
        if rows is None:
            return np.zeros(0)
        self._predictions.advance(rows)
        return model.predictions(rows)

    def _judged(self, model: Watched, tally: Tally, began: Positions, observed: int) -> Look:
        """The look with what the alarm comes to."""
        last = self._last
        number = last.number + 1 if last else 0
        alpha = self._alpha(tally)
        state, known, asked = (last.state, last.known, last.asked_at) if last else (Watch(), Known(), None)
        if last is None or last.bundle != model.bundle:
            known = Known()
        found = Look(
            number,
            model.bundle,
            model.version,
            tally,
            began,
            dict(self._requests.positions),
            dict(self._predictions.positions),
            self._since(began, observed),
            self._counted,
            self._waits.counts,
            alpha,
            state,
            known,
            asked_at=asked,
        )
        served, told = self._windows(model, tally)
        if served is None:
            return found
        comparer, least = model.comparer, self._drift.effect_min
        findings = comparer.served(served, known, least) + (comparer.told(told, known, least) if told else [])
        passed = passing(findings, alpha, self._limits)
        found.state, found.change = look(
            state, number, tally.ended_at, passed, self._limits, self._acknowledged() if state.alarm else ()
        )
        found.findings = sorted(findings, key=lambda one: one.p)[:TOLD_SHIFTS]
        if found.change and found.change.accept:
            found.known = comparer.accept(known, found.change.alarm.findings, served, told)
        self._ask(found, observed)
        return found

    def _windows(self, model: Watched, tally: Tally) -> tuple[Tally | None, Tally | None]:
        """Of what was served and of what has its outcomes, the newest that is long enough."""
        mine = [one for one in self._looks.values() if one.bundle == model.bundle]
        size = self._size(model)
        served = window([*(one.tally for one in mine if one.tally.rows), tally], size)
        told = [self._matured[one.number].tally for one in mine if one.number in self._matured]
        return served, window([one for one in told if one.labelled], size)

    def _size(self, model: Watched) -> Size:
        reference = model.reference
        whole = reference.block_ms * self._drift.window_blocks if reference.blocked else 0
        return Size(self._drift.window_rows, whole // 3, whole)

    def _widening(self) -> float:
        """What intervals of the past windows would have needed to hold as often as they say."""
        known = [(self._looks[number], one) for number, one in self._matured.items() if number in self._looks]
        pairs = [(of.expected, one.score) for of, one in known if of.expected is not None and one.score is not None]
        return widening([expected for expected, _ in pairs], [score for _, score in pairs])

    def _alpha(self, tally: Tally) -> float:
        """The look's part of the month's budget, by the pace of the last ones."""
        recent = list(self._looks.values())[-100:]
        if not recent:
            return alpha_of(self._limits, 0, 0)
        return alpha_of(self._limits, len(recent), tally.ended_at - recent[0].tally.ended_at)

    def _acknowledged(self) -> set[str]:
        return acknowledged(read_messages(self._log, self._topics.journal, JournalEntry))

    def _ask(self, found: Look, observed: int) -> None:
        """What the alarm that is up asks for."""
        alarm, at = found.state.alarm, found.tally.ended_at
        if alarm is None:
            return
        fresh = found.change is not None and found.change.name != "alarm_cleared"
        modes, cooldown = {"drift": self._retrain.drift, "drop": self._retrain.drop}, _ms(self._retrain.cooldown_hours)
        wanted = for_alarm([one.kind for one in alarm.findings], fresh, found.asked_at, at, modes, cooldown)
        if wanted is None:
            return
        reason, mode = wanted
        found.suggested = mode == "suggest"
        if mode == "auto":
            found.asked_at = at
        found.command = Retrain(f"{reason}-{found.number}", reason, observed, self._clock.now_ms(), evidence(alarm))

    # -- outcomes

    def _mature(self, observed: int) -> bool:
        """Complete the oldest look whose outcomes are in; checked whenever a tenth of a window has become known."""
        if observed - self._checked < self._drift.window_rows / 10 and self._checked >= 0:
            return False
        open = [one for number, one in self._looks.items() if number not in self._matured]
        if open:
            self._count_delays(observed)
            labelled = self._labelled(open)
            known = self._arrivals(open, labelled)
            first = open[0]
            age = self._now_ms - first.tally.ended_at
            complete = labelled[first.number] >= first.tally.rows
            if complete or known.matured(age, MATURED_SHARE) or age > self._wait_ms:
                self._complete(first, labelled[first.number], observed)
                return True
        self._checked = observed
        return False

    def _complete(self, of: Look, labelled: int, observed: int) -> None:
        before = self._matured.get(of.number - 1)
        same = before is not None and self._looks[before.number].bundle == of.bundle
        found = Matured(of.number, of.tally, labelled, observed)
        if before is not None and same:
            found.errors = before.errors
        mine = self._model is not None and self._model.bundle == of.bundle
        model = self._model if mine else self._older(of)
        if model is not None and model.reference.outcomes:
            self._tell(found, of, model)
        write_look(self._lake, found, {"watch:matured": of.number + 1}, of.bundle)
        self._matured[of.number] = found
        if mine and model is not None:
            model.calibration = self._calibrated(model)
        values = {
            "window": of.number,
            "version": of.version,
            "requests": of.tally.rows,
            "labelled": labelled,
            "metric": self._metric.name,
            "score": found.score,
            **interval(of),
            "error_changed": ", ".join(found.changed),
            "labelled_like_served": found.alike.text if found.alike else "",
        }
        self._event("window_matured", values)

    def _tell(self, found: Matured, of: Look, model: Watched) -> None:
        """Count the outcomes of the look's requests that its model answered."""
        labels, predictions, ids = self._labelled_rows(model, self._observations(of))
        if not len(labels):
            return
        told = answers(model.schema.task, labels, predictions)
        found.tally = msgspec.structs.replace(
            of.tally,
            outcomes=model.reference.outcomes[0].count(labels).tolist(),
            errors=float(told.errors.sum()),
            residuals=float(told.residuals.sum()),
        )
        if model.schema.task in self._metric.tasks:  # the schema may ask another question by now than the champion answers
            score = float(self._metric.function(labels, self._metric.at(predictions, model.threshold)))
            found.score = score if math.isfinite(score) else None
        usual = next(one.mean for one in model.reference.levels if one.name == "error")
        errors = np.minimum(told.errors / (ERROR_TIMES * usual or 1.0), 1.0)
        found.changed = [name for name, detector in found.errors.items() if detector.feed(errors)]
        found.alike = self._alike(model, of, predictions, ids)

    def _labelled_rows(
        self, model: Watched, rows: pl.LazyFrame
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], pl.Series]:
        """Labels, predictions and ids of observations that the model answered, in order."""
        columns = ("number", "request_id", "outcome", "scores")
        mine = rows.filter(pl.col("bundle") == model.bundle).select(columns)
        found = self._lake.read(mine).sort("number").filter(pl.col("scores").list.len() == model.scores.wide)
        try:
            outcomes = [msgspec.json.decode(text) for text in found["outcome"].to_list()]
            labels = label_numbers(model.schema, outcomes)
        except BadRecord as error:
            logger.warning("window_not_told", reason="an outcome is none of the model's classes", error=str(error))
            labels = np.zeros(0)
            found = found.clear()
        scores = np.array(found["scores"].to_list(), dtype=np.float64).reshape(len(labels), model.scores.wide)
        return labels, model.scores.predictions(scores), found["request_id"]

    def _alike(self, model: Watched, of: Look, labelled: NDArray[np.float64], ids: pl.Series) -> Representative:
        """Whether the look's requests with an outcome are like those without; the last are answered by the next look."""
        earlier, later = self._looks.get(of.number - 1), self._looks.get(of.number + 1)
        since, until = earlier.predictions if earlier else None, later.predictions if later else None
        answers = self._lake.scan("predictions", since, until).filter(pl.col("bundle") == model.bundle)
        asked = self._lake.scan("requests", of.began, of.requests).select("request_id", features="value")
        rows = self._lake.read(answers.select("request_id", "bundle", "value").join(asked, on="request_id"))
        told = pl.col("request_id").is_in(ids.implode())
        with_outcome, without = rows.filter(told), rows.filter(~told)
        if without.height < LEAST:  # mostly so, and what they asked need not be decoded then
            return representative(labelled, model.predictions(without))
        counts = [model.features(part.select(value="features")) for part in (with_outcome, without)]
        names = [column.name for column in model.reference.features]
        pairs = {name: (np.array(ours), np.array(others)) for name, ours, others in zip(names, *counts, strict=True)}
        return representative(labelled, model.predictions(without), pairs)

    def _calibrated(self, model: Watched) -> Calibration | None:
        """From the newest matured windows of the model where they have enough rows, else from rows it did not learn from."""
        mine = [n for n in sorted(self._matured) if n in self._looks and self._looks[n].bundle == model.bundle]
        if sum(self._matured[n].tally.labelled for n in mine) < CALIBRATION_ROWS:
            return model.calibration
        first, last = self._looks[mine[max(0, len(mine) - CALIBRATION_WINDOWS)]], self._looks[mine[-1]]
        rows = self._lake.scan("observations").filter(
            pl.col("number").is_between(first.since, self._matured[mine[-1]].observed, closed="left")
        )
        labels, predictions, _ = self._labelled_rows(model, rows.filter(within(first.began, last.requests)))
        task = model.schema.task
        return calibrate(task, predictions[-CALIBRATION_ROWS:], labels[-CALIBRATION_ROWS:]) or model.calibration

    def _observations(self, of: Look) -> pl.LazyFrame:
        """Of the look's requests."""
        rows = self._lake.scan("observations").filter(pl.col("number") >= of.since)
        return rows.filter(within(of.began, of.requests))

    def _since(self, began: Positions, observed: int) -> int:
        """The lowest number of an observation whose request comes after the positions: before, a look need not search.

        Where the watch is behind, there are observations of requests that it has not looked at.
        """
        last = self._last
        known = self._lake.scan("observations").filter(pl.col("number") >= (last.since if last else 0))
        beyond = known.filter(~_passed(began)).select(pl.col("number").min())
        lowest = self._lake.read(beyond).item()
        return observed if lowest is None else int(lowest)

    def _labelled(self, open: Sequence[Look]) -> dict[int, int]:
        """How many requests of each look have an outcome."""
        since = min(one.since for one in open)
        places = self._lake.read(
            self._lake.scan("observations").filter(pl.col("number") >= since).select("request_partition", "request_offset")
        )
        return {one.number: places.filter(within(one.began, one.requests)).height for one in open}

    def _arrivals(self, open: Sequence[Look], labelled: Mapping[int, int]) -> Arrivals:
        """What is known of the delays, with the requests that wait still, or for ever."""
        waiting = Waits()
        for one in self._looks.values():
            done = self._matured.get(one.number)
            left = one.tally.rows - (done.labelled if done else labelled.get(one.number, 0))
            if left > 0:
                waiting.add(np.full(left, float(self._now_ms - one.tally.ended_at)))
        return arrivals(self._waits, waiting)

    def _count_delays(self, observed: int) -> None:
        if observed <= self._counted:
            return
        rows = self._lake.scan("observations").filter(pl.col("number").is_between(self._counted, observed, closed="left"))
        times = self._lake.read(rows.select("event_at", "outcome_at"))
        self._waits.add((times["outcome_at"] - times["event_at"]).to_numpy().astype(np.float64))
        self._now_ms = max(self._now_ms, int(times["outcome_at"].max() or 0))  # type: ignore[arg-type]
        self._counted = observed

    # -- the champion

    def _champion(self) -> Watched | None:
        """What serves now; None where nothing does, or it cannot be watched, which is told once."""
        champion = read_slots(self._log, self._topics).champion
        if champion is None:
            return None
        if champion.sequence != self._serving:
            self._serving = champion.sequence
            self._model, why = watched(self._store, champion.bundle, self._seed, champion)
            if self._model is None:
                logger.warning("champion_not_watched", bundle=champion.bundle, reason=why)
                self._event("champion_not_watched", {"version": champion.version, "bundle": champion.bundle, "why": why})
            else:
                self._model.calibration = self._calibrated(self._model)
        return self._model

    def _older(self, of: Look) -> Watched | None:
        """What served at a look, where it serves no more."""
        version = announced(self._log, self._topics).get(of.version)
        return watched(self._store, of.bundle, self._seed, version)[0]

    # -- telling

    def _say(self, found: Look) -> None:
        """The look's events, and its command."""
        values = {
            "window": found.number,
            "version": found.version,
            "requests": found.tally.rows,
            "shifts": {one.name: one.effect for one in found.findings},
            "metric": self._metric.name,
            **interval(found),
        }
        self._event("window_compared", values)
        if found.change:
            alarm = found.change.alarm
            logger.warning(found.change.name, alarm=alarm.id, text=alarm.text, why=found.change.why)
            self._event(found.change.name, {**evidence(alarm), "why": found.change.why, "version": found.version})
        if found.command and found.suggested:
            self._event("retraining_suggested", {"reason": found.command.reason, **found.command.evidence})
        elif found.command:
            self._send(found.command)

    def _event(self, name: str, values: dict[str, Any]) -> None:
        event = Event(name, ROLE, self._clock.now_ms(), values)
        self._log.append([Message(self._topics.events, to_bytes(event))])

    def _forget(self) -> None:
        """Looks beyond those that a start would read; one whose outcomes are not in by then is never told."""
        for number in sorted(self._looks)[:-KEPT]:
            del self._looks[number]
            if self._matured.pop(number, None) is None:
                reason = f"its outcomes were not in after {KEPT} looks: a larger drift.window_rows makes fewer"
                logger.warning("window_forgotten", window=number, reason=reason)


def _ms(hours: float) -> int:
    return round(hours * 3_600_000)


def _passed(positions: Positions) -> pl.Expr:
    """Rows of observations whose request lies before the positions; of other partitions none does."""
    found = pl.lit(False)
    for number, at in positions.items():
        found |= (pl.col("request_partition") == number) & (pl.col("request_offset") < at)
    return found
