"""Every kernel as it comes from the cache, tried on a few elements against NumPy."""

import ast
import ctypes
import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rmsjit.arrays.dtypes import kinds_of, precision_of
from rmsjit.arrays.layout import address_of
from rmsjit.kernels import (
    act,
    adding,
    converting,
    copies,
    dense,
    driver,
    following,
    headers,
    loader,
    norms,
    overlap,
    rows,
    tensors,
    touching,
)
from rmsjit.kernels.views import words as words_at
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers, packed
from rmsjit.rule.presets import keras_legacy
from rmsjit.runtime import cache, forks
from rmsjit.runtime.flags import FLAGS, INLINED
from rmsjit.state import clock as clocks
from strategies import COMPLEX, DTYPES, HALF, every_dtype, wide

COUNT = 45  # enough to fill vectors and leave a rest
LEARNING_RATES = (0.5, 0.25)  # of two groups
NUMBERS = StepNumbers(LEARNING_RATES[0], rho=0.75, momentum=0.5, epsilon=0.25)
CLIP, FACTOR = 1.25, 0.5
TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}  # a wrong rule is off by far more
FORMS = {
    "plain": keras_legacy(centered=False, momentum=False),
    "centered": keras_legacy(centered=True, momentum=False),
    "momentum": keras_legacy(centered=False, momentum=True),
    "both": keras_legacy(centered=True, momentum=True),
}
BOTH = FORMS["both"]

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
all_or_in_parallel = pytest.mark.parametrize("bins", [1, 2], ids=["serial", "parallel"])


HELPERS = {"_over_bins", "_of_objects"}


def public_loaders():
    return {name for name, value in vars(loader).items() if hasattr(value, "cache_clear")}


def compiling_functions():
    """The functions of the loader that compile something."""
    for function in ast.parse(inspect.getsource(loader)).body:
        if isinstance(function, ast.FunctionDef):
            called = {getattr(node, "id", "") for node in ast.walk(function)}
            if called & {"compile_kernel", *HELPERS}:
                yield function.name


