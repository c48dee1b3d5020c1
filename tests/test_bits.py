"""Every result keeps its bits: runs of the public interface against hashes of an earlier version.

The other tests allow for rounding, so that a change of the order of operations, of a cast or of
the default of a constant passes them.  Here variables, slots and step counts of many small runs
are hashed, and compared with golden/bits.json.  Whoever moves code about learns at once whether it
still computes the same; whoever means to change a result makes the file again, by

    python tests/test_bits.py > tests/golden/bits.json

and looks at which of its lines are others.

Inputs are made of random integers and powers of two, so they are exact and the same under every
version of NumPy.  The arithmetic is IEEE's, of which kernels neither fuse nor reorder anything, so
the bits are those of any x86-64 machine.  Two kinds of run, which their names begin with, may
differ where there is another C library or compiler: "complex", whose roots and quotients are made
of several operations, and "libm", whose learning rates come from its functions.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import platform
import warnings
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

import rmsjit
import rmsjit.train
from rmsjit import IndexedSlices, schedules
from strategies import BOTH, COMPLEX, DTYPES, KERAS, REAL, SLOW_FORMS, TRAIN

STORED = pathlib.Path(__file__).parent / "golden" / "bits.json"
STEPS = 4

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="other processors may round, fuse or vectorise otherwise",
)

# --- Forms and settings ----------------------------------------------------------------------

# With each form what is not in the constructor's defaults; a tuple has a value for every step, and
# "momentum_later" is assigned after the first step.
FORMS = {str(form): (form, {}) for form in KERAS + TRAIN}
FORMS["keras-plain-later"] = KERAS[0], {"momentum_later": 0.5}
FORMS["keras-centered-later"] = KERAS[2], {"momentum_later": 0.5}
FORMS["keras-plain-callable"] = KERAS[0], {"momentum": (0.9, 0.0, 0.5, 1.0)}
FORMS["train-centered-callable"] = TRAIN[2], {"momentum": (0.9, 0.0, 0.5, 1.0)}

REAL_CLIPS = {
    "clipvalue": {"clipvalue": 0.5},
    "value-and-norm": {"clipvalue": 0.5, "clipnorm": 1.5},
    "value-and-global": {"clipvalue": 0.5, "global_clipnorm": 1.5},
    "hooked": {"clipvalue": 0.5, "clipnorm": 1.5, "gradient_transformers": [list]},
}
CLIPS = {
    "clipnorm": {"clipnorm": 1.5},
    "clipnorm-0": {"clipnorm": 0.0},
    "global": {"global_clipnorm": 1.5},
    "high-global": {"global_clipnorm": 1e6},
}
RATES = {
    "number": {"learning_rate": 0.3},
    "array": {"learning_rate": np.array(0.3, np.float32)},
    "callable": {"learning_rate": (0.3, 0.0, 0.1, 0.7)},
}
KERAS_RATES = {
    "decay": {"learning_rate": 0.3, "decay": 0.1},
    "callable-decay": {"learning_rate": (0.3, 0.0, 0.1, 0.7), "decay": 0.1},
    "piecewise": {"learning_rate": schedules.PiecewiseConstantDecay([1], [0.3, 0.1])},
    "linear": {"learning_rate": schedules.PolynomialDecay(0.3, 3, 0.1)},
    "inverse": {"learning_rate": schedules.InverseTimeDecay(0.3, 3, 0.7)},
}
LIBM_RATES = {
    "exponential": {"learning_rate": schedules.ExponentialDecay(0.3, 3, 0.7)},
    "cosine": {"learning_rate": schedules.CosineDecay(0.3, 7)},
    "cubic": {"learning_rate": schedules.PolynomialDecay(0.3, 7, 0.1, power=3.3)},
}
EXTREMES = {
    "rho-0": {"rho": 0.0},
    "rho-1": {"rho": 1.0},
    "rho-by-step": {"rho": (0.9, 1.0, 0.0, 0.5)},
    "large-epsilon": {"epsilon": 3.0},
}
NONFINITE = {how: {"nonfinite": how} for how in ("propagate", "skip", "raise")}
CLIPPED_NONFINITE = {
    "skip-clipnorm": {"nonfinite": "skip", "clipnorm": 1.5},
    "propagate-clipvalue": {"clipvalue": 0.5},
    "propagate-clipnorm": {"clipnorm": 1.5},
    "propagate-global": {"global_clipnorm": 1.5},
}
THREADS = {f"threads-{count}": {"num_threads": count} for count in (1, 2)}
SETTINGS = {
    "": {},
    **REAL_CLIPS,
    **CLIPS,
    **RATES,
    **KERAS_RATES,
    **LIBM_RATES,
    **EXTREMES,
    **NONFINITE,
    **CLIPPED_NONFINITE,
    **THREADS,
}

# --- One run ---------------------------------------------------------------------------------


class Run:
    """An optimizer with its random inputs, the same for every form and all settings."""

    def __init__(self, form, dtype, momentum_later=None, **arguments):
        self.rng = np.random.default_rng(2012)
        self.dtype = np.dtype(dtype)
        self.momentum_later = momentum_later
        self.count = 0
        self.global_step = np.zeros((), np.int64)
        self.counted = [self.global_step] if form.face == "train" else []
        self.optimizer = form.optimizer(
            **{name: self.by_step(value) for name, value in arguments.items()}
        )

    def by_step(self, value):
        """A tuple as a function of no arguments; anything else as it is."""
        if not isinstance(value, tuple):
            return value
        return lambda: value[self.count % len(value)]

    def draw(self, *shape, dtype=None, exponent=0):
        """Numbers up to 32 in magnitude, each exact in float32, times a power of two."""
        dtype = np.dtype(dtype or self.dtype)
        parts = [self._reals(shape, exponent) for _ in range(1 + (dtype.kind == "c"))]
        if dtype.kind != "c":
            return np.array(parts[0], dtype)
        value = np.empty(shape, dtype)
        value.real, value.imag = parts
        return value

    def _reals(self, shape, exponent):
        mantissas = self.rng.integers(-4096, 4096, shape, endpoint=True) / 1024
        return np.ldexp(mantissas, self.rng.integers(-3, 3, shape, endpoint=True) + exponent)

    def slices(self, table, count, indices_dtype=np.int64):
        """A gradient with `count` indices, of which some may be the same."""
        rows, *row = table.shape
        indices = self.rng.integers(0, rows, count).astype(indices_dtype)
        return IndexedSlices(self.draw(count, *row), indices)

    def step(self, *pairs):
        if self.momentum_later is not None and self.count == 1:
            self.optimizer.momentum = self.momentum_later
        self.optimizer.apply_gradients(list(pairs), *self.counted)
        self.count += 1

    def hash(self, variables):
        """Of all that the steps have left behind; late rows count as they are, then in full."""
        found = hashlib.sha256()
        for array in itertools.chain(variables, self._slots(variables), variables, self._rest()):
            for part in content(array):
                found.update(part)
        return found.hexdigest()[:16]

    def _slots(self, variables):
        """Looked up one by one, since the first look brings late rows up to date."""
        for variable in variables:
            for name in sorted(self.optimizer.get_slot_names()):
                with contextlib.suppress(KeyError):  # none before the first step that was taken
                    slot = self.optimizer.get_slot(variable, name)
                    yield np.zeros(0) if slot is None else slot

    def _rest(self):
        """Step counts, and all slots in the order of their creation."""
        yield self.global_step
        yield np.array(self.optimizer.skipped_steps, np.int64)
        if hasattr(self.optimizer, "get_weights"):
            yield from self.optimizer.get_weights()
        else:
            yield from self.optimizer.variables()


def content(value):
    """Dtype, shape and bytes of an array.

    NaNs are made equal first: their signs and payloads come from the order in which a compiler
    puts the operands of a sum, which means nothing.
    """
    array = np.array(np.asarray(value), order="C")
    parts = array.reshape(-1).view(array.real.dtype)
    if np.isnan(parts).any():
        parts[np.isnan(parts)] = np.nan
    return str(array.dtype).encode(), str(array.shape).encode(), parts.tobytes()


# --- What is run: each takes its steps and returns the variables ------------------------------

OTHER = {"float64": "float32", "complex64": "complex128", "complex128": "complex64"}
LAYOUTS = {
    "F-ordered": np.asfortranarray,
    "strided-rows": lambda array: np.repeat(array, 2, axis=0)[::2],
    "strided-columns": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "turned-round": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "Variable": rmsjit.Variable,
}
TABLE_LAYOUTS = {name: LAYOUTS[name] for name in ("strided-columns", "turned-round", "Variable")}


def contiguous(run):
    variable = run.draw(5, 7)
    for _ in range(STEPS):
        run.step((run.draw(5, 7), variable))
    return [variable]


def other_dtype(run):
    """A wider or narrower gradient, one of integers, and a list."""
    variable = run.draw(5, 7)
    for dtype in (OTHER.get(run.dtype.name, "float64"), "float16", "int64", run.dtype):
        run.step((run.draw(5, 7, dtype=dtype), variable))
    run.step((run.draw(5, 7, dtype="float64").tolist(), variable))
    return [variable]


def laid_out(lay):
    """A variable that lies otherwise in memory, and gradients that lie in several ways."""

    def run_layout(run):
        variable = lay(run.draw(5, 7))
        for arrange in (np.copy, np.asfortranarray, lay, LAYOUTS["turned-round"]):
            run.step((arrange(run.draw(5, 7)), variable))
        return [variable]

    return run_layout


def transposed(run):
    """State belongs to the memory, whichever view of it comes."""
    variable = run.draw(5, 7)
    run.step((run.draw(7, 5), variable.T))
    run.step((run.draw(5, 7), variable))
    run.step((run.draw(7, 5).T, variable))
    run.step((run.draw(35), variable.reshape(-1)))
    return [variable]


def zero_dimensions(run):
    variable = run.draw()
    for _ in range(STEPS):
        run.step((run.draw(), variable))
    return [variable]


def empty(run):
    variables = [run.draw(0, 3), run.draw(5), run.draw(3, 0, 2)]
    for _ in range(STEPS):
        run.step(*((run.draw(*variable.shape), variable) for variable in variables))
    return variables


def mixed(run):
    """Many sizes and several dtypes in one call, in an order that no grouping keeps."""
    shapes = [(1,), (129,), (), (3, 5), (1000,), (2, 3, 4)]
    others = ["float64", "float32", "bfloat16", "float16"]
    variables = [run.draw(*shape) for shape in shapes]
    variables[1:1] = [run.draw(size, dtype=other) for size, other in enumerate(others, start=16)]
    for _ in range(STEPS):
        pairs = [(run.draw(*v.shape, dtype=v.dtype), v) for v in variables]
        run.step(*pairs)
    run.step(*pairs[::-2])
    return variables


def twice(run):
    """Updates of the same variable apply one after the other."""
    variable, table = run.draw(5, 7), run.draw(6, 3)
    for _ in range(STEPS):
        first = [(run.draw(5, 7), variable), (run.slices(table, 9), table)]
        run.step(*first, (run.draw(5, 7), variable), (run.slices(table, 9), table))
        run.step((run.draw(5, 7), variable), (run.draw(6, 3), table), (run.draw(7, 5), variable.T))
    return [variable, table]


def absent(run):
    variables = [run.draw(5), run.draw(7)]
    run.step(*((run.draw(*variable.shape), variable) for variable in variables))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which say that a variable is left alone
        run.step((None, variables[0]), (run.draw(7), variables[1]))
        run.step((run.draw(5), variables[0]), (None, variables[1]))
    return variables


def repeated_rows(*shape, lay=np.copy):
    """More indices than rows, so that some come several times."""

    def run_rows(run):
        table = lay(run.draw(*shape))
        for indices_dtype in (np.int64, np.int32, np.uint8, np.int64):
            run.step((run.slices(table, 9, indices_dtype), table))
        run.step((run.slices(table, 0), table))
        return [table]

    return run_rows


def rows_and_dense(run):
    """Sparse and dense gradients of one table, and sums of slices, in turn."""
    table, bias = run.draw(6, 3), run.draw(3)
    for _ in range(STEPS):
        run.step((run.slices(table, 9), table), (run.draw(3), bias))
        run.step((run.draw(6, 3), table), (run.draw(3), bias))
        run.step((run.slices(table, 9).coalesce(), table))
        gradient = run.slices(table, 9)
        run.step((IndexedSlices(gradient.values, gradient.indices, (6, 3)).to_dense(), table))
    return [table, bias]


def gaps(*shape, steps=12, lay=np.copy):
    """Few rows at each step, so that the others fall behind."""

    def run_gaps(run):
        table = lay(run.draw(*shape))
        for _ in range(steps):
            run.step((run.slices(table, 3), table))
        return [table]

    return run_gaps


def sync(run):
    """Some rows, then all, are brought up to date between steps."""
    table = run.draw(12, 3)
    for wanted in ([table, [0, 3, 3, 5]], [table], []):
        for _ in range(STEPS):
            run.step((run.slices(table, 3), table))
        run.optimizer.sync(*wanted)
    run.step((run.slices(table, 3), table))
    return [table]


def later_dense(run):
    """A dense step needs all rows of a table, and a step without rows still counts."""
    table, bias = run.draw(12, 3), run.draw(3)
    for _ in range(3):
        for count in (3, 0, 5):
            run.step((run.slices(table, count), table), (run.draw(3), bias))
        run.step((run.draw(12, 3), table))
    run.step((run.slices(table, 3), table))
    return [table, bias]


def scaled(pick):
    """Dense and sparse gradients of an extreme size."""

    def run_scaled(run):
        exponent = pick(ml_dtypes.finfo(run.dtype))
        if run.dtype.kind == "c":  # whose squares no bound keeps from becoming infinite, then NaN
            exponent //= 2
        variable, table = run.draw(5, 7), run.draw(6, 3)
        for _ in range(STEPS):
            rows = run.rng.integers(0, 6, 9)
            slices = IndexedSlices(run.draw(9, 3, exponent=exponent), rows)
            run.step((run.draw(5, 7, exponent=exponent), variable), (slices, table))
        run.step((run.draw(5, 7), variable), (run.draw(6, 3), table))
        return [variable, table]

    return run_scaled


def nonfinite(run):
    """NaN and infinity in a dense gradient, then in a sparse one, between steps without."""
    variable, table = run.draw(5, 7), run.draw(6, 3)
    for value in (1.0, np.nan, np.inf, 2.0):
        dense, slices = run.draw(5, 7), run.slices(table, 9)
        dense[1, 2] = value
        _step_or_refuse(run, (dense, variable), (run.slices(table, 9), table))
        slices.values[4, 0] = -value
        _step_or_refuse(run, (run.draw(5, 7), variable), (slices, table))
    return [variable, table]


def _step_or_refuse(run, *pairs):
    with contextlib.suppress(FloatingPointError):  # nonfinite="raise", after which nothing differs
        run.step(*pairs)


def large(run):
    """Enough elements that threads pay, cut at no round number."""
    variables = [run.draw(1_250_003), run.draw(5, 7), run.draw(70_001)]
    for _ in range(2):
        run.step(*((run.draw(*variable.shape), variable) for variable in variables))
    return variables


def large_table(run):
    """Enough rows that threads pay, some of them named several times."""
    table = run.draw(60_000, 16)
    for _ in range(2):
        run.step((run.slices(table, 50_000), table))
    return [table]


KINDS = {
    "contiguous": contiguous,
    "other-dtype": other_dtype,
    **{name: laid_out(lay) for name, lay in LAYOUTS.items()},
    "transposed": transposed,
    "zero-dimensions": zero_dimensions,
    "empty": empty,
    "mixed": mixed,
    "twice": twice,
    "absent": absent,
    "rows": repeated_rows(6, 3),
    "rows-column": repeated_rows(6, 1),
    "rows-vector": repeated_rows(6),
    "rows-wide": repeated_rows(6, 5, 9),
    **{f"rows-{name}": repeated_rows(6, 3, lay=lay) for name, lay in TABLE_LAYOUTS.items()},
    "rows-and-dense": rows_and_dense,
}
EXACT = {
    "exact": gaps(12, 3),
    "exact-column": gaps(12, 1),
    "exact-wide": gaps(12, 5, 9),
    "exact-long": gaps(12, 3, steps=300),  # past the step at which all rows are made up to date
    **{f"exact-{name}": gaps(12, 3, lay=lay) for name, lay in TABLE_LAYOUTS.items()},
    "exact-sync": sync,
    "exact-later-dense": later_dense,
    "exact-twice": twice,
}
SIZES = {
    "huge": scaled(lambda limits: limits.maxexp - 6),
    "tiny": scaled(lambda limits: limits.minexp - 2),
}
LARGE = {"large": large, "large-table": large_table, "exact-large-table": large_table}
SCENARIOS = {**KINDS, **EXACT, **SIZES, **LARGE, "nonfinite": nonfinite}

# --- Cases -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One run, by the names of what it is made of."""

    dtype: str
    form: str
    scenario: str
    setting: str = ""

    @property
    def name(self):
        libm = ["libm"] * (self.setting in LIBM_RATES)
        setting = [self.setting] * bool(self.setting)
        return "/".join([*libm, self.dtype, self.form, self.scenario, *setting])

    def hash(self):
        form, arguments = FORMS[self.form]
        exact = {"sparse": "exact"} if self.scenario.startswith("exact") else {}
        run = Run(form, self.dtype, **exact, **{**arguments, **SETTINGS[self.setting]})
        return run.hash(SCENARIOS[self.scenario](run))


