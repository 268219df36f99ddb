"""The table's answers by one compiled loop: what NumPy does in some fifty calls, in one, and in registers.

The loop is the same for every model, so a process compiles it once: 0.1 s, by llvmlite, which is LLVM and nothing else.
Numba would write the same code from Python, but takes 1.3 s to import and 150 MB, more than a whole predictor; llvmlite
takes 0.1 s and, once it has given back its own code, 30 MB. The loop works on two rows at a time, so that two sums grow
side by side: each waits for its last addition. Four at a time took up to 18 % longer, one 7 to 17 %.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from tidemill.learners.base import Matrix
from tidemill.learners.lightgbm_table import COLUMNS_MULTIPLE, SLOTS, Table
from tidemill.learners.lightgbm_text import Floats

ROWS = 2
"""Rows at a time."""

FEW_ROWS = 64
"""Up to here rows are copied to a place whose address is known, and the interpreter's lock is kept: the loop is done sooner
than another thread would give the lock back.
"""

_INT, _DOUBLE = ir.IntType(64), ir.DoubleType()
_VECTOR = ir.VectorType(_INT, COLUMNS_MULTIPLE)
_INTS, _DOUBLES = _INT.as_pointer(), _DOUBLE.as_pointer()
_ARGUMENTS: dict[str, ir.Type] = {
    "matrix": _DOUBLES,
    "rows": _INT,
    "table": _INTS,
    "sums": _DOUBLES,
}
"""Of the loop: a matrix, row by row, the addresses and sizes of ``_TABLE``, and where sums go."""
_EXP_ARGUMENTS = (_DOUBLES, _INT)
"""Of the other loop: values, which it replaces, and how many."""
_TABLE: dict[str, ir.Type] = {
    "matrix_width": _INT,
    "features": _INTS,
    "feature_count": _INT,
    "bounds": _DOUBLES,
    "first_bound": _INTS,
    "first_row": _INTS,
    "words": _INTS,
    "width": _INT,
    "values": _DOUBLES,
    "first_column": _INTS,
    "outputs": _INT,
    "places": _INTS,
    "left": _INTS,
}
"""A table, and room for ``ROWS`` rows' places in it and words."""


class CompiledScorer:
    """Sums of leaves by the compiled loop; its room is its own, so one thread at a time."""

    engine = "llvm"

    def __init__(self, table: Table) -> None:
        compiled = _compiled()
        self._score, self._exp = compiled.score, compiled.exp
        self._outputs, width = table.forest.outputs, table.words.shape[1]
        parts: dict[str, NDArray[Any] | int] = {
            "matrix_width": table.forest.features,
            "features": table.features,
            "feature_count": len(table.features),
            "bounds": np.concatenate([*table.bounds, [np.inf]]),
            "first_bound": np.cumsum([0, *map(len, table.bounds)]),
            "first_row": table.first_row,
            "words": table.words,
            "width": width,
            "values": table.values,
            "first_column": table.first_column,
            "outputs": self._outputs,
            "places": np.empty(ROWS * max(1, len(table.features)), dtype=np.int64),
            "left": np.empty(ROWS * width, dtype=np.uint64),
        }
        self._parts = [part if isinstance(part, int) else np.ascontiguousarray(part) for part in map(parts.get, _TABLE)]
        self._table = np.array([part if isinstance(part, int) else _address(part) for part in self._parts], dtype=np.int64)
        self._at = _address(self._table)
        self._matrix, self._sums = np.empty((FEW_ROWS, table.forest.features)), np.empty((FEW_ROWS, self._outputs))
        self._few = (_address(self._matrix), _address(self._sums))

    def __call__(self, matrix: Matrix) -> Floats:
        rows = len(matrix)
        if rows <= FEW_ROWS:
            self._matrix[:rows] = matrix
            self._score.briefly(self._few[0], rows, self._at, self._few[1])
            return self._sums[:rows].copy()
        matrix = np.ascontiguousarray(matrix, dtype=np.float64)
        sums = np.empty((rows, self._outputs))
        self._score.freely(_address(matrix), rows, self._at, _address(sums))
        return sums

    def exp(self, values: Floats) -> Floats:
        """See ``tidemill.learners.probabilities.exp``: the same function of the C library, without Python around each."""
        found = np.array(values)
        (self._exp.briefly if len(found) <= FEW_ROWS else self._exp.freely)(_address(found), len(found))
        return found


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class _Function(NamedTuple):
    """One function of C: ``briefly`` keeps the interpreter's lock, ``freely`` gives it up."""

    briefly: Callable[..., None]
    freely: Callable[..., None]