def tried_here():
    for node in ast.walk(ast.parse(Path(__file__).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fresh":
            yield node.args[0].value


def test_every_kernel_is_tried_here():
    assert set(compiling_functions()) - HELPERS == public_loaders()
    assert set(tried_here()) == public_loaders()


@pytest.fixture
def fresh(monkeypatch):
    """A kernel by its function in the loader, as a process gets it that has not compiled it."""
    from numba.core import event

    monkeypatch.setenv("RMSJIT_CACHE", "1")

    def load(name, *arguments):
        assert getattr(loader, name)(*arguments) is not None  # compiled, now or earlier
        monkeypatch.setattr(cache, "_kernels", {})  # those known are kept until the test is over
        with event.install_recorder("numba:compile") as recorder:
            kernel = getattr(loader, name).__wrapped__(*arguments)
        assert not recorder.buffer
        return kernel

    return load


def called(kernel, *words):
    """Call a kernel with a block of words, which it must not change."""
    return with_block(kernel.call, words)


def all_bins(kernel, *words):
    """Have all bins done, on one thread or, if there are several, on as many."""
    if words[0] > 1:
        return with_block(partial(loader.run_on_threads().call, kernel.address), words)
    return with_block(lambda address: kernel.call(address, driver.ALL), words)


def with_block(call, words):
    block = np.array([*words], np.int64)
    before = block.copy()
    result = call(address_of(block))
    assert np.array_equal(block, before)
    return result


# --- the same in NumPy ----------------------------------------------------------------------


def wave(period, dtype, count=COUNT):
    """Quarters, positive and negative, exact in every dtype; complex ones with both parts."""
    real = (np.arange(count) % period - period // 2) / 4
    return (real * (1 + 0.5j) if dtype in COMPLEX else real).astype(dtype)


def state_of(form, dtype, count=COUNT):
    """A variable and its slots, in the order in which kernels take them."""
    start = {"mg": wave(5, dtype), "momentum": wave(3, dtype)}
    start["rms"] = (2 + np.abs(wave(7, dtype))).astype(dtype)
    return {"variable": wave(13, dtype)} | {n: start[n] for n in form.arithmetic.slot_names}


def updated(form, state, g, lr):
    """The rule, of which `rmsjit.kernels.rule` says more, in double precision."""
    rho, epsilon = NUMBERS.rho, NUMBERS.epsilon
    new = {name: wide(array) for name, array in state.items()}
    new["rms"] = variance = rho * new["rms"] + (1 - rho) * g * g
    if form.centered:
        new["mg"] = rho * new["mg"] + (1 - rho) * g
        variance = variance - new["mg"] ** 2
    inside = form.epsilon == "inside"
    step = lr * g / (np.sqrt(variance + epsilon) if inside else np.sqrt(variance) + epsilon)
    if form.has_momentum:
        step = new["momentum"] = NUMBERS.momentum * new["momentum"] + step
    new["variable"] = new["variable"] - step
    return new


def in_range(g, dtype):
    return wide(g) if dtype in COMPLEX else np.clip(wide(g), -CLIP, CLIP)


def assert_agree(state, expected):
    for name, array in state.items():
        tolerance = TOLERANCES.get(str(array.dtype), 1e-5)
        np.testing.assert_allclose(wide(array), expected[name], tolerance, tolerance, err_msg=name)


def kinds_for(form, dtype):
    return kinds_of(precision_of(np.dtype(dtype)), (None,) * len(form.slots))


def numbers_for(form, dtype, *, clipped=True, rates=LEARNING_RATES):
    """A row of numbers for each group, which differ in their learning rate."""
    bound = CLIP if clipped and dtype not in COMPLEX else np.inf
    computing = kinds_for(form, dtype).computing
    return np.concatenate(
        [packed(NUMBERS._replace(learning_rate=rate), bound, computing, form) for rate in rates]
    )


# --- the rule -------------------------------------------------------------------------------


def assert_updates_whole_variables(kernel, form, dtype, clipped, bins):
    """Three pieces of two variables of two groups, one variable not in its first element."""
    states, gradients = [state_of(form, dtype) for _ in range(2)], [wave(11, dtype), wave(9, dtype)]
    expected = []
    for state, g, rate in zip(states, gradients, LEARNING_RATES, strict=True):
        wanted = updated(form, state, in_range(g, dtype) * FACTOR if clipped else wide(g), rate)
        expected.append(wanted)
    for name, array in states[1].items():
        expected[1][name][:3] = wide(array)[:3]  # before the piece
    pieces = np.array([[0, 0, 22, 0], [0, 22, COUNT - 22, 0], [1, 3, COUNT - 3, 1]])
    cuts = np.array([0, 3] if bins == 1 else [0, 1, 3])
    table = np.array([[address_of(array) for array in state.values()] for state in states])
    addresses = np.array([address_of(g) for g in gradients])
    numbers = numbers_for(form, dtype, clipped=clipped)
    scales = np.full(2, FACTOR, numbers.dtype)
    words = {
        dense.BINS: bins,
        dense.CUTS: address_of(cuts),
        dense.PIECES: address_of(pieces),
        dense.ADDRESSES: address_of(table),
        dense.COLUMNS: table.shape[1],
        dense.GRADIENTS: address_of(addresses),
        dense.NUMBERS: address_of(numbers),
        dense.SCALES: address_of(scales),
    }
    assert all_bins(kernel, *in_order(words, dense.WORDS)) == 0
    for state, wanted in zip(states, expected, strict=True):
        assert_agree(state, wanted)


def in_order(words, count):
    """Words by their positions; those that are not given are zero."""
    assert set(words) <= set(range(count))
    return [words.get(position, 0) for position in range(count)]


@pytest.mark.parametrize("clipped", [False, True], ids=["as they are", "clipped"])
@every_form
@every_dtype
def test_dense(fresh, dtype, form, clipped):
    kernel = fresh("update_dense", form.arithmetic, kinds_for(form, dtype), clipped)
    assert_updates_whole_variables(kernel, form, dtype, clipped, 1)


@every_dtype
def test_dense_in_parallel(fresh, dtype):
    kernel = fresh("update_dense", BOTH.arithmetic, kinds_for(BOTH, dtype), True)
    assert_updates_whole_variables(kernel, BOTH, dtype, True, 2)


def test_slots_of_another_dtype(fresh):
    """As the averages of a half type in single precision."""
    kinds = kinds_of(precision_of(np.dtype(np.float16)), ("float32",))
    form = FORMS["plain"]
    kernel = fresh("update_dense", form.arithmetic, kinds, True)
    state, g = state_of(form, "float16"), wave(11, "float16")
    state["rms"] = (state["rms"] + 1 / 4096).astype(np.float32)  # no float16
    expected = updated(form, state, in_range(g, "float16") * FACTOR, LEARNING_RATES[0])
    cuts, pieces = np.array([0, 1]), np.array([[0, 0, COUNT, 0]])
    table, numbers = np.array([*map(address_of, state.values())]), numbers_for(form, "float16")
    gradients, scales = np.array([address_of(g)]), np.full(1, FACTOR, np.float32)
    memory = {
        dense.CUTS: cuts,
        dense.PIECES: pieces,
        dense.ADDRESSES: table,
        dense.GRADIENTS: gradients,
        dense.NUMBERS: numbers,
        dense.SCALES: scales,
    }
    words = {word: address_of(array) for word, array in memory.items()}
    words |= {dense.BINS: 1, dense.COLUMNS: len(table)}
    all_bins(kernel, *in_order(words, dense.WORDS))
    assert np.allclose(state["rms"], expected["rms"], 1e-6)
    assert np.allclose(wide(state["variable"]), expected["variable"], 1e-3)


def rows_of(array, width):
    return wide(array).reshape(-1, width)


@pytest.mark.parametrize("exact", [False, True], ids=["lazy", "exact"])
@pytest.mark.parametrize(("form", "bins"), [(BOTH, 1), (FORMS["plain"], 1), (BOTH, 2)])
@every_dtype
def test_rows(fresh, dtype, form, exact, bins):
    """A gradient of the rows 2, 0, 2 of three; in step 2, which row 0 comes to from step 0."""
    kinds, width = kinds_for(form, dtype), COUNT // 3
    kernel = fresh("update_rows", form.arithmetic, kinds, exact)
    state, g = state_of(form, dtype), wave(11, dtype)
    first, second, third = rows_of(in_range(g, dtype) * FACTOR, width)
    clock, done = clock_of(3, [0, 0, 1])
    start = {name: rows_of(array, width).copy() for name, array in state.items()}
    if exact:
        start = {name: array.copy() for name, array in start.items()}
        for name, array in lapsed(form, {n: a[:1] for n, a in start.items()}).items():
            start[name][:1] = array
    gradient = np.stack([second, np.zeros(width), first + third])
    expected = updated(form, start, gradient, LEARNING_RATES[0])
    for name, array in expected.items():
        array[1] = rows_of(state[name], width)[1]  # which the gradient does not name
    numbers = numbers_for(form, dtype, rates=LEARNING_RATES[:1])
    indices, starts = np.array([2, 0, 2]), np.array([0, 2, 3], np.int32)
    order, cuts = np.array([0, 2, 1], np.int32), np.zeros(bins + 1, np.int64)
    table, factor = np.array([*map(address_of, state.values())]), np.full(1, FACTOR, numbers.dtype)
    totals = np.zeros((bins, width + 1), np.dtype(kinds.total))
    words = {
        rows.BINS: bins,
        rows.INDICES: address_of(indices),
        rows.STARTS: address_of(starts),
        rows.ORDER: address_of(order),
        rows.DISTINCT: 2,
        rows.CUTS: address_of(cuts),
        rows.VALUES: address_of(g),
        rows.TABLE: address_of(table),
        rows.WIDTH: width,
        rows.NUMBERS: address_of(numbers),
        rows.FACTOR: address_of(factor),
        rows.TOTALS: address_of(totals),
        rows.TOTAL_WIDTH: width + 1,
        rows.CLOCK: address_of(clock) if exact else 0,
    }
    assert all_bins(kernel, *in_order(words, rows.WORDS)) == 0
    assert_agree(state, {name: array.reshape(-1) for name, array in expected.items()})
    assert done.tolist() == ([2, 0, 2] if exact else [0, 0, 1])
    assert cuts[0] == 0
    assert cuts[-1] == 2


# --- clocks ---------------------------------------------------------------------------------

DECAY, CARRY, DRIFT, KEPT = 0.25, 0.5, 0.75, 0.5
CAPACITY = 5
lapse_arrays = []


def clock_of(count, done, now=1):
    """The words of a clock after a step, its rows brought to some step; and these steps."""
    lapses = np.zeros((clocks.LAPSE_ROWS, CAPACITY))
    lapses[:, 0] = DECAY, CARRY, DRIFT, 1.0
    lapses[:, 1] = 1.0, 1.0, 0.0, 1.0
    lapse_arrays[:] = [lapses]  # keeps the memory
    done = np.array(done, np.uint16)
    words = {
        clocks.NOW: now,
        clocks.CAPACITY: CAPACITY,
        clocks.DONE: address_of(done),
        clocks.LAPSES: address_of(lapses),
        clocks.ROWS: count,
    }
    return np.array(in_order(words, 5), np.int64), done


def lapsed(form, state, kept=1.0):
    """What has become of a variable and its slots over the steps that a clock counts."""
    new = {name: wide(array) for name, array in state.items()}
    new["variable"] = new["variable"] * kept
    if form.has_momentum:
        new["variable"] = new["variable"] - DRIFT * new["momentum"]
        new["momentum"] = CARRY * new["momentum"]
    for name in ("rms", "mg"):
        if name in new:
            new[name] = DECAY * new[name]
    return new


@pytest.mark.parametrize("named", [True, False], ids=["some rows", "all rows"])
@pytest.mark.parametrize(("form", "bins"), [(BOTH, 1), (FORMS["plain"], 1), (BOTH, 2)])
@every_dtype
def test_catching_up(fresh, dtype, form, bins, named):
    width = COUNT // 3
    kernel = fresh("catch_up_rows", form.arithmetic, kinds_for(form, dtype))
    state = state_of(form, dtype)
    before = {name: rows_of(array, width).copy() for name, array in state.items()}
    clock, done = clock_of(3, [0, 0, 1])
    expected = lapsed(form, before)
    for name, array in expected.items():
        array[2] = before[name][2]  # up to date
        if named:
            array[0] = before[name][0]
    table, behind = np.array([*map(address_of, state.values())]), np.array([2, 1])
    words = {
        rows.BINS: bins,
        rows.BEHIND: address_of(behind) if named else 0,
        rows.BEHIND_COUNT: 2 if named else 3,
        rows.CATCH_TABLE: address_of(table),
        rows.CATCH_WIDTH: width,
        rows.CATCH_CLOCK: address_of(clock),
    }
    assert all_bins(kernel, *in_order(words, rows.CATCH_UP_WORDS)) == 0
    assert_agree(state, {name: array.reshape(-1) for name, array in expected.items()})
    assert done.tolist() == ([0, 1, 1] if named else [1, 1, 1])


@every_dtype
def test_catching_up_with_weight_decay(fresh, dtype):
    form = Form.with_slots("rms", "momentum", weight_decay="decoupled")
    kernel = fresh("catch_up_rows", form.arithmetic, kinds_for(form, dtype))
    state = state_of(form, dtype)
    clock, done = clock_of(1, [0])
    lapse_arrays[0][rows.KEPT, 0] = KEPT
    expected = lapsed(form, state, KEPT)
    table = np.array([*map(address_of, state.values())])
    all_bins(kernel, 1, 0, 1, address_of(table), COUNT, address_of(clock))
    assert_agree(state, expected)
    assert done[0] == 1


def test_ticking(fresh):
    clock, _ = clock_of(3, [0, 0, 1])
    (lapses,) = lapse_arrays
    lapses[rows.KEPT, 0] = KEPT
    rho, momentum, keep, move = numbers = np.array([0.75, 0.125, 0.875, 0.5])
    all_bins(fresh("tick"), 1, address_of(clock), address_of(numbers))
    assert clock[clocks.NOW] == 2
    carry = CARRY * momentum
    assert lapses[:, 0].tolist() == [DECAY * rho, carry, DRIFT * keep + carry * move, KEPT * keep]
    assert lapses[:, 1].tolist() == [rho, momentum, momentum * move, keep]
    assert lapses[:, 2].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert not lapses[:, 3:].any()


def test_what_is_negligible_is_forgotten(fresh):
    clock, _ = clock_of(3, [0, 0, 1])
    numbers = np.array([1e-301, 1e-301, 1.0, 1.0])
    all_bins(fresh("tick"), 1, address_of(clock), address_of(numbers))
    assert lapse_arrays[0][: rows.DRIFT, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("behind", [False, True])
def test_resetting(fresh, behind):
    """Unless a row is behind."""
    clock, done = clock_of(3, [1, 1, 0 if behind else 1])
    before = lapse_arrays[0].copy()
    all_bins(fresh("reset"), 1, address_of(clock), 0)
    if behind:
        assert (clock[clocks.NOW], done.tolist()) == (1, [1, 1, 0])
        assert np.array_equal(lapse_arrays[0], before)
    else:
        assert (clock[clocks.NOW], done.tolist()) == (0, [0, 0, 0])
        assert lapse_arrays[0][:, 0].tolist() == [1.0, 1.0, 0.0, 1.0]


# --- norms ----------------------------------------------------------------------------------


@all_or_in_parallel
@pytest.mark.parametrize("dtype", [*HALF, "float32", "float64"])
def test_norms(fresh, dtype, bins):
    """Of three gradients, one of them in two pieces and one with an infinity."""
    precision = precision_of(np.dtype(dtype))
    kernel = fresh("sums_of_squares", precision.real, precision.computing)
    gradients = [wave(11, dtype, 100), wave(9, dtype), np.append(wave(5, dtype), np.inf)]
    gradients[2] = gradients[2].astype(dtype)
    pieces = np.array([[0, 0, 64, 0], [0, 64, 36, 0], [1, 0, COUNT, 0], [2, 0, COUNT + 1, 0]])
    cuts = np.array([0, 4] if bins == 1 else [0, 3, 4])
    addresses, bound = (
        np.array([*map(address_of, gradients)]),
        np.array([CLIP], precision.computing),
    )
    sums, totals = np.empty((4, 2)), np.zeros((3, 2))
    words = {
        norms.BINS: bins,
        norms.CUTS: address_of(cuts),
        norms.PIECES: address_of(pieces),
        norms.GRADIENTS: address_of(addresses),
        norms.BOUND: address_of(bound),
        norms.SUMS: address_of(sums),
        norms.TOTALS: address_of(totals),
    }
    assert all_bins(kernel, *in_order(words, norms.WORDS)) == 0
    squares = [np.sum(np.clip(wide(g), -CLIP, CLIP) ** 2) for g in gradients]
    assert totals[:, 0].tolist() == squares  # quarters squared are exact
    assert totals[:2, 1].tolist() == [0.0, 0.0]
    assert np.isnan(totals[2, 1])


# --- copies ---------------------------------------------------------------------------------


@all_or_in_parallel
@pytest.mark.parametrize("dtype", ["uint8", *DTYPES])
def test_strided_copies(fresh, dtype, bins):
    kernel = fresh("copy_strided")
    whole = (np.arange(4 * 5 * 6) % 100).reshape(4, 5, 6).astype(dtype)
    array, numbers = whole[::-1, 1::2].transpose(2, 0, 1), np.array([5, 0, 2])
    for named in (None, numbers):
        chosen = array if named is None else array[named]
        contiguous = np.zeros(chosen.shape, dtype)
        words = {
            0: bins,
            copies.SOURCE_IS_STRIDED: 1,
            copies.STRIDED: address_of(array),
            copies.CONTIGUOUS: address_of(contiguous),
            copies.ITEM_BYTES: array.itemsize,
            copies.NDIM: 3,
            copies.ROW_NUMBERS: 0 if named is None else address_of(named),
        }
        places = (*chosen.shape, *array.strides)
        all_bins(kernel, *in_order(words, copies.STRIDED_WORDS), *places)
        assert np.array_equal(contiguous, chosen)
        contiguous[:] = contiguous[::-1].copy()
        expected = whole.copy()
        view = expected[::-1, 1::2].transpose(2, 0, 1)
        view[slice(None) if named is None else named] = contiguous
        words[copies.SOURCE_IS_STRIDED] = 0
        all_bins(kernel, *in_order(words, copies.STRIDED_WORDS), *places)
        assert np.array_equal(whole, expected)


@all_or_in_parallel
@pytest.mark.parametrize("names", [("float64", "float32"), ("uint16", "float32")])
def test_conversions(fresh, names, bins):
    """In tiles of a transposed array, behind an outer axis, some of them not whole."""
    source, target = ("float16" if name == "uint16" else name for name in names)
    array = wave(11, source, 2 * 70 * 45).reshape(2, 45, 70).transpose(0, 2, 1)
    result = np.zeros(array.shape, target)
    axes = np.array([[2, array.strides[0], result.strides[0]]])
    words = {
        converting.BINS: bins,
        converting.SOURCE: address_of(array),
        converting.TARGET: address_of(result),
        converting.ROWS: 70,
        converting.ROW_SOURCE: array.strides[1],
        converting.ROW_TARGET: result.strides[1],
        converting.COLUMNS: 45,
        converting.COLUMN_SOURCE: array.strides[2],
        converting.OUTER: 1,
        converting.AXES: address_of(axes),
        converting.SLABS: 2,
    }
    all_bins(fresh("convert", *names), *in_order(words, converting.WORDS))
    np.testing.assert_array_equal(result, array)


def test_copies_of_parts(fresh):
    kernel = fresh("copy_parts")
    first, second = np.arange(200, dtype=np.uint8), np.arange(9, dtype=np.uint8)
    packed_bytes = np.zeros(110, np.uint8)
    addresses = np.array([address_of(first), address_of(second)])
    parts = np.array([[0, 1, 100], [1, 2, 5]])
    words = {
        copies.PARTS: 2,
        copies.ARRAYS: address_of(addresses),
        copies.PART_ROWS: address_of(parts),
        copies.PACKED: address_of(packed_bytes),
    }
    called(kernel, *in_order(words, copies.PARTS_WORDS))
    expected = [*range(1, 101), *range(2, 7)]
    assert packed_bytes.tolist() == [*expected, *[0] * 5]
    first[:], second[:] = 0, 0
    words[copies.OUTWARDS] = 1
    called(kernel, *in_order(words, copies.PARTS_WORDS))
    assert [*first[1:101], *second[2:7]] == expected
    assert not any([first[0], *first[101:], *second[:2], *second[7:]])


# --- rows -----------------------------------------------------------------------------------


def test_first_outside(fresh):
    kernel = fresh("first_outside")
    cases = {(2, 0, 1): -1, (2, 3, 0): 1, (1, 2, -1): 2, (): -1, (3, -1): 0}
    for indices, position in cases.items():
        array = np.array(indices, np.int64)
        assert kernel.call(address_of(array), len(array), 3) == position, indices


def test_find_rows(fresh):
    kernel = fresh("find_rows")
    indices, marks = np.array([3, 1, 3, 0, 3]), np.zeros(4, np.int32)
    starts, order = np.empty(6, np.int32), np.empty(5, np.int32)
    count = called(kernel, 5, *map(address_of, (indices, marks, starts, order)), 4)
    assert count == 3
    assert not marks.any()
    assert starts[:4].tolist() == [0, 3, 4, 5]
    assert order.tolist() == [0, 2, 4, 1, 3]
    many = np.random.default_rng(0).integers(0, 50, 1000)
    starts, order = np.empty(1001, np.int32), np.empty(1000, np.int32)
    marks = np.zeros(50, np.int32)
    count = called(kernel, 1000, *map(address_of, (many, marks, starts, order)), 50)
    _, first = np.unique(many, return_index=True)
    named = many[np.sort(first)]  # in order of first occurrence
    for number, row in enumerate(named):
        found = order[starts[number] : starts[number + 1]]
        assert np.array_equal(found, np.flatnonzero(many == row))
    assert count == len(named)


# --- acts -----------------------------------------------------------------------------------


def tick_calls(count):
    """Kernels that can be seen to have run, with their words."""
    clock, _ = clock_of(1, [0], now=0)
    numbers = np.ones(4)
    words = np.array([1, address_of(clock), address_of(numbers)])
    kernel = loader.tick()
    return [kernel.address, address_of(words)] * count, clock, (words, numbers)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_acts(fresh, dtype):
    """Kernels in turn, then the counter; nothing where it is full or something has changed."""
    kernel = fresh("run_act")
    calls, clock, alive = tick_calls(3)
    counter, epoch = np.array(100, dtype), np.array([7])
    most = np.array(np.iinfo(dtype).max, dtype)
    words = {
        act.KERNELS: 3,
        act.EPOCH: address_of(epoch),
        act.EXPECTED_EPOCH: 7,
        act.COUNTER: address_of(counter),
        act.COUNTER_BYTES: counter.itemsize,
        act.COUNTER_LIMIT: int(most.view(f"i{counter.itemsize}")),
        act.THREADS: 1,
    }
    block = [*in_order(words, act.WORDS), *calls]
    assert called(kernel, *block) == act.DONE
    assert (int(counter), clock[clocks.NOW]) == (101, 3)
    counter[...] = most
    assert called(kernel, *block) == act.FULL
    counter[...] = 5
    epoch[0] = 8
    assert called(kernel, *block) == act.STALE
    assert (int(counter), clock[clocks.NOW]) == (5, 3)
    words = {act.KERNELS: 1, act.THREADS: 1}
    assert called(kernel, *in_order(words, act.WORDS), *calls[:2]) == act.DONE  # without either
    assert clock[clocks.NOW] == 4
    del alive


def test_each_part_of_the_work_is_done_once():
    from numba import njit

    @njit(**INLINED)
    def work(call_address, b):
        words_at(words_at(call_address)[1])[b] += 1

    @njit(**INLINED)
    def before(call_address):
        words_at(words_at(call_address)[1])[3] += 1

    @njit(**INLINED)
    def after(call_address):
        words_at(words_at(call_address)[1])[4] += 1

    kernel = njit(**FLAGS)(driver.over_bins(work, before, after))
    counts = np.zeros(5, np.int64)
    call, alone = np.array([3, address_of(counts)]), np.eye(5, dtype=int).tolist()
    parts = {driver.ALL: [1] * 5, 0: alone[0], 1: alone[1], 2: alone[2]}
    parts |= {driver.BEFORE: alone[3], driver.AFTER: alone[4]}
    for part, expected in parts.items():
        counts[:] = 0
        kernel(address_of(call), part)
        assert counts.tolist() == expected


@pytest.mark.parametrize("bins", [1, 2, 7])
def test_threads_do_the_bins(fresh, bins):
    """Each one once, after what comes before and before what comes after."""
    seen = []

    @ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    def kernel(call_address, part):
        seen.append((call_address, part))
        return 0

    words, address = np.array([bins]), ctypes.cast(kernel, ctypes.c_void_p).value
    fresh("run_on_threads").call(address, address_of(words))
    assert {call_address for call_address, _ in seen} == {address_of(words)}
    parts = [part for _, part in seen]
    assert (parts[0], parts[-1]) == (driver.BEFORE, driver.AFTER)
    assert sorted(parts[1:-1]) == list(range(bins))


def test_acts_at_the_gate(fresh):
    """On several threads only where no fork is coming, and one at a time where that must be."""
    from rmsjit.runtime import threads

    kernel = fresh("run_act")
    leave = threads.launch(2)
    if leave.threads == 1:
        pytest.skip("there are no threads to be had")
    calls, clock, alive = tick_calls(1)
    gate = np.zeros_like(forks.gate)
    words = {
        act.KERNELS: 1,
        act.THREADS: 2,
        act.GET_THREADS: leave.get_threads,
        act.SET_THREADS: leave.set_threads,
        act.ON_THREADS: loader.run_on_threads().address,
        act.GATE: address_of(gate),
    }
    block = [*in_order(words, act.WORDS), *calls]
    for state, status in (
        ([0, 0, 0, 0], act.DONE),
        ([0, 1, 0, 0], act.CLOSED),
        ([3, 0, 0, 0], act.DONE),
        ([0, 0, 1, 0], act.DONE),
        ([1, 0, 1, 1], act.CLOSED),
        ([0, 1, 1, 0], act.CLOSED),
    ):
        gate[:] = state
        before = int(clock[clocks.NOW])
        assert called(kernel, *block) == status, state
        assert gate.tolist() == state
        assert clock[clocks.NOW] == before + (status == act.DONE)
        clock[clocks.NOW] = 0
    del alive


# --- headers --------------------------------------------------------------------------------


def test_reading_of_pairs(fresh):
    kernel = fresh("read_pairs")
    gradient, variable = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    own = address_of(variable)
    row = {
        headers.VARIABLE_OBJECT: id(variable),
        headers.OWNER: id(variable),
        headers.OWNER_DATA: own,
        headers.OWNER_MEMORY: own,
        headers.KIND: id(np.ndarray),
        headers.READING: headers.IN_PLACE,
        headers.DTYPE: id(variable.dtype),
        headers.FLAGS: headers.C_CONTIGUOUS | headers.ALIGNED,
        headers.NBYTES: variable.nbytes,
        headers.NDIM: 2,
        headers.FIRST_DIMENSION: 2,
        headers.FIRST_DIMENSION + 1: 3,
    }
    expected = np.array(in_order(row, headers.FIRST_DIMENSION + 2))
    starts, ends = np.array([own]), np.array([own + variable.nbytes])
    addresses = np.zeros(1, np.int64)
    words = {
        headers.COUNT: 1,
        headers.TUPLE_TYPE: id(tuple),
        headers.EXPECTED: address_of(expected),
        headers.COLUMNS: len(expected),
        headers.SPAN_STARTS: address_of(starts),
        headers.SPAN_ENDS: address_of(ends),
        headers.SPANS: 1,
        headers.ADDRESSES: address_of(addresses),
    }
    block = np.array(in_order(words, headers.WORDS))

    def read(*pairs):
        addresses[:] = -5
        return kernel.call(id(pairs), address_of(block)), int(addresses[0])

    other = np.ones((2, 3), np.float32)
    assert read((gradient, variable)) == (0, address_of(gradient))
    assert read((other, variable)) == (0, address_of(other))
    assert read((variable, variable)) == (0, own)  # exactly its own memory
    assert read((gradient.astype(np.float64), variable)) == (1, headers.NOT_READABLE)
    assert read((gradient.T.copy(), variable)) == (1, headers.NOT_READABLE)
    assert read((np.zeros((2, 6), np.float32)[:, ::2], variable)) == (1, headers.NOT_READABLE)
    assert read((gradient, other))[0] == headers.NOT_AS_EXPECTED
    assert read([gradient, variable])[0] == headers.NOT_AS_EXPECTED
    assert read((gradient, variable), (gradient, variable))[0] == headers.NOT_AS_EXPECTED
    assert read((1.0, variable))[0] == headers.NOT_AS_EXPECTED
    variable.flags.writeable = False
    assert read((gradient, variable))[0] == headers.NOT_AS_EXPECTED


class Known:
    """Records of variables of one layout, and a call of `follow`, as steps make them."""

    def __init__(self, kernel, variables, slots, count=1):
        first = variables[0]
        row = {
            headers.KIND: id(np.ndarray),
            headers.DTYPE: id(first.dtype),
            headers.FLAGS: headers.C_CONTIGUOUS | headers.ALIGNED,
            headers.NDIM: first.ndim,
            **{headers.FIRST_DIMENSION + axis: n for axis, n in enumerate(first.shape)},
        }
        rows = [in_order(row, headers.FIRST_DIMENSION + first.ndim)] * count
        bits, width = 3, 2
        self.records = np.zeros((1 << bits, following.ADDRESS + width), np.int64)
        for variable, slot in zip(variables, slots, strict=True):
            root = variable if variable.base is None else variable.base
            of_root = (id(root), address_of(root), root.size)
            record = (0, 5, *of_root, address_of(variable), address_of(slot))
            k = following.bucket_of(address_of(variable), bits)
            while self.records[k, following.ADDRESS]:
                k = (k + 1) % len(self.records)
            self.records[k] = record
        self.expected = np.array(rows)
        self.layouts = np.array([(5, first.nbytes, slots[0].nbytes)] * count)
        self.spans = np.zeros((2, 2 * count), np.int64)
        self.addresses, self.found = np.zeros((count, 2), np.int64), np.zeros(count, np.int64)
        known = {
            following.RECORDS: address_of(self.records),
            following.BITS: bits,
            following.WIDTH: width,
            following.LAYOUTS: address_of(self.layouts),
        }
        self.known = np.array(in_order(known, following.KNOWN_WORDS))
        call = {
            headers.COUNT: count,
            headers.TUPLE_TYPE: id(tuple),
            headers.EXPECTED: address_of(self.expected),
            headers.COLUMNS: self.expected.shape[1],
            headers.SPAN_STARTS: address_of(self.spans),
            headers.SPAN_ENDS: address_of(self.spans) + 8 * 2 * count,
            headers.SPANS: 2 * count,
            headers.ADDRESSES: address_of(self.addresses),
            following.KNOWN: address_of(self.known),
            following.FOUND: address_of(self.found),
        }
        self.call = np.array(in_order(call, following.WORDS))
        self.kernel = kernel

    def status(self, *pairs):
        """What the kernel returns; nothing may be written if it does not follow."""
        memory = self.expected, self.spans, self.addresses
        before = [array.copy() for array in memory]
        status = self.kernel.call(id(pairs), address_of(self.call))
        assert not self.records[:, following.IS_TAKEN].any()
        if status == headers.NOT_AS_EXPECTED:
            assert all(map(np.array_equal, memory, before))
        return status


def test_following_to_known_arrays(fresh):
    root = np.zeros((4, 2, 3), np.float32)
    slots = np.zeros((4, 6), np.float64)
    known = Known(fresh("follow"), list(root), list(slots), count=3)
    gradient = np.zeros((2, 3), np.float32)
    views = [root[2], root[0], root[3]]
    assert known.status(*[(gradient, view) for view in views]) == 0
    addresses = [(address_of(root[k]), address_of(slots[k])) for k in (2, 0, 3)]
    assert known.addresses.tolist() == [list(pair) for pair in addresses]
    of_arrays = [[id(view)] * 2 + [address_of(view)] * 2 for view in views]
    assert known.expected[:, : headers.DTYPE].tolist() == of_arrays
    spans = [(start, start + 24) for start, _ in addresses]
    spans = sorted(spans + [(start, start + 48) for _, start in addresses])
    assert known.spans.T.tolist() == [list(span) for span in spans]
    twice = [root[2], root[0], root[2]]
    assert known.status(*[(gradient, view) for view in twice]) == headers.NOT_AS_EXPECTED


def test_arrays_that_are_not_followed(fresh):
    root, slot = np.zeros((4, 2, 3), np.float32), np.zeros((2, 3), np.float32)
    gradient = np.zeros((2, 3), np.float32)
    read_only = root[2]
    read_only.flags.writeable = False
    known = Known(fresh("follow"), [root[1], root[2]], [slot, slot])
    assert known.status((gradient, root[1])) == 0
    assert known.status((gradient, root[2])) == 0
    others = {
        "read-only": read_only,
        "unknown": root[3],
        "subclass": root[2].view(np.memmap),
        "shape": root[2].reshape(3, 2),
        "dimensions": root[2].reshape(-1),
        "stride": np.zeros((2, 6), np.float32)[:, ::2],
        "order": np.zeros((3, 2), np.float32).T,
        "alignment": np.zeros(25, np.int8)[1:].view(np.float32).reshape(2, 3),
        "dtype": np.zeros((2, 3)),
        "borrowed": np.frombuffer(bytearray(24), np.float32).reshape(2, 3),
    }
    for name, array in others.items():
        assert known.status((gradient, array)) == headers.NOT_AS_EXPECTED, name
    for pairs in (
        [gradient, root[2]],
        [(1.0, root[2])],
        [(gradient, root[2], root[2])],
        [(gradient, root[2])] * 2,
        [],
    ):
        assert known.status(*pairs) == headers.NOT_AS_EXPECTED


@pytest.mark.parametrize("column", ["ROOT", "ROOT_DATA", "ROOT_SIZE", "LAYOUT"])
def test_a_record_of_other_memory_is_not_followed(fresh, column):
    root, slot = np.zeros((4, 2, 3), np.float32), np.zeros((2, 3), np.float32)
    known = Known(fresh("follow"), [root[1]], [slot])
    pair = np.zeros((2, 3), np.float32), root[1]
    assert known.status(pair) == 0
    known.records[:, getattr(following, column)] += 64
    assert known.status(pair) == headers.NOT_AS_EXPECTED


def test_memory_that_no_array_owns_is_for_the_caller_to_check(fresh):
    variable = np.frombuffer(bytearray(24), np.float32).reshape(2, 3)
    known = Known(fresh("follow"), [variable], [np.zeros((2, 3), np.float32)])
    known.records[:, following.ROOT] = 0
    assert known.status((np.zeros((2, 3), np.float32), variable)) == 1


# --- memory that is read, and memory that is new ----------------------------------------------


def test_meeting_what_is_written(fresh):
    kernel = fresh("meets_written")
    starts, ends = np.array([[100, 300, 400], [150, 310, 500]])
    cases = {
        (0, 100): False,
        (0, 101): True,
        (149, 1): True,
        (150, 150): False,
        (150, 151): True,
        (320, 0): False,
        (305, 0): False,
        (50, 1000): True,
        (500, 10): False,
    }
    for (address, size), meets in cases.items():
        begins, sizes = np.array([0, address, 500]), np.array([7, size, 7])
        words = np.zeros(overlap.WORDS, np.int64)
        words[overlap.COUNT], words[overlap.SIZES] = 3, address_of(sizes)
        words[overlap.SPAN_STARTS], words[overlap.SPAN_ENDS] = address_of(starts), address_of(ends)
        words[overlap.SPANS] = 3
        assert kernel.call(address_of(words), address_of(begins)) == meets, (address, size)


def test_touching_pages(fresh):
    """A byte of each page of the spans, and nothing else."""
    page = 64
    memory = np.ones(10 * page, np.uint8)
    first = -address_of(memory) % page  # the start of a page
    spans = address_of(memory) + first + np.array([[5, 2 * page + 1], [3 * page, 3 * page]])
    cuts, words = np.array([0, 1, 2]), np.zeros(touching.WORDS, np.int64)
    words[touching.BINS], words[touching.PAGE_BYTES] = 2, page
    words[touching.CUTS], words[touching.SPANS] = address_of(cuts), address_of(spans)
    fresh("touch_pages").call(address_of(words), driver.ALL)
    assert (np.flatnonzero(memory == 0) - first).tolist() == [5, page, 2 * page]


class FakeTensor:
    """An array as a tensor that `describe` describes; it can't where there is none."""

    def __init__(self, array):
        self.array = array
        if array is not None:
            self.sizes = np.array([*array.shape, *(s // array.itemsize for s in array.strides)])


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
def describe(tensor, out):
    array, description = (
        tensor.array,
        (ctypes.c_int64 * tensors.DESCRIPTION_WORDS).from_address(out),
    )
    if array is None:
        return -1
    description[tensors.DATA], description[tensors.DEVICE] = address_of(array), 1
    description[tensors.KIND] = array.ndim + (array.itemsize << 40)
    description[tensors.SHAPE] = address_of(tensor.sizes)
    description[tensors.STRIDES] = address_of(tensor.sizes) + 8 * array.ndim
    description[tensors.BYTE_OFFSET] = 0
    return 0


def test_reading_tensors(fresh):
    like = [np.zeros((2, 3), np.float32).T, np.zeros(4)]
    expected = np.zeros((2, 7), np.int64)
    for row, array in zip(expected, like, strict=True):
        strides = [stride // array.itemsize for stride in array.strides]
        numbers = [1, array.ndim + (array.itemsize << 40), array.ndim, *array.shape, *strides]
        row[: len(numbers)] = numbers
    description = np.zeros(tensors.DESCRIPTION_WORDS, np.int64)
    words = np.zeros(tensors.WORDS, np.int64)
    words[tensors.COUNT], words[tensors.TUPLE_TYPE] = 2, id(tuple)
    words[tensors.FIRST_TYPE] = words[tensors.SECOND_TYPE] = id(FakeTensor)
    words[tensors.DESCRIBE] = ctypes.cast(describe, ctypes.c_void_p).value
    clear = ctypes.cast(ctypes.pythonapi.PyErr_Clear, ctypes.c_void_p).value
    words[tensors.CLEAR_ERROR], words[tensors.EXPECTED] = clear, address_of(expected)
    words[tensors.COLUMNS], words[tensors.DESCRIPTION] = 7, address_of(description)
    kernel, found = fresh("read_tensors"), np.zeros(2, np.int64)

    def status(*arrays):
        made = tuple(map(FakeTensor, arrays))
        return kernel.call(id(made), address_of(words), address_of(found))

    others = [np.ones((2, 3), np.float32).T, np.ones(4)]
    assert status(*others) == tensors.AS_EXPECTED
    assert found.tolist() == [address_of(array) for array in others]
    assert status(*others[:1]) == tensors.NOT_AS_EXPECTED
    for wrong in (
        np.ones((3, 2), np.float32),
        np.ones((2, 3), np.float32),
        others[0].astype(float),
    ):
        assert status(wrong, others[1]) == tensors.NOT_AS_EXPECTED
    assert status(others[0], None) == tensors.NOT_DESCRIBED


@all_or_in_parallel
@pytest.mark.parametrize("divisor", [1, 3])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_adding_gradients_to_sums(fresh, real, divisor, bins):
    """Three arrays, the first in two pieces of several chunks; two have a sum, two a gradient."""
    sizes = (5001, 9, 3)
    sums = [wave(7, real, size) for size in sizes[:2]]
    gradients = [wave(11, real, sizes[0]), wave(5, real, sizes[2])]
    results = [np.full(size, np.nan, real) for size in sizes]
    pieces = np.array([[0, 0, 2500, 0], [0, 2500, 2501, 0], [1, 0, 9, 0], [2, 0, 3, 0]])
    cuts = np.array([0, 4] if bins == 1 else [0, 1, 4])
    columns = [
        np.array([*map(address_of, results)]),
        np.array([*map(address_of, sums), 0]),
        np.array([address_of(gradients[0]), 0, address_of(gradients[1])]),
    ]
    number = np.array([divisor], real)
    words = {
        adding.BINS: bins,
        adding.CUTS: address_of(cuts),
        adding.PIECES: address_of(pieces),
        adding.RESULTS: address_of(columns[0]),
        adding.SUMS: address_of(columns[1]),
        adding.GRADIENTS: address_of(columns[2]),
        adding.DIVISOR: address_of(number),
    }
    assert all_bins(fresh("add_pieces", real), *in_order(words, adding.WORDS)) == 0
    expected = [sums[0] + gradients[0], sums[1], gradients[1]]
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, value / number)


def test_comparing_the_items_of_tuples(fresh):
    kernel, one, other = fresh("same_items"), [], []
    for items, others, same in (
        ((one, other), (one, other), 1),
        ((one, other), (other, one), 0),
        ((one, other), (one,), 0),
        ((one,), (one, other), 0),
        ((), (), 1),
    ):
        assert kernel.call(id(items), id(others)) == same


def test_finding_an_item_of_a_tuple(fresh):
    kernel, one, other = fresh("has_item"), [], []
    for items, found in (((one, other), 1), ((other, one), 1), ((other,), 0), ((), 0)):
        assert kernel.call(id(items), id(one)) == found


def test_comparing_the_values_of_dictionaries(fresh):
    kernel, one, other = fresh("same_values"), [], []
    get_item = ctypes.cast(ctypes.pythonapi.PyDict_GetItem, ctypes.c_void_p).value

    def are_same(*dictionaries, keys=("a", "b"), values=(one, other, one, one)):
        return kernel.call(id(dictionaries), id(keys), id(values), get_item)

    both = {"a": one, "b": other}, {"b": one, "more": other, "a": one}
    assert are_same(*both) == 1
    assert are_same(*both[::-1]) == 0
    assert are_same(both[0], {"a": one}) == 0
    assert are_same(both[0], {"a": one, "b": []}) == 0
    assert are_same(values=()) == 1
