"""Model versions as folders: written whole or not at all, named by their content, checked before they serve.

    <store>/<hash>/model.txt       the model in the learner's own format
                   encoder.json    how columns become the matrix
                   schema.json     what a request may hold
                   decision.json   the threshold of the second class, where it is not 0.5
                   golden.json     up to 128 encoded rows, and the answers of the learner's own library
                   out_of_fold.npz labels and predictions of the search's best trial, row by row; nobody needs it to serve
                   reference.json  how the training rows are spread, for the monitor; nor this
                   manifest.json   the hash of each file, and what made the model

``<hash>`` is the SHA-256 of the first four. No file is a pickle. A folder is never changed once it is there; a loader
holds a shared flock on it, so that ``prune`` leaves it alone. One process writes and prunes; any number load.
"""

import contextlib
import fcntl
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import msgspec
import structlog

from tidemill.bundle_files import (
    ASIDE,
    DECISION,
    ENCODER,
    FILES,
    GOLDEN,
    GOLDEN_ROWS,
    MANIFEST,
    MODEL,
    OPTIONAL,
    OUT_OF_FOLD,
    REFERENCE,
    SCHEMA,
    Card,
    Decision,
    Golden,
    Manifest,
    OutOfFold,
    address,
    edge_rows,
    gives,
    golden_bytes,
    golden_of,
    manifest_bytes,
    out_of_fold_bytes,
    out_of_fold_of,
    parse_manifest,
    sha256,
)
from tidemill.core.encoder import Encoder
from tidemill.core.reference import Reference
from tidemill.core.schema import Schema
from tidemill.errors import BundleRefused, TidemillError, Unavailable, UnknownModel
from tidemill.failpoints import failpoint
from tidemill.learners.base import Learner, Matrix, Model
from tidemill.temporary import folder_lock

CHILD_BYTES = 4 << 30
"""Address space of the child that tries a bundle: a damaged model may ask for any amount."""

logger = structlog.get_logger()

_HASH = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = ".unfinished-"
_UNFIT = (ValueError, TypeError, LookupError, msgspec.MsgspecError)
"""What files with the right hashes raise that nobody wrote together."""


