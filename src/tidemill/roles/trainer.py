"""The trainer: takes retrain commands, tunes, fits, judges, writes the bundle, announces it.

A command is an experiment; commands that wait are merged into one, or queue (a setting). Trials are records: killed in the
middle, the next trainer reads them, goes on where the last one was, and ends with the same bundle. The announcement, the
journal entry and the trainer's position become visible in one commit.

An experiment takes minutes. A person who promotes or rolls back meanwhile has the last word: the challenger was judged
against a champion that serves no more, and waits.
"""

import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import NamedTuple

import msgspec
import structlog

from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.clock import Clock
from tidemill.core.metrics import metric
from tidemill.core.reference import Reference
from tidemill.core.retraining import merge
from tidemill.core.schema import Schema
from tidemill.core.training_set import Rows, holdout_rows, training_set
from tidemill.core.verdict import Comparison, Decision, decide
from tidemill.errors import BadRecord, BundleRefused, ConfigError, UnknownModel
from tidemill.failpoints import failpoint
from tidemill.lake import Lake
from tidemill.log.base import Batch, Log, Message, Positions, Reader
from tidemill.messages import Event, JournalEntry, Label, ModelVersion, Retrain, Topics, Trial, to_bytes
from tidemill.roles.dead_letters import dead_letter
from tidemill.roles.experiment import (
    Blocking,
    Fitted,
    Found,
    Observed,
    Prepared,
    Search,
    comparable,
    judge,
    prepare,
    refer,
    refit,
    run_search,
    without_drifting,
)
from tidemill.roles.loop import run_loop
from tidemill.roles.promotion import announcements, deciding, read_slots
from tidemill.roles.reading import decided_commands, read_messages, read_trials
from tidemill.settings import Settings

logger = structlog.get_logger()


class Champion(NamedTuple):
    """What serves when an experiment begins; ``refused`` says why its bundle cannot be loaded, where it cannot.

    ``rival``: it answers the question that the schema asks now, so a challenger can be judged against it.
    """

    version: ModelVersion | None
    rival: bool = False
    refused: str = ""


