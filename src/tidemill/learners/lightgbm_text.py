"""LightGBM's model text, read by a parser that checks everything it uses: no text can do harm here.

LightGBM's own parser (``src/io/tree.cpp``, ``src/boosting/gbdt_model_text.cpp``) trusts its input: of 600 damaged texts 62 %
ended the process. This one knows two kinds of no. ``BundleRefused``: the text is damaged, with where and how.
``NotForTable``: it may be good, but holds what ``lightgbm_table`` does not do; LightGBM itself must read it, in a child
first.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.errors import BundleRefused

LEAVES_MAX = 1024
CATEGORICAL, DEFAULT_LEFT = 1, 2
"""Bits of a node's decision type; the two above them are its missing type."""
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2

Transform = Literal["none", "square", "exp", "sigmoid", "softmax", "log1p_exp"]
"""What an objective makes of a sum of leaves (``ConvertOutput`` in ``src/objective``)."""

_SQUARED = ("regression", "regression_l1", "fair", "quantile", "mape")
_TRANSFORMS: dict[str, Transform] = {
    **dict.fromkeys(_SQUARED, "none"),
    **dict.fromkeys([f"{name} sqrt" for name in _SQUARED], "square"),
    "huber": "none",
    "lambdarank": "none",
    "rank_xendcg": "none",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "log1p_exp",
}
_BINARY = re.compile(r"binary sigmoid:(\S+)")
_MULTICLASS = re.compile(r"multiclass num_class:([0-9]{1,9})")
_ONE_VERSUS_ALL = re.compile(r"multiclassova num_class:([0-9]{1,9}) sigmoid:(\S+)")
_NUMBER = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?(?:e([+-])([0-9]{2}))?")

_HEADER = (
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "feature_names",
    "feature_infos",
)
_HEADER_MORE = ("objective", "average_output", "monotone_constraints", "tree_sizes")
_TREE = ("num_leaves", "num_cat", "split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value")
_TREE_MORE = (
    *("split_gain", "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count"),
    *(
        "cat_boundaries",
        "cat_threshold",
        "is_linear",
        "shrinkage",
        "leaf_const",
        "num_features",
        "leaf_features",
        "leaf_coeff",
    ),
)
_INTEGERS, _FLOATS = b"0123456789- ", b"0123456789-+.eE infatyINFATY"

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class NotForTable(Exception):
    """The text may be good, but only LightGBM itself can score it; says why. Never leaves ``learners``."""


class Forest(Struct, frozen=True):
    """A checked model: N nodes and L leaves of T trees, one tree behind the other.

    ``first_node`` and ``first_leaf`` int64[T + 1] say where each tree begins. Of node j, ``feature`` is in [0, features),
    ``threshold`` not NaN (inf parts missing values from all others), ``decision`` a decision type; ``left`` and ``right``
    are the number of a node of all, or -1 - the number of a leaf of all. Of a categorical node the categories that go left
    are the bits of ``bitset[bits_first:bits_last]``, uint32 words. Tree number ``i * outputs + k`` adds to output k.
    """

    features: int
    outputs: int
    transform: Transform
    sigmoid: float
    average: bool
    first_node: Integers
    first_leaf: Integers
    feature: Integers
    threshold: Floats
    decision: Integers
    left: Integers
    right: Integers
    bits_first: Integers
    bits_last: Integers
    bitset: NDArray[np.uint32]
    leaf_value: Floats

    @property
    def trees(self) -> int:
        """How many there are."""
        return len(self.first_leaf) - 1


class _Tree(Struct, frozen=True):
    """A tree as its lines have it; numbers of nodes and leaves are its own."""

    feature: list[int]
    threshold: list[float]
    decision: list[int]
    left: list[int]
    right: list[int]
    leaf_value: list[float]
    cat_boundaries: list[int]
    cat_threshold: list[int]


def read_forest(data: bytes) -> Forest:
    """The model of a text. Raises ``BundleRefused`` for a damaged one, ``NotForTable`` for one that is beyond the table."""
    if not data.startswith(b"tree\n"):
        _refuse("the first line", "is not 'tree'")
    if b"\0" in data:
        _refuse("the text", "has a zero byte")
    begin = data.find(b"\nTree=") + 1
    if begin == 0 and b"\nend of trees" not in data:
        _refuse("the text", "has no trees and no end")
    header = _header(data[:begin] if begin else data[: data.find(b"\nend of trees") + 1])
    outputs, transform, sigmoid = _objective(header)
    trees = [_tree(number, block) for number, block in enumerate(_blocks(data, begin, header))]
    if not trees or len(trees) % outputs:
        raise NotForTable(f"{len(trees)} trees for {outputs} outputs")
    features = _integer("header", header, "max_feature_idx") + 1
    return _joined(trees, features, outputs, transform, sigmoid, "average_output" in header)


