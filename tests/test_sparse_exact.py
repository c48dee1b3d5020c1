"""``sparse="exact"``: the dense rule's results at the cost of the rows that a gradient names.

The twin is rmsjit's own dense path, which test_rule.py compares with the reference.
"""

import contextlib
import copy
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rmsjit
from rmsjit import IndexedSlices
from rmsjit.state import clock
from rmsjit.steps import sparse
from strategies import (
    BOTH,
    COMPLEX,
    HALF,
    KERAS,
    TRAIN,
    Form,
    every_dtype,
    every_form,
    every_slot_set,
    random_array,
    same_bits,
    seeds,
    state_of,
    ulp,
    wide,
)

ROWS, ROW = 12, (3,)


class Pair:
    """A table trained in "exact" mode beside a copy trained with dense gradients.

    Parameters
    ----------
    form : Form
    dtype : str
        Of the table.
    twin_dtype : str, optional
        Of the copy; wider for half types, which a dense run rounds in every step.
    lay : callable
        Gives the table as it shall lie in memory.
    arguments
        Of both optimizers.
    """

    def __init__(self, form, dtype="float64", *, seed=0, twin_dtype=None, lay=np.copy, **arguments):
        self.rng = np.random.default_rng(seed)
        start = random_array(self.rng, (ROWS, *ROW), dtype, 1)
        self.table, self.twin = lay(start), start.astype(twin_dtype or dtype)
        self.scale = np.abs(wide(start))
        self.sparse = form.optimizer(sparse="exact", **arguments)
        self.dense = form.optimizer(**arguments)
        self.steps = 0

    @property
    def optimizers(self):
        return self.sparse, self.dense

    def slices(self, count=3):
        values = random_array(self.rng, (count, *ROW), self.table.dtype, 1)
        indices = self.rng.integers(0, ROWS, count)
        return IndexedSlices(values, indices, self.table.shape).coalesce()

    def step(self, gradient=None, view=lambda table: table):
        """Apply a gradient, by default a sparse one of a few rows, to both."""
        gradient = self.slices() if gradient is None else gradient
        table, twin = view(self.table), view(self.twin)
        self.sparse.apply_gradients([(gradient, table)])
        if isinstance(gradient, IndexedSlices):
            gradient = IndexedSlices(gradient.values, gradient.indices, twin.shape).to_dense()
        self.dense.apply_gradients([(gradient.astype(twin.dtype), twin)])
        self.steps += 1
        self.scale = np.maximum(self.scale, np.abs(wide(self.twin)))

    def check(self, rows=slice(None)):
        """Compare rows of the tables as they are; sync is the test's business."""
        self.compare("the table", self.table[rows], self.twin[rows], self.scale[rows])

    def check_slots(self):
        for name in self.sparse.get_slot_names():
            try:
                expected = np.asarray(self.dense.get_slot(self.twin, name))
            except KeyError:  # of a momentum that has just been set, until the next step
                continue
            got = np.asarray(self.sparse.get_slot(self.table, name))
            self.compare(name, got, expected, np.abs(wide(expected)).max())

    def check_all(self):
        self.sparse.sync()
        self.check()
        self.check_slots()

    def compare(self, name, got, expected, scale):
        assert got.dtype == self.table.dtype
        # Of each step a unit for the rounding, of complex ones more: see strategies.ULPS.
        units = (400 if self.table.dtype.name in COMPLEX else 2) * (self.steps + 1)
        limit = units * ulp(scale, self.table.dtype)
        error = np.abs(wide(got) - wide(expected))
        assert np.all(error <= limit), f"{name} is off by {np.max(error / limit)} of the limit"


# --- Long runs -------------------------------------------------------------------------------

LONG = 800  # steps, after which errors that add up would be seen


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_runs_are_those_of_the_dense_rule(form, dtype):
    pair = Pair(form, dtype)
    for _ in range(LONG):
        pair.step()
    assert not np.array_equal(pair.table, pair.twin)  # rows are behind
    pair.check_all()