def covering(every, *choices):
    """One in `every` combinations, so chosen that any two choices meet where there is room."""
    for picked in itertools.product(*map(enumerate, choices)):
        if sum(place for place, _ in picked) % every == 0:
            yield Case(*(choice for _, choice in picked))


KERAS_FORMS = [name for name in FORMS if name.startswith("keras")]
FEW_FORMS = ["keras-plain-0", str(BOTH), "keras-centered-later"]
FEW_KINDS = ["mixed", "rows", "exact"]


def threaded():
    """Few, since their arrays are large and each needs a kernel of its own."""
    runs = [("float32", str(BOTH), scenario) for scenario in LARGE]
    runs += [("float32", "train-plain-0", "large"), ("bfloat16", str(BOTH), "large")]
    return [Case(*run, setting) for run in runs for setting in THREADS]


CASES = [
    *covering(6, DTYPES, FORMS, [*KINDS, *EXACT]),
    *covering(7, REAL, KERAS_FORMS, [*FEW_KINDS, "huge"], [*REAL_CLIPS, *CLIPS]),
    *covering(2, COMPLEX, FEW_FORMS, FEW_KINDS, CLIPS),
    *covering(3, ["float32", "float64"], FEW_FORMS, FEW_KINDS, [*RATES, *KERAS_RATES]),
    *covering(1, ["bfloat16"], ["train-plain-0.9"], ["mixed"], RATES),
    *covering(1, ["float64"], ["keras-plain-0"], ["mixed"], LIBM_RATES),
    *covering(4, DTYPES, FORMS, SIZES),
    *covering(7, DTYPES, FORMS, ["mixed", "exact"], EXTREMES),
    *covering(4, REAL, FORMS, ["nonfinite"], NONFINITE),
    *covering(3, REAL, FEW_FORMS, ["nonfinite"], CLIPPED_NONFINITE),
    *threaded(),
]


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text(encoding="utf-8"))


def is_slow(case):
    """Whether a case is left to the whole suite, since few other tests need its kernels."""
    return case.dtype != "float32" or case.form in map(str, SLOW_FORMS)


# From the end, as another worker begins with test_golden, and would compile the same kernels.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * is_slow(case), id=case.name)
        for case in reversed(CASES)
    ],
)
def test_bits_are_the_stored_ones(case, stored):
    assert case.hash() == stored[case.name]


def test_the_file_holds_these_cases_and_no_others(stored):
    assert sorted(stored) == sorted(case.name for case in CASES)


def test_threads_change_no_bit(stored):
    """As the file has it, whatever threads there are here."""
    for case in threaded():
        assert stored[case.name] == stored[case.name.replace("threads-2", "threads-1")]


if __name__ == "__main__":
    print(json.dumps({case.name: case.hash() for case in CASES}, indent=0, sort_keys=True))