class _Compiled:
    """The loops as functions of C, and the engine that owns their code."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        module = llvm.parse_assembly(str(_module(target.triple, str(machine.target_data))))
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self.score = self._function("score", _ARGUMENTS.values())
        self.exp = self._function("exp_each", _EXP_ARGUMENTS)
        _give_back_code()

    def _function(self, name: str, kinds: Iterable[ir.Type]) -> _Function:
        address = self._engine.get_function_address(name)
        of_c = [ctypes.c_int64 if kind is _INT else ctypes.c_void_p for kind in kinds]
        return _Function(ctypes.PYFUNCTYPE(None, *of_c)(address), ctypes.CFUNCTYPE(None, *of_c)(address))


def _give_back_code() -> None:
    """Let the system take back the pages of LLVM's own code, 60 MB, which nothing runs any more; if anything does, it reads
    them again. Pages that can be executed were never written to, so nothing is lost. Not possible is no harm.
    """
    with suppress(OSError, ValueError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, allowed, *_, name = line.split(maxsplit=5)
            if allowed == "r-xp" and Path(name).name.startswith("libllvmlite"):
                first, last = (int(edge, 16) for edge in place.split("-"))
                madvise(first, last - first, mmap.MADV_DONTNEED)


@functools.cache
def _compiled() -> _Compiled:
    return _Compiled()


def _module(triple: str, layout: str) -> ir.Module:
    module = ir.Module("tidemill")
    module.triple, module.data_layout = triple, layout
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(_ARGUMENTS.values())), "score")
    for argument, (name, kind) in zip(function.args, _ARGUMENTS.items(), strict=True):
        argument.name = name
        if kind is not _INT:
            argument.add_attribute("noalias")
    _ScoreWriter(function).write()
    _ExpWriter(ir.Function(module, ir.FunctionType(ir.VoidType(), _EXP_ARGUMENTS), "exp_each")).write()
    return module


class _Writer:
    """Writes a function's body, in LLVM's terms."""

    def __init__(self, function: ir.Function) -> None:
        self._function = function
        self._build = ir.IRBuilder(function.append_basic_block("entry"))
        self._entry = self._build.block

    def _variable(self, kind: ir.Type, value: ir.Value) -> ir.Value:
        """A place that holds a value; the compiler makes it a register. All are made at the function's start."""
        with self._build.goto_block(self._entry):
            place = self._build.alloca(kind)
        self._build.store(value, place)
        return place

    @contextmanager
    def _while(self, condition: Callable[[], ir.Value]) -> Iterator[None]:
        test, body, after = (self._function.append_basic_block(name) for name in ("test", "body", "after"))
        self._build.branch(test)
        self._build.position_at_end(test)
        self._build.cbranch(condition(), body, after)
        self._build.position_at_end(body)
        yield
        self._build.branch(test)
        self._build.position_at_end(after)

    @contextmanager
    def _counted(self, first: ir.Value, end: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """``for number in range(first, end, step)``."""
        number = self._variable(_INT, first)
        with self._while(lambda: self._build.icmp_signed("<", self._build.load(number), end)):
            now = self._build.load(number)
            yield now
            self._build.store(self._build.add(now, _int(step)), number)


class _ExpWriter(_Writer):
    """Each of some doubles becomes its ``exp``, by the function that Python's own comes from."""

    def write(self) -> None:
        build, (values, count) = self._build, self._function.args
        address: Any = ctypes.cast(ctypes.CDLL(None).exp, ctypes.c_void_p).value
        power = build.inttoptr(_int(address), ir.FunctionType(_DOUBLE, [_DOUBLE]).as_pointer())
        with self._counted(_int(0), count) as number:
            place = build.gep(values, [number])
            build.store(build.call(power, [build.load(place)]), place)
        build.ret_void()


class _ScoreWriter(_Writer):
    """The sums of leaves."""

    def __init__(self, function: ir.Function) -> None:
        super().__init__(function)
        self._at = {argument.name: argument for argument in function.args}
        for number, (name, kind) in enumerate(_TABLE.items()):
            value = self._load("table", _int(number))
            self._at[name] = value if kind is _INT else self._build.inttoptr(value, kind)

    def write(self) -> None:
        """``ROWS`` at a time, then what is left over one by one."""
        most = self._build.and_(self._at["rows"], _int(-ROWS))
        with self._counted(_int(0), most, ROWS) as row:
            self._score(row, ROWS)
        with self._counted(most, self._at["rows"]) as row:
            self._score(row, 1)
        self._build.ret_void()

    def _score(self, row: ir.Value, count: int) -> None:
        build, at = self._build, self._at
        with self._counted(_int(0), at["feature_count"]) as feature:
            self._find_places(row, feature, count)
        with self._counted(_int(0), at["width"], COLUMNS_MULTIPLE) as column:
            self._and_words(column, count)
        with self._counted(_int(0), at["outputs"]) as output:
            sums = self._add_leaves(output, count)
            for number, total in enumerate(sums):
                place = build.add(build.mul(build.add(row, _int(number)), at["outputs"]), output)
                self._store("sums", place, total)

    def _find_places(self, row: ir.Value, feature: ir.Value, count: int) -> None:
        """Where the table rows of one feature begin: how many bounds are below each value, by halving. "Not at or above"
        instead of "below" puts NaN above all.
        """
        build, at = self._build, self._at
        first = self._load("first_bound", feature)
        length = self._variable(_INT, build.sub(self._load("first_bound", build.add(feature, _int(1))), first))
        column = self._load("features", feature)
        values, found = [], []
        for number in range(count):
            step = build.mul(build.add(row, _int(number)), at["matrix_width"])
            values.append(self._load("matrix", build.add(step, column)))
            found.append(self._variable(_INT, first))

        def below(value: ir.Value, place: ir.Value) -> ir.Value:
            return build.fcmp_unordered("<", self._load("bounds", place), value)

        with self._while(lambda: build.icmp_signed(">", build.load(length), _int(1))):
            half = build.ashr(build.load(length), _int(1))
            for value, place in zip(values, found, strict=True):
                middle = build.add(build.load(place), half)
                low = below(value, build.sub(middle, _int(1)))
                build.store(build.select(low, middle, build.load(place)), place)
            build.store(build.sub(build.load(length), half), length)
        table_row = build.sub(self._load("first_row", feature), first)
        for number, (value, place) in enumerate(zip(values, found, strict=True)):
            last = build.add(build.load(place), build.zext(below(value, build.load(place)), _INT))
            start = build.mul(build.add(table_row, last), at["width"])
            self._store("places", build.add(build.mul(feature, _int(count)), _int(number)), start)

    def _and_words(self, column: ir.Value, count: int) -> None:
        """Eight columns of each row, through all features."""
        build, at = self._build, self._at
        words = [self._variable(_VECTOR, ir.Constant(_VECTOR, [-1] * COLUMNS_MULTIPLE)) for _ in range(count)]
        with self._counted(_int(0), at["feature_count"]) as feature:
            for number, word in enumerate(words):
                start = self._load("places", build.add(build.mul(feature, _int(count)), _int(number)))
                more = build.load(self._vector("words", build.add(start, column)), align=8)
                build.store(build.and_(build.load(word), more), word)
        for number, word in enumerate(words):
            place = build.add(build.mul(_int(number), at["width"]), column)
            build.store(build.load(word), self._vector("left", place), align=8)

    def _add_leaves(self, output: ir.Value, count: int) -> list[ir.Value]:
        """The sums of one output, leaf after leaf; a word without a bit has the slot 64."""
        build, at = self._build, self._at
        first, last = (self._load("first_column", build.add(output, _int(more))) for more in (0, 1))
        sums = [self._variable(_DOUBLE, ir.Constant(_DOUBLE, 0.0)) for _ in range(count)]
        with self._counted(first, last) as column:
            values = build.mul(column, _int(SLOTS))
            for number, total in enumerate(sums):
                word = self._load("left", build.add(build.mul(_int(number), at["width"]), column))
                slot = build.cttz(word, ir.Constant(ir.IntType(1), 0))
                leaf = self._load("values", build.add(values, slot))
                build.store(build.fadd(build.load(total), leaf), total)
        return [build.load(total) for total in sums]

    def _load(self, name: str, place: ir.Value) -> ir.Value:
        return self._build.load(self._build.gep(self._at[name], [place]))

    def _store(self, name: str, place: ir.Value, value: ir.Value) -> None:
        self._build.store(value, self._build.gep(self._at[name], [place]))

    def _vector(self, name: str, place: ir.Value) -> ir.Value:
        return self._build.bitcast(self._build.gep(self._at[name], [place]), _VECTOR.as_pointer())


def _int(value: int) -> ir.Constant:
    return ir.Constant(_INT, value)
