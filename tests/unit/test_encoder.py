"""The encoder: the matrix of training is the matrix of answers."""

import math
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest

from tidemill.core.answers import Answerer, answer_values, scores_of
from tidemill.core.encoder import Encoder
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BundleRefused
from tidemill.messages import Prediction

SCHEMA = Schema(
    (
        Feature("age", "number", minimum=17.0, maximum=90.0),
        Feature("sex", "category", categories=("F", "M")),
        Feature("member", "boolean"),
        Feature("job", "category"),
    ),
    "income",
    "binary",
    ("no", "yes"),
    crosses=(("sex", "job"),),
)
COLUMNS: dict[str, list[Any]] = {
    "age": [39, 16.5, None, float("nan")],
    "sex": ["M", "X", None, "F"],
    "member": [True, False, None, True],
    "job": ["a", 1, 1.0, None],
}
NAN = math.nan


def test_codes_follow_the_schema_and_then_the_first_appearance() -> None:
    """So a category keeps its code as long as the schema lists it, whatever the data's order."""
    encoder = Encoder.fit(SCHEMA, COLUMNS)
    assert encoder.categories == {"sex": ["F", "M", "X"], "job": ["a", "1"]}
    assert encoder.crosses == [[("M", "a"), ("X", "1")]]
    assert list(encoder.texts.values()) == [["F", "M", "X"], ["a", "1"], ["M*a", "X*1"]]
    assert tuple(encoder.texts) == encoder.categorical
    assert encoder.categorical == (1, 3, 4)


def test_a_batch_becomes_a_matrix_with_counts() -> None:
    """Columns in the schema's order, crosses last; missing, unseen and outside are counted by column."""
    encoder = Encoder.fit(SCHEMA, COLUMNS)
    encoded = encoder.encode({**COLUMNS, "sex": ["M", "new", None, "F"]})
    expected = [[39, 1, 1, 0, 0], [16.5, NAN, 0, 1, NAN], [NAN, NAN, NAN, 1, NAN], [NAN, 0, 1, NAN, NAN]]
    np.testing.assert_array_equal(encoded.matrix, expected)
    assert encoded.matrix.flags.c_contiguous
    assert encoded.matrix.dtype == np.float64
    assert encoded.missing.tolist() == [2, 1, 1, 1, 2]
    assert encoded.unseen.tolist() == [0, 1, 0, 0, 1]
    assert encoded.outside.tolist() == [1, 0, 0, 0, 0]


def test_a_joint_text_cannot_be_taken_for_another() -> None:
    """Parts stay apart: a*b with c is not a with b*c."""
    schema = Schema((Feature("p", "category"), Feature("q", "category")), "y", "regression", crosses=(("p", "q"),))
    encoder = Encoder.fit(schema, {"p": ["a*b", "a"], "q": ["c", "b*c"]})
    assert encoder.encode({"p": ["a*b", "a"], "q": ["c", "b*c"]}).matrix[:, 2].tolist() == [0.0, 1.0]


def test_negative_zero_is_zero() -> None:
    """Equal numbers have equal bits."""
    schema = Schema((Feature("p", "number"),), "y", "regression")
    matrix = Encoder.fit(schema, {"p": []}).encode({"p": [-0.0, 0.0]}).matrix
    assert matrix.tobytes() == np.zeros((2, 1)).tobytes()


def test_a_column_that_is_not_given_is_missing_and_an_unknown_one_is_ignored() -> None:
    """Old requests never block a new schema."""
    encoded = Encoder.fit(SCHEMA, COLUMNS).encode({"other": [1, 2], "age": [20, 30]})
    assert encoded.missing.tolist() == [0, 2, 2, 2, 2]
    assert Encoder.fit(SCHEMA, COLUMNS).encode({}).matrix.shape == (0, 5)
    only_numbers = Schema((Feature("p", "number"),), "y", "regression")
    assert Encoder.fit(only_numbers, {}).encode({"p": [1]}).matrix.tolist() == [[1.0]]


def test_bytes_are_the_same_for_the_same_encoder_and_load_to_an_equal_one() -> None:
    """What a content hash needs."""
    encoder = Encoder.fit(SCHEMA, COLUMNS)
    data = encoder.to_bytes()
    loaded = Encoder.from_bytes(data)
    assert loaded == encoder
    assert loaded.to_bytes() == data == Encoder.fit(SCHEMA, COLUMNS).to_bytes()
    assert loaded.encode(COLUMNS).matrix.tobytes() == encoder.encode(COLUMNS).matrix.tobytes()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"schema": 1}'])
def test_bytes_that_are_no_encoder_are_refused(data: bytes) -> None:
    """A damaged bundle is never half loaded."""
    with pytest.raises(BundleRefused, match="not an encoder"):
        Encoder.from_bytes(data)


