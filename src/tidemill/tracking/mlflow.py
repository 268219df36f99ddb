"""Copies experiments to MLflow: runs, metrics, models and the registry's aliases, in one SQLite file.

Nothing is read back to decide. Runs are named by ids, never through MLflow's global "active run". Importing MLflow takes
about 5 s and its SQLite store 2.5 s more (measured, 3.17), so that happens on first use, in the tracker's own process.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import sys
import urllib.parse
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tidemill.errors import ConfigError, Unavailable
from tidemill.failpoints import failpoint
from tidemill.messages import JournalEntry, ModelVersion, Trial
from tidemill.tracking.base import Page, Positions
from tidemill.tracking.mlflow_fields import (
    REPORT,
    STATUS,
    TABLE,
    Fields,
    of_decision,
    of_parent,
    of_trial,
    pieces,
    run_tags,
    short,
)
from tidemill.tracking.mlflow_model import learner_of, write_model
from tidemill.tracking.summary import best, table

LOCK_SECONDS = 3.0
"""How long a locked store is waited for, before the caller is told to come back later. MLflow itself would wait for 20."""
CHILDREN = 50
"""Trials with a run of their own, unless the project says otherwise: the best ones, and as many of the first."""
REPORTED = "tidemill.report"
"""Tag of a parent run whose report is there as a whole."""
DEFAULT_EXPERIMENT = 0
"""MLflow makes it with every store; the positions are a tag of it."""
SELECT_TAG = "SELECT value FROM experiment_tags WHERE experiment_id = ? AND key = ?"
SELECT_RUNS = """
SELECT tags.value, runs.run_uuid, runs.status, runs.lifecycle_stage FROM tags JOIN runs USING (run_uuid)
WHERE tags.key = 'tidemill.key' AND tags.value IN (SELECT value FROM json_each(?)) AND runs.experiment_id = ?
"""
SELECT_RUN_TAG = "SELECT value FROM tags WHERE run_uuid = ? AND key = ?"
REPLACE_TAG = "REPLACE INTO experiment_tags (experiment_id, key, value) VALUES (?, ?, ?)"
COUNT_EXPERIMENTS = """
SELECT count(DISTINCT runs.run_uuid) FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
WHERE tags.key = 'tidemill.kind' AND tags.value = 'experiment' AND runs.lifecycle_stage = 'active'
AND (experiments.name = ?1 OR substr(experiments.name, 1, length(?2)) = ?2)
"""


class _Run(NamedTuple):
    """A run, by MLflow's own ids."""

    id: str
    experiment_id: str
    status: str