@pytest.mark.long
@every_form
def test_very_long_runs_are_those_of_the_dense_rule(form):
    pair = Pair(form, "float64")
    for _ in range(20 * LONG):
        pair.step()
    pair.check_all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", COMPLEX)
def test_long_runs_of_complex_tables(dtype):
    pair = Pair(Form("train", centered=False, momentum=0.9), dtype, epsilon=1.0)
    for _ in range(LONG):
        pair.step()
    pair.check_all()


@pytest.mark.slow
@pytest.mark.parametrize("form", [*KERAS, TRAIN[3]], ids=str)
@pytest.mark.parametrize("dtype", HALF)
def test_long_runs_of_half_tables_lose_nothing_between_touches(form, dtype):
    """Against a twin in double precision: rows are rounded when touched, not at every step."""
    pair = Pair(form, dtype, twin_dtype="float64", epsilon=0.1)
    pair.step(random_array(pair.rng, pair.table.shape, dtype, 1))
    for _ in range(LONG):
        pair.step(pair.slices(0))
    pair.steps = 4
    pair.check_all()


@pytest.mark.slow
@every_form
def test_changing_hyperparameters(form):
    """Each step has its own, as callables or attributes."""
    rng = np.random.default_rng(1)
    names = ["learning_rate", "rho" if form.face == "keras" else "decay"]
    names += ["momentum"] * bool(form.momentum or form.face == "train")
    values = dict.fromkeys(names, 0.5)
    pair = Pair(form)
    settings = {name: (lambda name=name: values[name]) for name in names}
    rate = settings.pop("learning_rate")
    pair.sparse = form.optimizer(rate, sparse="exact", **settings)
    pair.dense = form.optimizer(rate, **settings)
    for _ in range(LONG):
        values.update((name, rng.choice([0.0, 0.3, 0.9, 0.99, 1.0])) for name in names)
        values["learning_rate"] = rng.uniform(0, 0.1)
        pair.step()
    pair.check_all()


@pytest.mark.slow
def test_hyperparameters_that_are_set():
    rng = np.random.default_rng(2)
    pair = Pair(BOTH)
    for _ in range(500):
        for name, high in (("learning_rate", 0.1), ("rho", 1.0), ("momentum", 1.0)):
            value = rng.uniform(0, high)
            for optimizer in pair.optimizers:
                setattr(optimizer, name, value)
        pair.step()
    pair.check_all()


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rho", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("face", ["keras", "train"])
def test_the_ends_of_the_ranges(face, rho, momentum):
    for centered in (False, True):
        pair = Pair(Form(face, centered, momentum), rho=rho)
        for _ in range(300):
            pair.step()
        pair.check_all()