class Trainer:
    """One member of the group ``trainer``; ``original`` gives the original data's labelled rows.

    ``on_trial`` is called with every finished trial, ``on_decision`` with every journal entry once it is committed.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        lake: Lake,
        store: BundleStore,
        settings: Settings,
        settings_digest: str,
        schema: Schema,
        original: Callable[[], Rows],
        plan: Search,
        clock: Clock,
        on_trial: Callable[[Trial], None] = lambda trial: None,
        on_decision: Callable[[JournalEntry], None] = lambda entry: None,
    ) -> None:
        self.log = log
        self.topics = topics
        self.lake = lake
        self.store = store
        self.settings = settings
        self.settings_digest = settings_digest
        self.schema = schema
        self.original = original
        self.plan = plan
        self.clock = clock
        self.on_trial = on_trial
        self.on_decision = on_decision
        self.metric = metric(settings.tune.metric, schema.task)
        self._deciding = ExitStack()

    def run(self, stop: threading.Event, idle: Callable[[], None] = lambda: None) -> None:
        """Serve commands until ``stop`` is set."""
        queue = self.settings.retrain.commands == "queue"
        reader = _Committing(self.log.join("trainer", [self.topics.retrain]), self._deciding)
        decided: list[JournalEntry] = []

        def handle(batch: Batch) -> Sequence[Message]:
            commands, refused = self._commands(batch)
            entry, outputs = self._serve(commands)
            decided[:] = [entry] if entry else []
            return [*outputs, *refused]

        def report() -> None:
            while decided:
                entry = decided.pop()
                self.on_decision(entry)
                self._prune()
            idle()

        try:
            run_loop("trainer", reader, handle, stop, limit=1 if queue else 1000, timeout=0.25, idle=report)
        finally:
            self._deciding.close()
            reader.close()

    def _commands(self, batch: Batch) -> tuple[list[Retrain], list[Message]]:
        """The commands of a batch, and dead letters for what is none."""
        commands, refused = [], []
        for record in batch.records():
            try:
                commands.append(msgspec.json.decode(record.value, type=Retrain))
            except (ValueError, RecursionError) as error:
                bad = BadRecord("not_a_command", detail=str(error))
                logger.warning("command_refused", offset=record.offset, error=str(error))
                refused.append(dead_letter(self.topics.dead_letters, record, bad, "trainer"))
        return commands, refused

    def _serve(self, commands: Sequence[Retrain]) -> tuple[JournalEntry | None, list[Message]]:
        """One experiment for the commands that the journal has not finished."""
        finished = decided_commands(self.log, self.topics)
        waiting = [command for command in commands if command.id not in finished]
        if not waiting:
            return None, []
        command = merge(waiting)
        merged = [other.id for other in waiting if other.id != command.id]
        logger.info("experiment_started", experiment=command.id, reason=command.reason, data_version=command.data_version)
        self._event("experiment_started", experiment=command.id, reason=command.reason, trials=self.settings.tune.trials)
        try:
            return self._experiment(command, merged)
        except (ConfigError, BundleRefused) as error:
            # The command is at fault (too few rows of a class, say), or the new bundle is: the trainer lives on, the journal
            # says why, and the next command may work.
            logger.error("experiment_failed", experiment=command.id, error=str(error))
            entry = self._entry(command, merged, verdict="failed", detail=str(error))
            return entry, self._outputs(entry, [])

    def _experiment(self, command: Retrain, merged: list[str]) -> tuple[JournalEntry, list[Message]]:
        started = self.clock.monotonic()
        champion = self._champion()
        observed = self._observed(command.data_version)
        held, kept = self._holdout(champion, observed)
        if kept:
            entry = self._entry(command, merged, verdict="kept", detail=kept)
            return entry, self._outputs(entry, [])
        learnt, judged = observed.split(held)
        schema, dropped = self._schema(champion, learnt)
        prepared = self._prepare(learnt, schema)
        found = run_search(command.id, prepared, self.plan, read_trials(self.log, self.topics), self._record)
        failpoint("trainer.searched")
        best, challenger = found.best, found.fitted
        champion, comparison = self._judge(challenger, champion, judged)
        refused = champion.refused
        decision = decide(self.settings.verdict.policy, champion.rival or bool(refused), comparison, bool(refused))
        learnt_from = prepared
        if held and decision == "promoted":
            learnt_from = self._prepare(observed, schema)
            challenger = refit(best, learnt_from, self.plan)
        model_version = self._write(command, found, challenger, self._refer(challenger, learnt_from, prepared, found))
        failpoint("trainer.bundled")
        decision, moves, overtaken = self._settle(champion.version, model_version, decision)
        against = champion.version
        entry = self._entry(
            command,
            merged,
            verdict=decision,
            rows=challenger.rows,
            training_set=challenger.digest,
            environment=best.environment,
            score=best.score,
            parameters=best.parameters,
            rounds=best.rounds,
            threshold=best.threshold,
            learner=best.learner,
            trials=self.settings.tune.trials,
            seconds=self.clock.monotonic() - started,
            version=model_version.version,
            bundle=model_version.bundle,
            champion_version=against.version if against else 0,
            champion_bundle=against.bundle if against else "",
            statistic=msgspec.to_builtins(comparison) if comparison else {},
            detail="; ".join(
                filter(None, (refused and f"not judged against the champion: {refused}", overtaken, _left_out(dropped)))
            ),
        )
        return entry, self._outputs(entry, moves)

    def _observed(self, data_version: int) -> Observed:
        frame = self.lake.observations(data_version)
        outcomes: list[Label] = [msgspec.json.decode(text) for text in frame["outcome"]]
        return Observed(frame["features"].to_list(), outcomes, frame["event_at"].to_list())

    def _champion(self) -> Champion:
        found = read_slots(self.log, self.topics).champion
        if found is None:
            return Champion(None)
        try:
            return Champion(found, comparable(self.store.schema(found.bundle), self.schema))
        except (BundleRefused, UnknownModel) as error:
            return self._refused(found, error)

    def _refused(self, champion: ModelVersion, error: Exception) -> Champion:
        logger.error("champion_refused", version=champion.version, bundle=champion.bundle, error=str(error))
        return Champion(champion, refused=str(error))

    def _holdout(self, champion: Champion, observed: Observed) -> tuple[int, str]:
        """How many observations to judge on, and why the champion stays without a trial, or ``""``."""
        verdict = self.settings.verdict
        if champion.version is None or not champion.rival or verdict.policy != "better":
            return 0, ""
        rows = holdout_rows(len(observed.outcomes), champion.version.data_version, verdict.holdout)
        if rows >= verdict.holdout_rows_min:
            return rows, ""
        return (
            0,
            f"{rows} held-out observations are too few to judge on: verdict.holdout_rows_min is {verdict.holdout_rows_min}"
            " (verdict.policy says who may serve without)",
        )

    def _schema(self, champion: Champion, learnt: Observed) -> tuple[Schema, dict[str, float]]:
        """The project's, without features that have drifted since the champion learnt, where that is asked for."""
        threshold = self.settings.retrain.drop_drifting
        if not threshold or champion.version is None:
            return self.schema, {}
        before, since = learnt.split(max(0, len(learnt.outcomes) - champion.version.data_version))
        older = training_set(self.schema, self.original(), before.rows(self.schema), self.settings.retrain.window_rows)
        return without_drifting(self.schema, older, since.rows(self.schema), threshold, self.plan.seed)

    def _prepare(self, observed: Observed, schema: Schema) -> Prepared:
        rows = training_set(schema, self.original(), observed.rows(schema), self.settings.retrain.window_rows)
        return prepare(schema, rows, self.settings.tune, self.plan.seed)

    def _judge(self, challenger: Fitted, champion: Champion, judged: Observed) -> tuple[Champion, Comparison | None]:
        """The comparison, if there is one, and the champion, whose bundle may have been damaged since."""
        if champion.version is None or not judged.outcomes:
            return champion, None
        try:
            loaded = self.store.load(champion.version.bundle)
        except (BundleRefused, UnknownModel) as error:
            return self._refused(champion.version, error), None
        with loaded:
            confidence = self.settings.verdict.confidence
            return champion, judge(challenger, loaded, judged, self.metric, confidence, self.plan.seed)

    def _refer(self, model: Fitted, learnt_from: Prepared, searched: Prepared, found: Found) -> Reference:
        drift = self.settings.drift
        importances = self.store.learner(found.best.learner).importances(model.model.to_bytes())
        block = Blocking(drift.block, round(drift.block_hours * 3_600_000))
        return refer(model.model, learnt_from, importances, searched, found.out_of_fold, block)

    def _write(self, command: Retrain, found: Found, model: Fitted, reference: Reference) -> ModelVersion:
        """The bundle, tried before anybody hears of it."""
        number, best = 1 + self._newest_version(), found.best
        now = self.clock.now_ms()
        card = Card(
            learner=best.learner,
            metric=self.metric.name,
            score=best.score,
            parameters=best.parameters,
            rounds=best.rounds,
            seed=self.plan.seed,
            data_version=command.data_version,
            rows=model.rows,
            training_set=model.digest,
            experiment=command.id,
            version=number,
            created_at=now,
            libraries={"python": platform.python_version(), "tidemill": version("tidemill")},
        )
        bundle = self.store.write(
            model.model, model.encoder, card, model.golden, model.threshold, found.out_of_fold, reference
        )
        self.store.try_out(bundle)
        return ModelVersion(
            version=number,
            uri=bundle,
            bundle=bundle,
            schema=model.encoder.schema.digest(),
            state="challenger",
            data_version=command.data_version,
            experiment=command.id,
            at=now,
            sequence=0,
            threshold=model.threshold,
        )

    def _newest_version(self) -> int:
        """The highest number that was given; the journal has those too that never stood in a slot."""
        models = read_messages(self.log, self.topics.models, ModelVersion)
        return max([0, *(model.version for model in models), *(entry.version for entry in self._journal())])

    def _settle(
        self, champion: ModelVersion | None, model: ModelVersion, decision: Decision
    ) -> tuple[Decision, list[ModelVersion], str]:
        """The decision as it stands now, its records, and what has overtaken it, if anything has.

        From here until the commit nobody else on this machine decides.
        """
        if decision == "kept":
            return decision, [], ""
        self._deciding.enter_context(deciding(self.store, self.clock))
        slots = read_slots(self.log, self.topics)
        if decision == "waiting" or slots.champion != champion:
            told = "" if slots.champion == champion else _overtaken(champion, slots.champion)
            return "waiting", slots.challenge(model, model.at), told
        return decision, slots.promote(model, model.at), ""

    def _outputs(self, entry: JournalEntry, moves: list[ModelVersion]) -> list[Message]:
        logger.info("experiment_finished", experiment=entry.experiment, verdict=entry.verdict, version=entry.version)
        event = Event("experiment_finished", "trainer", entry.at, msgspec.to_builtins(entry))
        return [
            *announcements(self.topics, moves),
            Message(self.topics.journal, to_bytes(entry), entry.id.encode()),
            Message(self.topics.events, to_bytes(event)),
        ]

    def _entry(self, command: Retrain, merged: list[str], **facts: object) -> JournalEntry:
        base = JournalEntry(
            id=command.id,
            kind="experiment",
            reason=command.reason,
            verdict="failed",
            at=self.clock.now_ms(),
            experiment=command.id,
            data_version=command.data_version,
            settings=self.settings_digest,
            metric=self.metric.name,
            merged=merged,
            evidence=command.evidence,
        )
        return msgspec.structs.replace(base, **facts)

    def _journal(self) -> list[JournalEntry]:
        return read_messages(self.log, self.topics.journal, JournalEntry)

    def _record(self, trial: Trial) -> None:
        key = f"{trial.experiment}/{trial.number}".encode()
        self.log.append([Message(self.topics.trials, to_bytes(trial), key)])
        failpoint("trainer.recorded")
        self.on_trial(trial)

    def _event(self, name: str, **values: object) -> None:
        event = Event(name, "trainer", self.clock.now_ms(), values)
        self.log.append([Message(self.topics.events, to_bytes(event))])

    def _prune(self) -> None:
        """Remove bundles that stand in no slot and are not among the newest ``bundles.keep``."""
        newest = [entry.bundle for entry in self._journal() if entry.bundle][-self.settings.bundles.keep :]
        with deciding(self.store, self.clock):
            held = {version.bundle for version in read_slots(self.log, self.topics).held()}
            pruned = self.store.prune({*newest, *held})
        for bundle in pruned:
            logger.info("bundle_pruned", bundle=bundle)


class _Committing:
    """The group's reader: with a commit, made or failed, the next decision may begin."""

    def __init__(self, reader: Reader, deciding: ExitStack) -> None:
        self._reader = reader
        self._deciding = deciding

    def poll(self, limit: int, timeout: float) -> Batch:
        return self._reader.poll(limit, timeout)

    def commit(self, outputs: Sequence[Message] = ()) -> None:
        with self._deciding:
            self._reader.commit(outputs)

    def seek(self, positions: Positions) -> None:
        self._reader.seek(positions)

    def close(self) -> None:
        self._reader.close()


def _left_out(dropped: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} ({score:.2f})" for name, score in dropped.items())
    return told and f"left out for their drift since the champion: {told}"


def _overtaken(then: ModelVersion | None, now: ModelVersion | None) -> str:
    before = f"version {then.version} served" if then else "no version served"
    after = f"version {now.version} by a person's word" if now else "none"
    return f"when this experiment began {before}, now {after}: tidemill promote lets the challenger serve"
