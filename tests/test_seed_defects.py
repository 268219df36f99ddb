"""The defects of the program that this project began with (jrzaurin/ml-pipeline); each must stay impossible.

a   the new model was bound to a local name: a promoted model never answered
b   the preprocessing was never loaded again: from the first retraining on it did not fit the model
c   a category that was not seen in training ended the predictor
d   another order of the request's keys ended the predictor
e   no group, no committed position: what came while a process was down was lost, two processes answered all twice
f   requests and answers in one topic: everybody parsed everything, a foreign message ended a role
g   after a restart rows were counted into the wrong batch: learnt from twice, or never
h   messages were counted instead of labels, which rode inside the requests
i   commands that came while it trained were all served afterwards, on stale data
j   weights, metric and seed stood in the objective only: what shipped was not what had been scored
k   random folds of a stream, and no gate: optimistic scores, and every new model went live
l   pickles, overwritten in place: foreign code, torn reads, no way back
m   the list of requirements lacked a package that half of the program imports
"""

import ast
import pickle
import re
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidemill.core.decoding import Decoder
from tidemill.core.encoder import Encoder
from tidemill.core.folds import make_folds
from tidemill.core.retraining import due, merge
from tidemill.core.schema import Feature, Schema
from tidemill.core.training_set import balanced_weights
from tidemill.core.verdict import decide
from tidemill.core.versions import Slots
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.messages import ModelVersion, Retrain, Topics, to_bytes

TESTS = Path(__file__).parent
SCHEMA = Schema((Feature("age", "number"), Feature("work", "category")), "income", "binary", ("no", "yes"))

ELSEWHERE = {
    "a": ["flow/test_predictor.py::test_a_new_champion_serves_with_its_own_schema_encoder_and_model"],
    "b": ["flow/test_predictor.py::test_a_new_champion_serves_with_its_own_schema_encoder_and_model"],
    "c": ["flow/test_predictor.py::test_unseen_missing_reordered_and_extra_fields_are_answered_and_counted"],
    "d": ["flow/test_predictor.py::test_unseen_missing_reordered_and_extra_fields_are_answered_and_counted"],
    "e": [
        "process/test_log_kill.py::test_two_hundred_kills_lose_and_double_nothing",
        "process/test_recorder_kill.py::test_kills_lose_and_double_nothing",
        "flow/test_predictor.py::test_of_two_predictors_the_other_takes_over",
    ],
    "f": ["flow/test_predictor.py::test_every_bad_request_becomes_one_dead_letter_and_its_neighbours_are_answered"],
    "g": ["flow/test_monitor.py::test_a_restart_in_mid_bucket_keeps_the_exact_set"],
    "h": ["flow/test_monitor.py::test_only_labelled_requests_count_towards_a_retraining"],
    "i": ["flow/test_trainer.py::test_commands_that_wait_become_one_experiment_on_the_newest_data"],
    "j": ["flow/test_trainer.py::test_what_ships_is_what_was_scored"],
    "k": [
        "flow/test_trainer.py::test_rows_in_time_are_never_learnt_from_before_those_they_are_scored_on",
        "flow/test_trainer.py::test_a_challenger_must_win_on_observations_that_neither_has_seen",
    ],
    "l": [
        "unit/test_bundles.py::test_no_bit_flips_unnoticed",
        "unit/test_bundles.py::test_the_name_is_the_content",
        "flow/test_promotion.py::test_rollback_goes_to_the_version_before_or_to_a_named_one",
    ],
}
"""Where each stands proved on the real roles."""


@pytest.mark.parametrize("node", sorted({node for nodes in ELSEWHERE.values() for node in nodes}))
def test_the_proof_is_still_there(node: str) -> None:
    """The named test exists."""
    file, _, name = node.partition("::")
    functions = [item.name for item in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(item, ast.FunctionDef)]
    assert name in functions


def test_a_the_highest_sequence_is_the_champion() -> None:
    """What was announced last serves."""
    first = ModelVersion(1, "u", "b1", "s", "champion", 0, "e", 0, 1)
    slots = Slots.of([to_bytes(first)])
    for move in slots.promote(msgspec.structs.replace(first, version=2, bundle="b2"), 0):
        slots.apply(move)
    assert slots.champion is not None
    assert slots.champion.bundle == "b2"