@pytest.mark.parametrize("read_between", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_momentum_that_is_set_later(centered, read_between):
    pair = Pair(Form("keras", centered, 0))
    for momentum in (0.0, 0.9, 0.0, 0.5):
        for optimizer in pair.optimizers:
            optimizer.momentum = momentum
        if read_between:
            pair.sparse.sync()
            pair.check()
            pair.check_slots()
        for _ in range(50):
            pair.step()
    pair.check_all()


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_more_steps_than_the_clock_counts(longest, monkeypatch):
    monkeypatch.setattr(clock, "LONGEST", longest)
    pair = Pair(BOTH)
    for _ in range(100):
        pair.step()
        assert pair.sparse._store.find(pair.table).clock.now <= longest
    pair.check_all()


def test_the_clock_counts_in_numbers_that_are_large_enough():
    assert np.iinfo(clock.Clock(1).done.dtype).max >= clock.LONGEST


# --- The same bits where no row is behind ----------------------------------------------------


@every_slot_set
@every_dtype
def test_rows_that_are_named_in_every_step_are_those_of_rows_mode(form, dtype):
    rng = np.random.default_rng(3)
    tables = [random_array(rng, (5, 3), dtype, 1)] * 2
    tables = [table.copy() for table in tables]
    optimizers = [form.optimizer(sparse=mode) for mode in ("exact", "rows")]
    for _ in range(5):
        indices = rng.permutation([0, 0, 1, 2, 3, 3, 3, 4])
        slices = IndexedSlices(random_array(rng, (8, 3), dtype, 1), indices)
        for optimizer, table in zip(optimizers, tables, strict=True):
            optimizer.apply_gradients([(slices, table)])
        assert same_bits(*tables)
    assert state_of(optimizers[0], []) == state_of(optimizers[1], [])


@every_dtype
def test_threads_give_the_same_bits(dtype, always_parallel):
    results = []
    for count in (1, 2, 4):
        rng = np.random.default_rng(4)
        table = random_array(rng, (50, 5), dtype, 1)
        optimizer = BOTH.optimizer(sparse="exact", num_threads=count)
        for _ in range(6):
            values, indices = random_array(rng, (30, 5), dtype, 1), rng.integers(0, 50, 30)
            optimizer.apply_gradients([(IndexedSlices(values, indices), table)])
        results.append((table.tobytes(), state_of(optimizer, [table])))
    assert results[0] == results[1] == results[2]


# --- Reading ---------------------------------------------------------------------------------


def test_sync_brings_the_rows_that_are_asked_for():
    pair = Pair(BOTH)
    for _ in range(20):
        pair.step()
    behind = np.flatnonzero((pair.table != pair.twin).any(axis=1))
    assert len(behind) > 4
    before = pair.table.copy()
    pair.sparse.sync(pair.table, behind[[2, 0, 2]])
    pair.check(behind[[0, 2]])
    others = np.setdiff1d(np.arange(ROWS), behind[[0, 2]])
    assert same_bits(pair.table[others], before[others])
    pair.step()
    pair.sparse.sync(pair.table)
    pair.check()
    synced = pair.table.copy()
    pair.sparse.sync()
    pair.sparse.sync(pair.table, range(ROWS))
    assert same_bits(pair.table, synced)


@pytest.mark.parametrize(
    "indices", [[], [3], 3, (3, 3), np.uint8(3), np.array([[3], [4]]), rmsjit.Variable([3, 4])]
)
def test_sync_takes_indices_of_every_kind(indices):
    pair = Pair(BOTH)
    for _ in range(20):
        pair.step()
    pair.sparse.sync(pair.table, indices)
    pair.check(np.unique(np.asarray(indices, int)))


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([ROWS], IndexError, r"indices\[0\] is 12, but there are 12 rows"),
        ([3, -1], IndexError, r"indices\[1\] is -1, but there are 12 rows"),
        (np.array([2**64 - 1], np.uint64), IndexError, f"is {2**64 - 1}"),
        ([0.5], TypeError, "indices must be integers, got dtype float64"),
        ([True], TypeError, "indices must be integers, got dtype bool"),
    ],
)
def test_sync_refuses_what_is_no_row(indices, error, message):
    pair = Pair(BOTH)
    for _ in range(5):
        pair.step()
    before = pair.table.copy()
    with pytest.raises(error, match=message):
        pair.sparse.sync(pair.table, indices)
    assert same_bits(pair.table, before)
    pair.check_all()


def test_sync_refuses_rows_of_a_variable_without_any():
    scalar, optimizer = np.ones(()), BOTH.optimizer(sparse="exact")
    optimizer.apply_gradients([(np.ones(()), scalar)])
    with pytest.raises(ValueError, match=r"indices must be left out .* without rows, got \[0\]"):
        optimizer.sync(scalar, [0])
    optimizer.sync(scalar)


def test_sync_knows_nothing_of_other_variables():
    optimizer = BOTH.optimizer(sparse="exact")
    optimizer.sync()
    optimizer.sync(np.ones((3, 2)))
    optimizer.sync(np.ones((3, 2)), [1])