def _refuse(where: str, what: str) -> NoReturn:
    raise BundleRefused(f"damaged LightGBM model: {where} {what}")


def _header(text: bytes) -> dict[str, str]:
    """The keys before the first tree, each with its value."""
    try:
        lines = text.decode().split("\n")[1:]
    except UnicodeDecodeError as error:
        _refuse("header", f"is not UTF-8: {error}")
    found = _pairs("header", [line for line in lines if line])
    for key in _HEADER:
        if key not in found:
            _refuse("header", f"has no {key}")
    for key in found:
        if key not in _HEADER and key not in _HEADER_MORE:
            raise NotForTable(f"header: unknown key {key[:40]!r}")
    if found["version"] != "v4":
        raise NotForTable(f"format {found['version'][:40]!r}")
    columns = _integer("header", found, "max_feature_idx") + 1
    for key in ("feature_names", "feature_infos", "monotone_constraints"):
        if key in found and len(found[key].split(" ")) != columns:
            _refuse(f"header: {key}", f"has {len(found[key].split(' '))} entries where {columns} belong")
    return found


def _pairs(where: str, lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("=")
        if key in found:
            _refuse(where, f"has {key[:40]} twice")
        found[key] = value
    return found


def _integer(where: str, found: Mapping[str, str], key: str, most: int = 2**31 - 2) -> int:
    text = found[key]
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > most:
        _refuse(f"{where}: {key}", f"is {text[:40]!r}, not a number up to {most}")
    return int(text)


def _objective(header: Mapping[str, str]) -> tuple[int, Transform, float]:
    """How many outputs there are, and what becomes of their sums."""
    outputs = _integer("header", header, "num_tree_per_iteration")
    classes = _integer("header", header, "num_class")
    if outputs < 1 or classes < 1:
        _refuse("header", f"has {classes} classes and {outputs} trees an iteration")
    name = header.get("objective")
    if outputs != classes:
        raise NotForTable(f"{outputs} trees an iteration for {classes} classes")
    if name is None:
        return outputs, "none", 1.0
    if outputs == 1 and name in _TRANSFORMS:
        return outputs, _TRANSFORMS[name], 1.0
    if outputs == 1 and (binary := _BINARY.fullmatch(name)):
        return outputs, "sigmoid", _positive(binary[1])
    if outputs > 1 and (softmax := _MULTICLASS.fullmatch(name)) and int(softmax[1]) == outputs:
        return outputs, "softmax", 1.0
    if outputs > 1 and (each := _ONE_VERSUS_ALL.fullmatch(name)) and int(each[1]) == outputs:
        return outputs, "sigmoid", _positive(each[2])
    raise NotForTable(f"objective {name[:60]!r} with {outputs} outputs")


def _positive(text: str) -> float:
    """A number as LightGBM's ``Atof`` reads it, which is not the nearest double: digits and fraction are rounded apart."""
    match = _NUMBER.fullmatch(text)
    if match is None or int(match[4] or 0) > 22:
        raise NotForTable(f"the number {text[:40]!r}")
    value = float(match[1])
    if match[2]:
        value += float(match[2]) / 10.0 ** len(match[2])
    scale = 10.0 ** int(match[4] or 0)
    value = value / scale if match[3] == "-" else value * scale
    if not value > 0:
        _refuse("header: objective", f"has the sigmoid {text}")
    return value


def _blocks(data: bytes, begin: int, header: Mapping[str, str]) -> list[bytes]:
    """The lines of each tree, without the one that says its number; their sizes must be those that the header says."""
    if "tree_sizes" not in header:
        raise NotForTable("header: no tree_sizes")
    text = header["tree_sizes"].encode()
    sizes = _integers("header: tree_sizes", text, None)
    blocks, place = [], begin
    for number, size in enumerate(sizes):
        head = b"Tree=%d\n" % number
        block = data[place : place + max(size, 0)]
        if len(block) != size or not block.startswith(head) or not block.endswith(b"\n\n\n"):
            _refuse(f"tree {number}", f"is not the {size} bytes that the header says")
        blocks.append(block[len(head) : -3])
        place += size
    if not data.startswith(b"end of trees\n", place if sizes else data.find(b"\nend of trees") + 1):
        _refuse("the text", f"goes on after tree {len(sizes) - 1}, or breaks off")
    return blocks


def _tree(number: int, block: bytes) -> _Tree:
    """One tree; what concerns it alone and not its numbers' values is checked here."""
    where = f"tree {number}"
    try:
        found = _pairs(where, block.decode("ascii").split("\n"))
    except UnicodeDecodeError as error:
        _refuse(where, f"is not ASCII: {error}")
    for key in _TREE:
        if key not in found:
            _refuse(where, f"has no {key}")
    for key in found:
        if key not in _TREE and key not in _TREE_MORE:
            raise NotForTable(f"{where}: unknown key {key[:40]!r}")
    if found.get("is_linear", "0") != "0":
        raise NotForTable(f"{where}: is_linear={found['is_linear'][:10]}")
    leaves, categorical = _integer(where, found, "num_leaves"), _integer(where, found, "num_cat")
    if leaves < 1:
        _refuse(where, "has no leaf")
    if leaves > LEAVES_MAX:
        raise NotForTable(f"{where}: {leaves} leaves")
    values = {key: text.encode() for key, text in found.items()}
    if leaves == 1:
        return _Tree([], [], [], [], [], _floats(where, values, "leaf_value", 1), [0], [])
    boundaries, words = [0], list[int]()
    if categorical:
        if not {"cat_boundaries", "cat_threshold"} <= set(found):
            _refuse(where, "has categorical splits without their categories")
        boundaries = _integers(f"{where}: cat_boundaries", values["cat_boundaries"], categorical + 1)
        words = _integers(f"{where}: cat_threshold", values["cat_threshold"], boundaries[-1])
    feature, decision, left, right = (
        _integers(f"{where}: {key}", values[key], leaves - 1)
        for key in ("split_feature", "decision_type", "left_child", "right_child")
    )
    threshold, leaf_value = _floats(where, values, "threshold", leaves - 1), _floats(where, values, "leaf_value", leaves)
    return _Tree(feature, threshold, decision, left, right, leaf_value, boundaries, words)


def _integers(where: str, text: bytes, count: int | None) -> list[int]:
    """So many integers of at most ten digits, one space between two."""
    parts = text.split(b" ") if text else []
    if text.translate(None, _INTEGERS) or (count is not None and len(parts) != count):
        _refuse(where, f"is not {'a list of' if count is None else count} integers: {len(parts)} parts")
    try:
        found = list(map(int, parts))
    except ValueError as error:
        _refuse(where, f"is damaged: {error}")
    if found and not -(2**31) <= min(found) <= max(found) < 2**32:
        _refuse(where, "has a number that is too large")
    return found


def _floats(where: str, values: Mapping[str, bytes], key: str, count: int) -> list[float]:
    """So many numbers. Python and LightGBM (``AtofPrecise``) both give the nearest double."""
    text = values[key]
    parts = text.split(b" ")
    if text.translate(None, _FLOATS) or len(parts) != count:
        _refuse(f"{where}: {key}", f"is not {count} numbers: {len(parts)} parts")
    try:
        return list(map(float, parts))
    except ValueError as error:
        _refuse(f"{where}: {key}", f"is damaged: {error}")


def _joined(trees: list[_Tree], features: int, outputs: int, transform: Transform, sigmoid: float, average: bool) -> Forest:
    """All trees as arrays, checked: what is returned can be walked without a look at any bound."""
    leaves = np.array([len(tree.leaf_value) for tree in trees])
    first_leaf, first_node = _starts(leaves), _starts(leaves - 1)
    joined = _arrays(trees)
    if np.isnan(joined["threshold"]).any() or not np.isfinite(joined["leaf_value"]).all():
        raise NotForTable("a threshold is NaN, or a leaf not finite")
    tree_of = np.repeat(np.arange(len(trees)), leaves - 1)
    _check(joined["feature"], 0, features, tree_of, "split_feature")
    _check(joined["decision"], 0, 12, tree_of, "decision_type")
    left, right = (_child(joined[name], first_node, first_leaf, tree_of, name) for name in ("left", "right"))
    _check_each_once(left, right, first_node, first_leaf)
    bits_first, bits_last, bitset = _bitsets(trees, joined, tree_of)
    return Forest(
        features=features,
        outputs=outputs,
        transform=transform,
        sigmoid=sigmoid,
        average=average,
        first_node=first_node,
        first_leaf=first_leaf,
        feature=joined["feature"],
        threshold=joined["threshold"],
        decision=joined["decision"],
        left=left,
        right=right,
        bits_first=bits_first,
        bits_last=bits_last,
        bitset=bitset,
        leaf_value=joined["leaf_value"],
    )


def _starts(counts: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _arrays(trees: list[_Tree]) -> dict[str, NDArray[Any]]:
    """The lists of all trees, one behind the other. A tree at a time: a long list would hold the interpreter's lock."""
    kinds = {"threshold": np.float64, "leaf_value": np.float64}
    names = ("feature", "threshold", "decision", "left", "right", "leaf_value")
    return {
        name: np.concatenate([np.array(getattr(tree, name), dtype=kinds.get(name, np.int64)) for tree in trees])
        for name in names
    }


def _check(values: Integers, low: int, high: int, tree_of: Integers, name: str) -> None:
    """Every value is in [low, high), or the first tree is named where one is not."""
    bad = (values < low) | (values >= high)
    if bad.any():
        place = int(bad.argmax())
        _refuse(f"tree {tree_of[place]}: {name}", f"has {values[place]}, not one from {low} to {high - 1}")


def _child(child: Integers, first_node: Integers, first_leaf: Integers, tree_of: Integers, name: str) -> Integers:
    """A tree's own numbers of nodes (from 0) and leaves (-1 - number) as numbers of all."""
    nodes, leaves = np.diff(first_node)[tree_of], np.diff(first_leaf)[tree_of]
    bad = (child >= nodes) | (child == 0) | (child < -leaves)
    if bad.any():
        place = int(bad.argmax())
        _refuse(f"tree {tree_of[place]}: {name}_child", f"leads to {child[place]}")
    return np.where(child > 0, child + first_node[tree_of], child - first_leaf[tree_of])


def _check_each_once(left: Integers, right: Integers, first_node: Integers, first_leaf: Integers) -> None:
    """Every node but the roots, and every leaf, is the child of exactly one node, and none is out of a root's reach.

    Together: each tree is one.
    """
    children = np.concatenate([left, right])
    inner = np.diff(first_node) > 0
    roots = first_node[:-1][inner]
    parents = np.bincount(children[children >= 0], minlength=len(left))
    parents[roots] += 1
    leaf_parents = np.bincount(-1 - children[children < 0], minlength=first_leaf[-1])
    leaf_parents[first_leaf[:-1][~inner]] += 1
    for name, found, first in (("node", parents, first_node), ("leaf", leaf_parents, first_leaf)):
        if (found != 1).any():
            place = int((found != 1).argmax())
            tree = int(np.searchsorted(first, place, "right")) - 1
            _refuse(f"tree {tree}", f"has a {name}, number {place - first[tree]}, that is the child of {found[place]} nodes")
    seen, level = 0, roots
    while len(level):
        seen += len(level)
        level = np.concatenate([left[level], right[level]])
        level = level[level >= 0]
    if seen != len(left):
        _refuse("a tree", "goes in a circle")


def _bitsets(
    trees: list[_Tree], joined: Mapping[str, NDArray[Any]], tree_of: Integers
) -> tuple[Integers, Integers, NDArray[np.uint32]]:
    """Of each node where its categories begin and end among all trees' words, and the words."""
    categorical = joined["decision"] & CATEGORICAL > 0
    sets = np.array([len(tree.cat_boundaries) - 1 for tree in trees])
    for number, tree in enumerate(trees):
        bounds = tree.cat_boundaries
        if bounds[0] != 0 or bounds != sorted(bounds) or (tree.cat_threshold and min(tree.cat_threshold) < 0):
            _refuse(f"tree {number}: cat_boundaries", "does not rise from 0, or a word is negative")
    chosen = np.where(categorical, joined["threshold"], 0.0)
    bad = categorical & ~((chosen >= 0) & (chosen < sets[tree_of]) & (chosen == np.floor(chosen)))
    if bad.any():
        place = int(bad.argmax())
        _refuse(
            f"tree {tree_of[place]}: threshold", f"names the categories {chosen[place]:g}, not one of {sets[tree_of[place]]}"
        )
    starts = _starts(np.array([len(tree.cat_threshold) for tree in trees]))
    bounds_of = _starts(sets + 1)
    edges = np.concatenate([np.array(tree.cat_boundaries, dtype=np.int64) for tree in trees])
    places = bounds_of[tree_of] + chosen.astype(np.int64)
    first, last = (starts[tree_of] + edges[np.minimum(places + more, len(edges) - 1)] for more in (0, 1))
    words = np.concatenate([np.array(tree.cat_threshold, dtype=np.uint32) for tree in trees])
    return np.where(categorical, first, 0), np.where(categorical, last, 0), words
