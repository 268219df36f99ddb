"""The search space: what is in it, and what cannot be searched."""

import msgspec
import pytest

from tidemill.core.space import Choice, Dimension, Integer, Real, Space
from tidemill.errors import ConfigError


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Real(0.0, 1.0), [0.0, 0.5, 1.0], [1, 1.01, -0.1, float("nan"), True, "0.5"]),
        (Integer(10, 30, step=8), [10, 18, 26], [30, 11, 34, 18.0, 2]),
        (Choice((1, "a", False)), [1, "a", False], [True, 0, "b", 1.0]),
    ],
)
def test_a_dimension_knows_its_values(dimension: Dimension, inside: list[object], outside: list[object]) -> None:
    """By type, bounds and steps."""
    assert all(dimension.contains(value) for value in inside)
    assert not any(dimension.contains(value) for value in outside)


def test_a_point_has_exactly_the_spaces_names() -> None:
    """With the fixed ones at their values."""
    space = Space({"x": Real(0.0, 1.0)}, fixed={"f": 3})
    assert space.contains({"x": 0.5, "f": 3})
    for point in ({"x": 0.5}, {"x": 0.5, "f": 4}, {"x": 0.5, "f": 3, "y": 1}, {"f": 3}):
        assert not space.contains(point)


@pytest.mark.parametrize(
    "dimension",
    [
        Real(2.0, 1.0),
        Real(0.0, 1.0, log=True),
        Real(0.0, float("inf")),
        Integer(0, 10, log=True),
        Integer(1, 10, step=2, log=True),
        Integer(1, 10, step=0),
        Choice(()),
        Choice((1, 1)),
    ],
)
def test_a_faulty_dimension_is_named(dimension: Dimension) -> None:
    """Before anything is searched."""
    with pytest.raises(ConfigError, match="depth"):
        Space({"depth": dimension}).check()
    with pytest.raises(ConfigError, match="depth"):
        Space({"depth": Real(0.0, 1.0)}, fixed={"depth": 1}).check()


def test_a_space_survives_json() -> None:
    """Dimensions are told apart by their tag."""
    space = Space({"x": Real(1e-3, 1.0, log=True), "n": Integer(1, 9, step=4), "c": Choice((True, "a", 2))}, fixed={"s": 1})
    assert msgspec.json.decode(msgspec.json.encode(space), type=Space) == space