def test_an_encoder_that_lacks_a_features_categories_is_refused() -> None:
    """The schema and the lists belong together."""
    data = Encoder.fit(SCHEMA, COLUMNS).to_bytes().replace(b'"job":["a","1"]', b'"jab":["a","1"]')
    with pytest.raises(BundleRefused, match="not an encoder"):
        Encoder.from_bytes(data)


def test_an_encoder_whose_crosses_are_not_those_of_its_schema_is_refused() -> None:
    """As many lists as crosses, of as many texts as parts, each a category of its part."""
    file = msgspec.json.decode(Encoder.fit(SCHEMA, COLUMNS).to_bytes())
    assert SCHEMA.crosses
    assert file["crosses"][0]
    for crosses in ([], [[["a"]]], [[["never seen", "b"]]]):
        with pytest.raises(BundleRefused, match="not an encoder"):
            Encoder.from_bytes(msgspec.json.encode(file | {"crosses": crosses}))


def test_an_encoder_without_features_is_refused() -> None:
    """There would be nothing to score."""
    data = Encoder(Schema((), "y", "regression"), {}, []).to_bytes()
    with pytest.raises(BundleRefused, match="no features"):
        Encoder.from_bytes(data)


def test_lightgbm_treats_nan_negative_and_unknown_codes_alike() -> None:
    """The ground for encoding an unseen category as NaN: it changes no answer, with or without NaN in training."""
    random = np.random.default_rng(0)
    for share_missing in (0.0, 0.2):
        codes = random.integers(0, 12, 2000).astype(float)
        labels = (codes % 3 == 0) + random.normal(0, 0.1, 2000)
        codes[random.random(2000) < share_missing] = np.nan
        data = lightgbm.Dataset(codes.reshape(-1, 1), labels, categorical_feature=[0])
        model = lightgbm.train({"verbosity": -1, "num_threads": 1, "min_data_per_group": 5}, data, 30)
        answers = np.asarray(model.predict(np.array([[np.nan], [-1.0], [-7.0], [12.0], [99_999.0]])))
        assert len(set(answers.tolist())) == 1
        assert len(set(np.asarray(model.predict(np.arange(12.0).reshape(-1, 1))).round(6).tolist())) > 1


MULTICLASS = Schema((Feature("age", "number"),), "size", "multiclass", (1, 2, 3))
REGRESSION = Schema((Feature("age", "number"),), "price", "regression")
BINARY = Schema((Feature("age", "number"),), "late", "binary", (False, True))


def prediction(schema: Schema, scores: np.ndarray) -> Prediction:
    """The first answer."""
    labels, probability, probabilities, value = answer_values(schema, scores)
    return Prediction("a", labels[0], 1, "b", 0, 0, probability[0], probabilities[0], value[0])


def test_answers_hold_the_scores_exactly() -> None:
    """From an answer the scores can be had back, bit for bit, for every task."""
    third = 1 / 3
    binary = prediction(BINARY, np.array([0.1 + 0.2]))
    assert (binary.prediction, scores_of(binary, BINARY)) == (False, [0.1 + 0.2])
    assert prediction(BINARY, np.array([0.5])).prediction is False
    assert prediction(BINARY, np.array([0.5000001])).prediction is True
    several = prediction(MULTICLASS, np.array([[third, 0.5, 0.5 - third]]))
    assert (several.prediction, scores_of(several, MULTICLASS)) == (2, [third, 0.5, 0.5 - third])
    value = prediction(REGRESSION, np.array([third]))
    assert (value.prediction, scores_of(value, REGRESSION)) == (third, [third])
    with pytest.raises(ValueError, match="no score"):
        scores_of(value, BINARY)


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION], ids=lambda schema: schema.task)
def test_a_score_that_is_not_finite_is_a_bad_record(schema: Schema) -> None:
    """JSON would write null for it; the others of its batch are answered."""
    shape = (3,) if schema.task == "multiclass" else ()

    def predict(matrix: np.ndarray) -> np.ndarray:
        return np.stack([np.full(shape, row) for row in np.where(matrix[:, 0] > 50, np.inf, 0.25)])

    answerer = Answerer(MatrixDecoder(Encoder.fit(schema, {})), predict)
    answers = answerer.answer([b'{"age": 10}', b"[]", b'{"age": 60}', b'{"age": 20}'])
    assert answers.rows == [0, 3]
    assert [(row, error.reason) for row, error in answers.bad] == [(1, "not_an_object"), (2, "non_finite_score")]
    assert len(answers.predictions) == 2
    assert answerer.answer([b"[]"]).rows == []