READS = {
    "sync": lambda optimizer, table: optimizer.sync(),
    "sync of the table": lambda optimizer, table: optimizer.sync(table),
    "sync of a view": lambda optimizer, table: optimizer.sync(table.reshape(-1)),
    "get_slot": lambda optimizer, table: optimizer.get_slot(table, "rms"),
    "get_slot of a view": lambda optimizer, table: optimizer.get_slot(table.T, "mg"),
    "variables": lambda optimizer, table: optimizer.variables(),
    "pickle": lambda optimizer, table: pickle.dumps(optimizer),
    "deepcopy": lambda optimizer, table: copy.deepcopy(optimizer),
}
KERAS_READS = {
    "weights": lambda optimizer, table: optimizer.weights,
    "get_weights": lambda optimizer, table: optimizer.get_weights(),
    "set_weights": lambda optimizer, table: optimizer.set_weights(optimizer.get_weights()),
}


@pytest.mark.parametrize(
    ("form", "read"),
    [(BOTH, read) for read in (*READS, *KERAS_READS)] + [(TRAIN[3], read) for read in READS],
    ids=str,
)
def test_reading_the_state_syncs_first(form, read):
    pair = Pair(form)
    for _ in range(3):
        for _ in range(20):
            pair.step()
        assert not np.array_equal(pair.table, pair.twin)
        (READS | KERAS_READS)[read](pair.sparse, pair.table)
        pair.check()
        pair.check_slots()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))]
)
def test_copies_go_on_by_themselves(duplicate):
    pair = Pair(BOTH)
    for _ in range(20):
        pair.step()
    pair.sparse, pair.table = duplicate((pair.sparse, pair.table))
    for _ in range(20):
        pair.step()
    pair.check_all()


def test_weights_that_are_set_are_of_this_step():
    """What rows had missed before then does not count any more."""
    pair = Pair(BOTH)
    for _ in range(20):
        pair.step()
    weights = [np.abs(weight) for weight in pair.dense.get_weights()]
    for optimizer in pair.optimizers:
        optimizer.set_weights(weights)
    pair.check()
    for _ in range(20):
        pair.step()
    pair.check_all()


# --- Any order of events ---------------------------------------------------------------------


def step_dense(pair):
    pair.step(random_array(pair.rng, pair.table.shape, pair.table.dtype, 1))


def step_without_gradient(pair):
    """The dense rule leaves a variable without a gradient alone, and so does its clock."""
    other = np.ones(2)
    for optimizer, table in zip(pair.optimizers, (pair.table, pair.twin), strict=True):
        with warnings.catch_warnings(action="ignore"):
            optimizer.apply_gradients([(np.ones(2), other), (None, table)])


def step_elsewhere(pair):
    other = np.ones((3, 2))
    for optimizer in pair.optimizers:
        optimizer.apply_gradients([(np.ones((3, 2)), other)])


def step_without_rows(pair):
    pair.step(pair.slices(0))


def step_with_an_error(pair):
    wrong = IndexedSlices(np.ones((2, *ROW)), [0, ROWS])
    with pytest.raises(IndexError):
        pair.sparse.apply_gradients([(pair.slices(), pair.table), (wrong, pair.table)])


def step_twice_in_one_call(pair):
    slices = [pair.slices(), pair.slices()]
    pair.sparse.apply_gradients([(one, pair.table) for one in slices])
    pair.dense.apply_gradients([(one.to_dense(), pair.twin) for one in slices])
    pair.steps += 2


def step_sparse_then_dense_in_one_call(pair):
    slices, gradient = pair.slices(), random_array(pair.rng, pair.table.shape, "float64", 1)
    pair.sparse.apply_gradients([(slices, pair.table), (gradient, pair.table)])
    pair.dense.apply_gradients([(slices.to_dense(), pair.twin), (gradient, pair.twin)])
    pair.steps += 2


def step_dense_then_sparse_in_one_call(pair):
    slices, gradient = pair.slices(), random_array(pair.rng, pair.table.shape, "float64", 1)
    pair.sparse.apply_gradients([(gradient, pair.table), (slices, pair.table)])
    pair.dense.apply_gradients([(gradient, pair.twin), (slices.to_dense(), pair.twin)])
    pair.steps += 2


def step_of(view):
    def step(pair):
        shape = view(pair.twin).shape
        values = random_array(pair.rng, (2, *shape[1:]), "float64", 1)
        indices = pair.rng.choice(shape[0], 2, replace=False)
        pair.step(IndexedSlices(values, indices, shape), view)

    return step