class MlflowTracker:
    """A ``Tracker`` that writes MLflow's SQLite store. Each thing it makes carries the tag ``tidemill.key``, by which it is
    found when it is written again; times are those of the messages, so that writing twice changes nothing.

    ``experiment``: ``each`` makes an MLflow experiment ``project/experiment`` a retraining, ``one`` takes ``project`` for
    all. The first ``children`` trials of a search have runs, and in the end the best ``children``. What a person has deleted
    in MLflow comes back if it is written again.
    """

    def __init__(
        self,
        uri: str,
        project: str,
        experiment: Literal["each", "one"],
        bundles_root: Path,
        children: int = CHILDREN,
    ) -> None:
        self._uri = uri
        self._project = project
        self._experiment = experiment
        self._bundles = bundles_root
        self._children = children
        self._client: Any = None

    def record_trials(self, trials: Sequence[Trial], new: Collection[int] | None = None, ended: bool = False) -> None:
        if not trials:
            return
        fresh = {trial.number for trial in trials} if new is None else new
        with self._answering() as client:
            parent = self._parent(client, short(trials[0].experiment), _started(trials[0]))
            self._record_trials(client, parent, trials, fresh, ended)
            if ended and parent.status == "RUNNING":
                client.set_terminated(parent.id, "FINISHED", trials[-1].at)

    def record_decision(self, entry: JournalEntry, trials: Sequence[Trial] = (), page: Page = lambda: "") -> None:
        with self._answering() as client:
            if entry.kind != "experiment":
                self._note_decision(client, entry)
                return
            started = _started(trials[0]) if trials else entry.at - round(entry.seconds * 1000)
            parent = self._parent(client, short(entry.experiment or entry.id), started)
            if trials:
                self._record_trials(client, parent, trials, (), ended=True)
            _log(client, parent, of_decision(entry, trials))
            client.set_terminated(parent.id, "FAILED" if entry.verdict == "failed" else "FINISHED", entry.at)
            if entry.version and entry.bundle:
                self._registered(client, entry, parent)
            self._record_page(client, parent, page)

    def record_version(self, version: ModelVersion) -> None:
        with self._answering() as client:
            parent = self._parent(client, short(version.experiment) or f"version-{version.version}", version.at)
            number = self._registered(client, version, parent)
            if number is not None:
                client.set_registered_model_alias(self._project, version.state, number)
            elif self._registered_model(client) is not None:
                client.delete_registered_model_alias(self._project, version.state)

    def positions(self) -> Positions:
        """Read in the file itself: this is asked for twice a second."""
        row = self._look_up(SELECT_TAG, DEFAULT_EXPERIMENT, self._tag)
        return _read_positions(row)

    def advance(self, before: Positions, after: Positions) -> bool:
        """Written in the file itself: MLflow would refuse it where a person has deleted its default experiment."""
        with self._answering(), contextlib.closing(_open(_file(self._uri), "rw")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(SELECT_TAG, (DEFAULT_EXPERIMENT, self._tag)).fetchone()
            if _read_positions(row) != before:
                return False
            connection.execute(REPLACE_TAG, (DEFAULT_EXPERIMENT, self._tag, _positions_text(after)))
            connection.execute("COMMIT")
            return True

    def experiments(self) -> int:
        """Counted in the file itself: this is asked for in processes that should not wait for MLflow's import."""
        row = self._look_up(COUNT_EXPERIMENTS, self._project, f"{self._project}/")
        return int(row[0]) if row else 0

    @property
    def _tag(self) -> str:
        return f"tidemill.positions/{self._project}"

    def _look_up(self, sql: str, *parameters: object) -> Any:
        """The first row; None where there is no store."""
        return next(iter(self._select(sql, *parameters)), None)

    def _select(self, sql: str, *parameters: object) -> list[Any]:
        file = _file(self._uri)
        if not _is_store(file):
            return []
        try:
            with contextlib.closing(_open(file, "ro")) as connection:
                return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"MLflow's store {file}: {error}") from error

    @contextlib.contextmanager
    def _answering(self) -> Iterator[Any]:
        """The client, of a store that takes writes now. What MLflow raises becomes ``Unavailable``."""
        with _in_our_words(self._uri):
            create_store(self._uri)
            _check_writable(_file(self._uri))
            if self._client is None:
                from mlflow import MlflowClient

                self._client = MlflowClient(self._uri, self._uri)
            yield self._client

    def _experiment_id(self, client: Any, experiment: str) -> str:
        name = f"{self._project}/{experiment}" if self._experiment == "each" else self._project
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=_artifacts(self._uri)))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _runs(self, client: Any, experiment_id: str, keys: Sequence[str]) -> dict[str, _Run]:
        """Those of the runs that are there, by their keys; one that a person deleted is restored, as it takes no writes.

        Looked up in the file itself: MLflow's search takes a second where there are a thousand runs, and no quotes in ids.
        """
        found = {}
        for key, id, status, stage in self._select(SELECT_RUNS, json.dumps(keys), experiment_id):
            if stage == "deleted":
                client.restore_run(id)
            found[key] = _Run(id, experiment_id, status)
        return found

    def _parent(self, client: Any, experiment: str, started: int) -> _Run:
        """The experiment's own run."""
        experiment_id = self._experiment_id(client, experiment)
        found = self._runs(client, experiment_id, [experiment]).get(experiment)
        if found is not None:
            return found
        tags = run_tags(experiment, experiment) | {"tidemill.kind": "experiment"}
        made = client.create_run(experiment_id, started, tags, experiment)
        failpoint("tracker.parent_created")
        return _Run(made.info.run_id, experiment_id, made.info.status)

    def _record_trials(self, client: Any, parent: _Run, trials: Sequence[Trial], new: Collection[int], ended: bool) -> None:
        first = [trial for trial in trials[: self._children] if trial.number in new]
        shown = {_key(trial): trial for trial in [*first, *(best(trials, self._children) if ended else [])]}
        runs = self._runs(client, parent.experiment_id, list(shown))
        for key, trial in shown.items():
            self._record_trial(client, trial, parent, runs.get(key))
        client.log_text(parent.id, table(trials), TABLE)
        failpoint("tracker.table_written")
        _log(client, parent, of_parent(trials, new))

    def _record_trial(self, client: Any, trial: Trial, parent: _Run, run: _Run | None) -> None:
        """A run that has its last status is whole."""
        points, parameters, tags = of_trial(trial)
        if run is None:
            first = run_tags(_key(trial), short(trial.experiment)) | dict(tags) | {"mlflow.parentRunId": parent.id}
            made = client.create_run(parent.experiment_id, _started(trial), first, f"trial {trial.number}")
            failpoint("tracker.run_created")
            run = _Run(made.info.run_id, parent.experiment_id, made.info.status)
        if run.status == "RUNNING":
            _log(client, run, Fields(points, parameters))
            client.set_terminated(run.id, STATUS[trial.state], trial.at)

    def _record_page(self, client: Any, parent: _Run, page: Page) -> None:
        if self._look_up(SELECT_RUN_TAG, parent.id, REPORTED) is None and (text := page()):
            client.log_text(parent.id, text, REPORT)
            failpoint("tracker.report_written")
            client.set_tag(parent.id, REPORTED, REPORT)

    def _note_decision(self, client: Any, entry: JournalEntry) -> None:
        """A person's promotion or a rollback is a tag of the version; the aliases come with the models themselves."""
        number = self._version_number(client, entry.version)
        if number is not None:
            client.set_model_version_tag(self._project, number, f"tidemill.{entry.kind}", f"{entry.at}: {entry.reason}")

    def _registered_model(self, client: Any) -> Any:
        return next(iter(client.search_registered_models(f"name = '{self._project}'", max_results=1)), None)

    def _version_number(self, client: Any, version: int) -> str | None:
        query = f"name = '{self._project}' and tags.`tidemill.version` = '{version}'"
        return next((str(found.version) for found in client.search_model_versions(query, max_results=1)), None)

    def _registered(self, client: Any, made_by: JournalEntry | ModelVersion, run: _Run) -> str | None:
        """The registry's number of our version, registered now if it is not yet; None where its bundle is gone."""
        if (number := self._version_number(client, made_by.version)) is not None:
            return number
        model = self._logged_model(client, made_by.version, made_by.bundle, run)
        if model is None:
            return None
        if self._registered_model(client) is None:
            client.create_registered_model(self._project)
        import mlflow

        mlflow.set_tracking_uri(self._uri)  # the registry (3.17) looks a model up in the global store, whatever the client's
        source, tags = f"models:/{model.model_id}", _bundle_tags(made_by.version, made_by.bundle)
        tags |= {"tidemill.threshold": str(made_by.threshold)}
        made = client.create_model_version(
            self._project, source, run.id, tags, model_id=model.model_id, await_creation_for=0
        )
        shown = json.dumps([{"name": self._project, "version": made.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": shown})
        return str(made.version)

    def _logged_model(self, client: Any, version: int, bundle: str, run: _Run) -> Any:
        """The bundle as a model of the run, with all its files; None where the bundle is gone."""
        from mlflow.entities import LoggedModelOutput

        folder = self._bundles / bundle
        query = f"tags.`tidemill.version` = '{version}'"
        model = next(iter(client.search_logged_models([run.experiment_id], query, max_results=1)), None)
        if model is None:
            if not folder.is_dir():
                return None
            name, tags = f"{self._project}-{version}", _bundle_tags(version, bundle)
            model = client.create_logged_model(run.experiment_id, name, run.id, tags, model_type=learner_of(folder))
        if str(model.status) != "READY":
            if not folder.is_dir():
                return None
            with write_model(folder, _bundle_tags(version, bundle), str(model.model_id)) as written:
                client.log_model_artifacts(model.model_id, str(written))
            failpoint("tracker.model_copied")
            client.finalize_logged_model(model.model_id, "READY")
        outputs = client.get_run(run.id).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run.id, [LoggedModelOutput(model.model_id, 0)])
        return model


def create_store(uri: str) -> None:
    """Make MLflow's SQLite file, with its tables and in WAL mode, if it is not there.

    One process does it, under a lock, in a draft that is renamed when it is whole: several at once, or one that is killed,
    would leave half a store that MLflow refuses for ever. Without WAL one open reader blocks a write for 20 s.
    """
    file = _file(uri)
    if _is_store(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_store(file):
            return
        draft = file.with_name(file.name + ".draft")
        # The WAL of a store that was removed would be read as the new one's.
        for leftover in [*file.parent.glob(draft.name + "*"), *(file.with_name(file.name + e) for e in ("-wal", "-shm"))]:
            leftover.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(draft)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        _import_mlflow()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store: Any = SqlAlchemyStore
        store(f"sqlite:///{draft}", _artifacts(uri)).engine.dispose()
        draft.replace(file)


def start_ui(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's pages on 127.0.0.1 only, for a browser on this machine only.

    Makes the store if there is none; raises ``Unavailable`` where it cannot. The host check names its two hosts, as MLflow's
    default takes every private address; the artifact proxy, the job runner and telemetry are off.
    """
    with _in_our_words(uri):
        create_store(uri)
    hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]
    return [
        "env",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri, "--default-artifact-root", _artifacts(uri), "--no-serve-artifacts"),
        *("--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)),
        *("--x-frame-options", "DENY"),
    ]


@contextlib.contextmanager
def _in_our_words(uri: str) -> Iterator[None]:
    """Raise what MLflow and its database raise as ``Unavailable``, in one line."""
    _import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise Unavailable(f"MLflow's store {_file(uri)}: {_first_line(error)}") from error


def _import_mlflow() -> None:
    """Import it without telemetry and without its tracebacks of errors that are reported here in one line.

    Each of its writes opens the file anew: kept connections would write on into a file that was removed or replaced.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        text = f"tracking needs MLflow ({error}): pip install 'tidemill[mlflow]', or set tracking.tracker = \"none\""
        raise ConfigError(text) from error


def _file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def _is_store(file: Path) -> bool:
    """An empty file is none: SQLite makes one of what vanishes between two writes."""
    return file.exists() and file.stat().st_size > 0


def _positions_text(positions: Positions) -> str:
    return json.dumps({f"{topic}:{partition}": at for (topic, partition), at in sorted(positions.items())})


def _read_positions(row: Sequence[str] | None) -> dict[tuple[str, int], int]:
    """None where a person has written something else into the tag."""
    try:
        places = msgspec.json.decode(row[0] if row else "{}", type=dict[str, int])
        named = [(place.rpartition(":"), at) for place, at in places.items()]
        return {(topic, int(partition)): at for (topic, _, partition), at in named}
    except ValueError:
        return {}


def _artifacts(uri: str) -> str:
    """Where models are copied to: a folder beside the store."""
    return _file(uri).absolute().with_name("mlflow-artifacts").as_uri()


def _check_writable(file: Path) -> None:
    """Raises ``sqlite3.Error`` where the store is locked, read-only or gone, after ``LOCK_SECONDS`` at most."""
    with contextlib.closing(_open(file, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _open(file: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(str(file))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _key(trial: Trial) -> str:
    return f"{short(trial.experiment)}/{trial.number}"


def _started(trial: Trial) -> int:
    return trial.at - round(trial.seconds * 1000)


def _bundle_tags(version: int, bundle: str) -> dict[str, str]:
    return {"tidemill.version": str(version), "tidemill.bundle": bundle}


def _log(client: Any, run: _Run, fields: Fields) -> None:
    """MLflow ignores a metric or a parameter that it has, if it is the same."""
    for metrics, parameters, tags in pieces(fields):
        client.log_batch(run.id, metrics, parameters, tags)