class Bundle:
    """A loaded model version. Close it once it no longer serves: until then ``prune`` leaves its folder alone."""

    def __init__(
        self,
        hash: str,
        manifest: Manifest,
        schema: Schema,
        encoder: Encoder,
        model: Model,
        golden: Golden,
        threshold: float,
        lock: int,
    ) -> None:
        self.hash = hash
        self.manifest = manifest
        self.schema = schema
        self.encoder = encoder
        self.model = model
        self.golden = golden
        self.threshold = threshold
        self._lock: int | None = lock

    def close(self) -> None:
        """Give the folder back; may be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BundleStore:
    """The bundles under ``root``; ``learner`` gives the learner of a name, and can be pickled for a child process."""

    def __init__(self, root: Path, learner: Callable[[str], Learner]) -> None:
        self.root = root
        self.learner = learner

    def write(
        self,
        model: Model,
        encoder: Encoder,
        card: Card,
        golden: Matrix,
        threshold: float = 0.5,
        out_of_fold: OutOfFold | None = None,
        reference: Reference | None = None,
    ) -> str:
        """Write a bundle and return its hash; it is durable, and there as a whole, when this returns.

        The golden answers are those of the learner's own library. Rows at the model's limits join the ``golden`` ones, first
        those on which another engine differs, so that its loaders see it.

        Of the same content twice the first card stands. What a killed writer left behind is removed. Raises ``Unavailable``
        where the disk is full or the store cannot be written.
        """
        library = self.learner(card.learner).load_reference(model.to_bytes())
        files = {
            MODEL: model.to_bytes(),
            ENCODER: encoder.to_bytes(),
            SCHEMA: msgspec.json.encode(encoder.schema),
            GOLDEN: golden_bytes(library, [golden[:GOLDEN_ROWS], edge_rows(model, library)]),
        }
        if threshold != 0.5:
            files[DECISION] = msgspec.json.encode(Decision(threshold))
        if out_of_fold is not None:
            files[OUT_OF_FOLD] = out_of_fold_bytes(out_of_fold)
        if reference is not None:
            files[REFERENCE] = msgspec.json.encode(reference)
        bundle = address({name: sha256(data) for name, data in files.items()})
        files[MANIFEST] = manifest_bytes(card, files)
        with self._writable():
            self.root.mkdir(parents=True, exist_ok=True)
            with self._unfinished() as folder:
                for name, data in files.items():
                    _write_file(folder / name, data)
                _sync(folder)
                failpoint("bundle.written")
                self._publish(folder, bundle)
        failpoint("bundle.renamed")
        return bundle

    def manifest(self, bundle: str) -> Manifest:
        """What the bundle says of itself, verified."""
        return self._read(bundle)[0]

    def schema(self, bundle: str) -> Schema:
        """What the bundle's requests may hold, verified."""
        return msgspec.json.decode(self._read(bundle)[1][SCHEMA], type=Schema)

    def verify(self, bundle: str) -> None:
        """Compare every file with its hash: ``BundleRefused`` names the first that differs, ``UnknownModel`` that the
        bundle is not there.
        """
        manifest, _ = self._read(bundle)
        for name in manifest.files.keys() & set(ASIDE):
            _read_checked(self._folder(bundle), name, manifest)

    def out_of_fold(self, bundle: str) -> OutOfFold | None:
        """What the search's best trial predicted for the rows that scored it, verified; None where that was not kept."""
        manifest, _ = self._read(bundle)
        if OUT_OF_FOLD not in manifest.files:
            return None
        data = _read_checked(self._folder(bundle), OUT_OF_FOLD, manifest)
        return out_of_fold_of(data)

    def reference(self, bundle: str) -> tuple[Encoder, Reference] | None:
        """How requests become columns, and how those of the training set are spread, verified; None where none was kept."""
        manifest, files = self._read(bundle)
        if REFERENCE not in manifest.files:
            return None
        data = _read_checked(self._folder(bundle), REFERENCE, manifest)
        return Encoder.from_bytes(files[ENCODER]), msgspec.json.decode(data, type=Reference)

    def model_bytes(self, bundle: str) -> bytes:
        """The model in the learner's own format, verified."""
        return self._read(bundle)[1][MODEL]

    def load(self, bundle: str) -> Bundle:
        """Verify, then load into this process, on the engine that is ready at once if it gives the golden answers, else by
        the library, whose parser may crash on a text that was made with intent: that is tried in a child first. The
        caller closes the bundle. Raises ``BundleRefused``, ``UnknownModel``.
        """
        lock = self._lock_folder(bundle)
        try:
            manifest, files = self._read(bundle)
            learner, golden = self.learner(manifest.learner), golden_of(files[GOLDEN])
            model = learner.load_checked(files[MODEL])
            if model is not None and not gives(model, golden):
                logger.warning("engine_refused", bundle=bundle, engine=model.engine, reason="golden answers differ")
                model = None
            if model is None:
                self.try_in_child(bundle)
                model = learner.load_reference(files[MODEL])
            encoder = Encoder.from_bytes(files[ENCODER])
            schema = msgspec.json.decode(files[SCHEMA], type=Schema)
            decision = msgspec.json.decode(files.get(DECISION, b'{"threshold":0.5}'), type=Decision)
            return Bundle(bundle, manifest, schema, encoder, model, golden, decision.threshold, lock)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, _UNFIT):
                raise BundleRefused(f"bundle {bundle}: its files do not belong together: {error}") from error
            raise

    def try_out(self, bundle: str) -> None:
        """Whether ``load`` takes it."""
        self.load(bundle).close()

    def try_in_child(self, bundle: str, seconds: float = 60) -> None:
        """Load the bundle by its library in a process of its own, with limits, and hold its answers to the golden ones.

        ``BundleRefused`` where an answer differs, or the child crashes, or is not done after ``seconds``.
        """
        self.verify(bundle)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_try_bundle, args=(self.root, self.learner, bundle, seconds, theirs), daemon=True)
        child.start()
        theirs.close()
        with ours:
            answer = _answer(ours, seconds)
            if answer is None:
                child.kill()
            child.join()
        if answer != b"good":
            why = f"its child process gave no answer in {seconds:g} s" if answer is None else answer.decode()
            raise BundleRefused(f"bundle {bundle}: {why or f'its child process died (exit code {child.exitcode})'}")

    def bundles(self) -> list[str]:
        """The hashes of the bundles that are there."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if _HASH.fullmatch(entry.name) and entry.is_dir())

    def prune(self, keep: Collection[str]) -> list[str]:
        """Remove the bundles that are neither in ``keep`` nor loaded by anybody; returns the removed ones' hashes.

        Raises ``Unavailable`` where the store cannot be written.
        """
        if not self.root.is_dir():
            return []
        with self._writable(), self._exclusive():
            self._sweep()
            return [bundle for bundle in self.bundles() if bundle not in keep and self._remove(bundle)]

    def _remove(self, bundle: str) -> bool:
        """Rename away, then delete: nobody sees half a bundle, and the next sweep ends what is interrupted."""
        folder = self.root / bundle
        with folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
            if lock is None:
                return False
            away = self.root / f"{_UNFINISHED}{bundle}"
            folder.rename(away)
            _sync(self.root)
        failpoint("bundle.removed")
        shutil.rmtree(away)
        return True

    def _publish(self, folder: Path, bundle: str) -> None:
        """Rename the finished folder to its hash. A good bundle of this content stays as it is; a damaged one makes way."""
        target = self.root / bundle
        with self._exclusive():
            if target.exists():
                try:
                    return self.verify(bundle)
                except BundleRefused:
                    target.rename(Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.root)) / bundle)
            folder.rename(target)
            _sync(self.root)

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A new folder, locked so that no other writer takes it for a leftover, and removed unless it was renamed."""
        with self._exclusive():
            self._sweep()
            folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.root))
            folder.chmod(0o755)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _sweep(self) -> None:
        """Remove what killed writers left; call it under ``_exclusive``. A folder that is being written is locked."""
        for folder in self.root.glob(f"{_UNFINISHED}*"):
            with folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(f"the bundle store {self.root} cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One at a time among those who add or remove folders; held for moments."""
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _folder(self, bundle: str) -> Path:
        folder = self.root / bundle
        if not _HASH.fullmatch(bundle) or not folder.is_dir():
            raise UnknownModel(f"no bundle {bundle!r} in {self.root}: a bundle's name is the 64 hex digits of its hash")
        return folder

    def _lock_folder(self, bundle: str) -> int:
        """A descriptor with a shared lock on the bundle's folder."""
        folder = self._folder(bundle)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise UnknownModel(f"no bundle {bundle!r} in {self.root}") from None
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _still_there(folder, lock):
            os.close(lock)
            raise UnknownModel(f"bundle {bundle!r} was removed from {self.root}")
        return lock

    def _read(self, bundle: str) -> tuple[Manifest, dict[str, bytes]]:
        """Manifest and the other files' bytes, each held to its hash, but for what is not needed to serve; what is returned
        is what was hashed.
        """
        folder = self._folder(bundle)
        manifest = parse_manifest(bundle, _read_file(folder, MANIFEST))
        known = {*FILES, *(name for name in OPTIONAL if name in manifest.files)}
        extra = sorted({entry.name for entry in folder.iterdir()} - known)
        if extra:
            raise BundleRefused(f"bundle {bundle}: {extra[0]} does not belong there")
        files = {name: _read_checked(folder, name, manifest) for name in sorted(known - {MANIFEST, *ASIDE})}
        if address(manifest.files) != bundle:
            raise BundleRefused(f"bundle {bundle}: {MANIFEST} belongs to another bundle")
        return manifest, files


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleRefused(f"bundle {folder.name}: {name} cannot be read: {error.strerror}") from error


def _read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    data = _read_file(folder, name)
    if manifest.files.get(name) != sha256(data):
        raise BundleRefused(f"bundle {folder.name}: {name} is not what its manifest says")
    return data


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _still_there(folder: Path, descriptor: int) -> bool:
    """Whether the folder of that name is the one that is open: it may have been renamed before the lock was ours."""
    try:
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _answer(pipe: Connection, seconds: float) -> bytes | None:
    """The child's one message, empty where it died without, None where it does not come."""
    if not pipe.poll(seconds):
        return None
    try:
        return pipe.recv_bytes()
    except EOFError:
        return b""


def _try_bundle(root: Path, learner: Callable[[str], Learner], bundle: str, seconds: float, pipe: Connection) -> None:
    """What the child does: it says ``good`` or why not. The limits also end it where the parent is gone."""
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # 128 threads' stacks are address space too
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cpu = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    try:
        manifest, files = BundleStore(root, learner)._read(bundle)
        model, golden = learner(manifest.learner).load_reference(files[MODEL]), golden_of(files[GOLDEN])
        Encoder.from_bytes(files[ENCODER])
        same = model.predict(golden.matrix).tobytes() == golden.answers.tobytes()
        pipe.send_bytes(b"good" if same else b"its answers to the golden rows differ")
    except (TidemillError, MemoryError, *_UNFIT) as error:
        pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