def read_some_rows(pair):
    rows = pair.rng.integers(0, ROWS, 3)
    pair.sparse.sync(pair.table, rows)
    pair.check(rows)


def read_some_rows_of(view):
    def read(pair):
        rows = pair.rng.integers(0, len(view(pair.twin)), 2)
        pair.sparse.sync(view(pair.table), rows)
        got, expected, scale = (view(a)[rows] for a in (pair.table, pair.twin, pair.scale))
        pair.compare("rows of a view", got, expected, scale)

    return read


def read_everything(pair):
    pair.check_all()


def set_something(pair):
    name, high = [("learning_rate", 0.1), ("rho", 1.0), ("momentum", 1.0)][pair.rng.integers(3)]
    value = pair.rng.uniform(0, high)
    for optimizer in pair.optimizers:
        setattr(optimizer, name, value)


def pickle_both(pair):
    pair.sparse, pair.table = pickle.loads(pickle.dumps((pair.sparse, pair.table)))


EVENTS = {
    "step": Pair.step,
    "several steps": lambda pair: [pair.step() for _ in range(20)],
    "dense": step_dense,
    "none": step_without_gradient,
    "elsewhere": step_elsewhere,
    "no rows": step_without_rows,
    "error": step_with_an_error,
    "twice": step_twice_in_one_call,
    "sparse, dense": step_sparse_then_dense_in_one_call,
    "dense, sparse": step_dense_then_sparse_in_one_call,
    "half rows": step_of(lambda table: table.reshape(ROWS // 2, -1)),
    "deep rows": step_of(lambda table: table.reshape(ROWS, 3, 1)),
    "transposed": step_of(lambda table: table.T),
    "upside down": step_of(lambda table: table[::-1]),
    "some rows": read_some_rows,
    "some half rows": read_some_rows_of(lambda table: table.reshape(ROWS // 2, -1)),
    "some rows upside down": read_some_rows_of(lambda table: table[::-1]),
    "everything": read_everything,
    "set": set_something,
    "pickle": pickle_both,
}


def play(pair, events):
    pair.step()  # so that the optimizer knows the table itself, and not only a view of it
    for event in events:
        EVENTS[event](pair)
    pair.check_all()


@pytest.mark.slow
@pytest.mark.parametrize("form", [KERAS[0], KERAS[1], BOTH], ids=str)
@settings(max_examples=60)
@given(seed=seeds, events=st.lists(st.sampled_from(list(EVENTS)), min_size=1, max_size=25))
@example(0, ["step", "several steps", "half rows", "step"])
@example(0, ["several steps", "upside down", "step", "upside down"])
@example(0, ["several steps", "some half rows", "some rows upside down"])
@example(0, ["step", "set", "set", "set", "everything", "step"])
def test_any_order_of_events(form, seed, events):
    play(Pair(form, seed=seed), events)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("form", [KERAS[0], BOTH], ids=str)
def test_every_event_among_steps(form, event):
    play(Pair(form), ["several steps", event, "several steps", event, event, "step"])


SQUARE_VIEWS = {
    "transposed": lambda table: table.T,
    "upside down": lambda table: table[::-1],
    "mirrored": lambda table: table[:, ::-1],
    "deep": lambda table: table.reshape(4, 2, 2),
    "halved": lambda table: table.reshape(8, 2),
}


@pytest.mark.parametrize("name", SQUARE_VIEWS)
def test_views_of_a_square_table(name):
    """A view may have as many rows as the table, and they be other rows."""
    results = []
    for mode in ("exact", "dense"):
        rng = np.random.default_rng(5)
        table = rng.normal(size=(4, 4))
        optimizer = BOTH.optimizer(sparse="exact")
        for number in range(20):
            view = SQUARE_VIEWS[name](table) if number % 3 else table
            values = rng.normal(size=(1, *view.shape[1:]))
            slices = IndexedSlices(values, rng.integers(0, len(view), 1), view.shape)
            gradient = slices if mode == "exact" else slices.to_dense()
            optimizer.apply_gradients([(gradient, view)])
        optimizer.sync()
        results.append(table)
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("shape", [(6, 6), (36, 1), (4, 9)])
def test_one_step_of_two_views_of_a_table_is_refused(shape, steps):
    """A clock counts the rows of one view."""
    table, optimizer = np.ones((12, 3)), BOTH.optimizer(sparse="exact")
    slices = IndexedSlices(np.ones((1, 3)), [11])
    for _ in range(steps):
        optimizer.apply_gradients([(slices, table)])
    before = state_of(optimizer, [table]), table.copy()
    view = table.reshape(shape)
    other = IndexedSlices(np.ones((1, shape[1])), [1])
    with pytest.raises(ValueError, match="variable 1 must have the rows of variable 0 with sparse"):
        optimizer.apply_gradients([(slices, table), (other, view)])
    assert same_bits(table, before[1])
    assert state_of(optimizer, [table]) == before[0]
    optimizer.apply_gradients([(slices, table), (slices, table)])
    optimizer.apply_gradients([(other, view)])


@pytest.mark.parametrize(
    "lay",
    [
        np.asfortranarray,
        lambda table: np.repeat(table, 2, axis=0)[::2],
        lambda table: np.repeat(table, 2, axis=1)[:, ::2],
        lambda table: table[::-1, ::-1].copy()[::-1, ::-1],
        rmsjit.Variable,
    ],
    ids=["F-ordered", "strided rows", "strided columns", "negative strides", "Variable"],
)
def test_every_layout(lay):
    pair = Pair(BOTH, lay=lay)
    for _ in range(300):
        pair.step()
    if isinstance(pair.table, rmsjit.Variable):
        pair.sparse.sync(pair.table, [0, 3])
        pair.table = pair.table.array
        pair.check([0, 3])
    pair.check_all()


@pytest.mark.parametrize(
    "clips", [{"clipvalue": 0.5}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}], ids=str
)
def test_clipped_gradients(clips):
    pair = Pair(BOTH, **clips)  # whose slices name no row twice, so that both norms are one
    for _ in range(300):
        pair.step()
    pair.check_all()


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_step_that_is_refused_is_none(nonfinite):
    pair = Pair(BOTH, nonfinite=nonfinite)
    for _ in range(20):
        pair.step()
        refused = contextlib.nullcontext()
        if nonfinite == "raise":
            refused = pytest.raises(FloatingPointError)
        with refused:
            slices = IndexedSlices(np.full((1, *ROW), np.nan), [0])
            pair.sparse.apply_gradients([(slices, pair.table)])
    pair.check_all()


# --- Numbers at the edge ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e25), ("float16", 2000.0)])
def test_a_square_that_overflows_does_not_become_nan(dtype, large):
    """A row whose mean square is infinite may wait for long, and then be named again."""
    table, twin = np.ones((2, 2), dtype), np.ones((2, 2), dtype)
    optimizers = [rmsjit.RMSprop(0.01, sparse="exact") for _ in range(2)]
    for row, value in [(0, large), *[(1, 1.0)] * 1200, (0, 1.0)]:
        slices = IndexedSlices(np.full((1, 2), value, dtype), [row], (2, 2))
        optimizers[0].apply_gradients([(slices, table)])
        optimizers[1].apply_gradients([(slices.to_dense(), twin)])
    optimizers[0].sync()
    for optimizer, variable in zip(optimizers, (table, twin), strict=True):
        assert np.isfinite(variable).all()
        assert not np.isnan(optimizer.get_slot(variable, "rms")).any()
    np.testing.assert_allclose(table[0], 1, atol=0.1)


def test_factors_that_underflow_raise_nothing():
    """Not even where the user has NumPy raise."""
    pair = Pair(BOTH, "float32", rho=0.5)
    with np.errstate(all="raise"):
        for _ in range(1200):
            pair.sparse.apply_gradients(
                [(IndexedSlices(np.ones((1, *ROW), "f4"), [0]), pair.table)]
            )
        pair.sparse.sync()
    assert np.isfinite(pair.table).all()


# --- Cost ------------------------------------------------------------------------------------


@pytest.fixture
def updated(monkeypatch):
    """How many rows each kernel that runs from now on updates."""
    counts = []

    update, catch_up = sparse.SparseGroup._update, sparse.Table.catch_up_calls

    def noting_update(self, addresses, numbers, occurrences, *others):
        counts.append(occurrences.distinct)
        return update(self, addresses, numbers, occurrences, *others)

    def noting_catch_up(self, clock, numbers, bins):
        behind = clock.done != clock.now
        counts.append(np.count_nonzero(behind if numbers is None else behind[numbers]))
        return catch_up(self, clock, numbers, bins)

    monkeypatch.setattr(sparse.SparseGroup, "_update", noting_update)
    monkeypatch.setattr(sparse.Table, "catch_up_calls", noting_catch_up)
    return counts


def test_a_step_costs_the_rows_that_are_named(updated):
    rng = np.random.default_rng(6)
    table, optimizer = np.ones((1000, 3)), BOTH.optimizer(sparse="exact")
    for count in (5, 300, 1, 0, 40):
        indices = rng.permutation(1000)[:count]
        slices = IndexedSlices(np.ones((2 * count, 3)), np.concatenate([indices, indices]))
        optimizer.apply_gradients([(slices, table)])
        assert updated == [count] * bool(count)
        updated.clear()
    optimizer.sync(table, [1, 2, 2, 3])
    assert sum(updated) <= 3
    updated.clear()
    optimizer.sync()
    assert 900 <= sum(updated) <= 1000
    updated.clear()
    optimizer.sync()
    optimizer.get_slot(table, "rms")
    assert sum(updated) == 0


def test_rows_are_brought_up_once(updated):
    table, optimizer = np.ones((1000, 3)), BOTH.optimizer(sparse="exact")
    for _ in range(3):
        optimizer.apply_gradients([(IndexedSlices(np.ones((1, 3)), [0]), table)])
    updated.clear()
    optimizer.sync(table, range(10))
    assert sum(updated) == 9  # row 0 is up to date
    optimizer.sync(table, range(20))
    assert sum(updated) == 19


@pytest.mark.parametrize("event", ["dense", "longest"])
def test_the_whole_table_is_brought_up_where_it_must(event, updated, monkeypatch):
    table, optimizer = np.ones((1000, 3)), BOTH.optimizer(sparse="exact")
    slices = IndexedSlices(np.ones((1, 3)), [0])
    if event == "longest":
        monkeypatch.setattr(clock, "LONGEST", 3)
    for _ in range(3):
        optimizer.apply_gradients([(slices, table)])
    assert updated == [1, 1, 1]
    optimizer.apply_gradients([(slices if event == "longest" else np.ones((1000, 3)), table)])
    assert updated == [1, 1, 1, 999] + [1] * (event == "longest")


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_table_with_a_sparse_and_a_dense_gradient(order):
    table, dense = np.zeros((3, 2)), np.zeros((3, 2))
    opt, alone = rmsjit.RMSprop(0.1, sparse="exact"), rmsjit.RMSprop(0.1)
    whole = np.zeros((3, 2))
    whole[1] = 1.0
    pairs = [(IndexedSlices(np.ones((1, 2)), [1]), table), (np.ones((3, 2)), table)][::order]
    opt.apply_gradients(pairs)
    opt.sync()
    alone.apply_gradients([(whole, dense), (np.ones((3, 2)), dense)][::order])
    np.testing.assert_allclose(table, dense, rtol=1e-12)


def test_a_table_without_rows_gets_some():
    table, opt = np.zeros((0, 2)), rmsjit.RMSprop(0.1, sparse="exact")
    opt.apply_gradients([(IndexedSlices(np.zeros((0, 2)), np.zeros(0, int)), table)])
    larger = np.zeros((3, 2))
    opt.resize_rows(table, larger)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 2)), [1]), larger)])
    assert (larger != 0).sum() == 2
    assert opt.get_slot(larger, "rms").shape == (3, 2)