def test_b_the_encoder_is_part_of_what_is_announced() -> None:
    """One hash over model, encoder, schema and threshold: none of them is loaded without the others."""
    from tidemill.bundle_files import CONTENT

    assert set(CONTENT) == {"model.txt", "encoder.json", "schema.json", "decision.json"}


def test_c_an_unseen_category_has_a_code_and_is_counted() -> None:
    """Never an exception."""
    encoder = Encoder.fit(SCHEMA, {"age": [1, 2], "work": ["a", "b"]})
    encoded = encoder.encode({"age": [1], "work": ["never seen"]})
    assert encoded.unseen.tolist() == [0, 1]
    assert encoded.matrix.shape == (1, 2)


def test_d_the_order_of_keys_does_not_matter() -> None:
    """The same row either way."""
    decoded = Decoder(SCHEMA).decode([b'{"age": 3, "work": "a"}', b'{"work": "a", "age": 3}'])
    assert decoded.bad == []
    assert all(len(set(column)) == 1 for column in decoded.columns.values())


def test_f_every_kind_of_message_has_its_topic() -> None:
    """Nine kinds, nine names."""
    assert len(set(msgspec.structs.astuple(Topics.of("p")))) == 9


def test_g_and_h_a_bucket_of_labels_has_one_command_whoever_asks() -> None:
    """Named by the count of labelled observations, so that a restart names the same one."""
    assert due(999, 1000, set(), 0) is None
    for observed in (1000, 1001, 1999):
        command = due(observed, 1000, set(), 7)
        assert command is not None
        assert (command.id, command.data_version) == ("labelled-1000", 1000)
    assert due(1999, 1000, {"labelled-1000"}, 0) is None


def test_i_commands_that_wait_are_one() -> None:
    """On the newest data."""
    waiting = [Retrain(f"labelled-{rows}", "labelled", rows, 0) for rows in (1000, 3000, 2000)]
    assert merge(waiting).data_version == 3000


def test_j_subsampling_and_weights_reach_the_model() -> None:
    """Each of both changes the model that ships; in the original program the one did nothing, the other was left out."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(400, 2))
    labels = (matrix[:, 0] > 1).astype(np.float64)
    weights = balanced_weights(labels, 2)
    models = set()
    for some in (None, weights):
        for share in (1.0, 0.5):
            samples = Samples(matrix, labels, some, ("x", "y"), (), "binary", 2)
            models.add(LightGBM().fit(samples, {"bagging_fraction": share}, 5, 0, 1).predict(matrix).tobytes())
    assert len(models) == 4


def test_k_folds_follow_time_and_a_challenger_must_win() -> None:
    """No fold learns from the future; without a comparison the champion stays."""
    for learnt, scored in make_folds(np.array([0.0, 1.0] * 20), "binary", 3, "time", 0):
        assert learnt.max() < scored.min()
    assert decide("better", True, None) == "kept"


def test_l_no_source_file_loads_a_pickle() -> None:
    """Nothing of the package imports pickle or its relatives, or lets numpy load one."""
    forbidden = {pickle.__name__, "joblib", "dill", "cloudpickle", "shelve"}
    for file in (TESTS.parent / "src" / "tidemill").rglob("*.py"):
        text = file.read_text()
        assert "allow_pickle=True" not in text, file
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & forbidden, file


def _needed(extra: str) -> set[str]:
    """The distributions that an extra of the package asks for, itself included for what it does not need an extra."""
    found: set[str] = set()
    for line in requires("tidemill") or []:
        name = re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0].lower()
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if marker is None:
            found.add(name)
        elif marker[1] == extra:
            inner = re.search(r"\[([^\]]+)\]", line)
            found |= set().union(*map(_needed, inner[1].split(","))) if name == "tidemill" and inner else {name}
    return found


def test_m_all_that_is_needed_is_installed_and_pinned() -> None:
    """Every requirement of the extra ``all`` is here, and ``constraints.txt`` has it."""
    needed = _needed("all")
    assert {"lightgbm", "optuna", "polars", "deltalake", "mlflow"} <= needed
    lines = (TESTS.parent / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower(): line.partition("==")[2] for line in lines if "==" in line}
    for name in needed:
        try:
            distribution(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is required but not installed")
        assert name in pinned, f"constraints.txt lacks {name} ({version(name)})"
