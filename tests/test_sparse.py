"""Sparse gradients: sums of duplicates, then one update of each named row (``sparse="rows"``)."""

import contextlib
import gc
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsjit
from pairs import every_pair
from reference import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    sum_duplicates,
)
from rmsjit import IndexedSlices
from rmsjit.runtime import trials
from strategies import (
    BOTH,
    COMPLEX,
    DTYPES,
    HALF,
    KERAS,
    REAL,
    Form,
    assert_is_step,
    computing,
    every_dtype,
    every_form,
    every_slot_set,
    random_array,
    same_bits,
    seeds,
    slots_of,
    state_of,
)

PLAIN = KERAS[0]
TABLES = ((1,), (6,), (1, 1), (5, 1), (1, 3), (7, 3), (4, 2, 3), (3, 1, 2, 1))


def random_rows(rng, rows, count, zipf=False):
    """Indices with repeats; by Zipf's law a few rows take most of them."""
    if not zipf:
        return rng.integers(0, rows, count)
    return rng.permutation(rows)[(rng.zipf(1.2, count) - 1) % rows]


def random_slices(rng, table, count, dtype=None, decades=1, zipf=False):
    values = random_array(rng, (count, *table.shape[1:]), dtype or table.dtype, decades)
    return IndexedSlices(values, random_rows(rng, len(table), count, zipf))


def checked_step(form, optimizer, pairs, **changes):
    """Take a step and compare it with the twin's from the very same state.

    Rows that are not named must be the same to the byte.  No variable may come twice.
    """
    before = [(np.array(np.asarray(v)), slots_of(form, optimizer, v)) for _, v in pairs]
    optimizer.apply_gradients(pairs)
    for (old, slots), (gradient, variable) in zip(before, pairs, strict=True):
        new, new_slots = np.asarray(variable), slots_of(form, optimizer, variable)
        rows, sums = ..., gradient
        if isinstance(gradient, IndexedSlices):
            rows, sums = summed(gradient, old)
            others = np.setdiff1d(np.arange(len(old)), rows)
            assert same_bits(new[others], old[others])
            assert all(same_bits(new_slots[name][others], slots[name][others]) for name in slots)
        after = new[rows], of_rows(new_slots, rows)
        assert_is_step(old[rows], sums, of_rows(slots, rows), after, {**form.rule, **changes})


def summed(gradient, table):
    """The rows that a gradient names, and what it holds for each."""
    values = np.asarray(gradient.values).astype(table.dtype)
    rows, sums = sum_duplicates(values, gradient.indices.tolist(), computing(table.dtype))
    return rows, sums.reshape(len(rows), *table.shape[1:])


def of_rows(slots, rows):
    return {name: slot[rows] for name, slot in slots.items()}


# --- Against the reference -------------------------------------------------------------------


@every_form
@every_dtype
@settings(max_examples=6)
@given(
    seed=seeds,
    shape=st.sampled_from(TABLES),
    counts=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    zipf=st.booleans(),
)
def test_steps_are_those_of_the_reference(form, dtype, seed, shape, counts, zipf):
    rng = np.random.default_rng(seed)
    table, optimizer = random_array(rng, shape, dtype), form.optimizer()
    for count in counts:
        slices = random_slices(rng, table, count, decades=3, zipf=zipf)
        checked_step(form, optimizer, [(slices, table)])


@every_dtype
def test_every_width_of_a_row(dtype):
    rng = np.random.default_rng(0)
    optimizer = BOTH.optimizer()
    for width in (*range(1, 71), 4096):
        table = random_array(rng, (5, width), dtype)
        checked_step(BOTH, optimizer, [(random_slices(rng, table, 7), table)])


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 6, 50, 5000])
def test_any_number_of_indices(count):
    rng = np.random.default_rng(1)
    table, optimizer = random_array(rng, (5, 3), "float32"), BOTH.optimizer()
    for _ in range(3):
        checked_step(BOTH, optimizer, [(random_slices(rng, table, count), table)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_few_rows_that_take_most_of_a_batch(dtype):
    rng = np.random.default_rng(2)
    table, optimizer = random_array(rng, (1000, 4), dtype), BOTH.optimizer()
    for _ in range(2):
        slices = random_slices(rng, table, 5000, zipf=True)
        assert np.bincount(slices.indices).max() > 500
        checked_step(BOTH, optimizer, [(slices, table)])


def test_duplicates_are_summed_in_order_of_occurrence():
    """In float32 the order decides whether a one survives beside a hundred million."""
    values = np.array([1e8, 1, -1e8, 1e8, -1e8, 1], np.float32)
    table = np.zeros(2, np.float32)
    rmsjit.RMSprop(1.0, rho=0.0).apply_gradients(
        [(IndexedSlices(values, [0] * 3 + [1] * 3), table)]
    )
    np.testing.assert_allclose(table, [0, -1], rtol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_duplicates_of_half_types_are_summed_in_float32(dtype):
    """Each of the small values would be lost beside the large one."""
    table = np.zeros(1, dtype)
    values = np.array([256, *[0.25] * 512], dtype)
    optimizer = rmsjit.train.RMSPropOptimizer(1.0, decay=0.0, momentum=0.0, epsilon=147456.0)
    optimizer.apply_gradients([(IndexedSlices(values, np.zeros(513, int)), table)])
    assert float(table[0]) == pytest.approx(-(384 / np.sqrt(384**2 + 147456)), rel=0.01)


@pytest.mark.parametrize("change", [{"rho": 0.900001}, {"lr": 0.01000001}, {"momentum": 0.8999}])
def test_the_comparison_notices_a_slightly_wrong_rule(change):
    rng = np.random.default_rng(0)
    table, optimizer = random_array(rng, (50, 3), "float32"), BOTH.optimizer()
    checked_step(BOTH, optimizer, [(random_slices(rng, table, 99), table)])
    with pytest.raises(AssertionError, match="instead of"):
        checked_step(BOTH, optimizer, [(random_slices(rng, table, 99), table)], **change)


def test_the_comparison_notices_a_change_of_another_row():
    table, optimizer = np.ones((50, 3)), BOTH.optimizer()
    slices = IndexedSlices(np.ones((2, 3)), [3, 4])

    class Wrong:
        def apply_gradients(self, pairs):
            optimizer.apply_gradients(pairs)
            table[7, 2] = np.nextafter(table[7, 2], 2)

        get_slot = optimizer.get_slot

    checked_step(BOTH, optimizer, [(slices, table)])
    with pytest.raises(AssertionError):
        checked_step(BOTH, Wrong(), [(slices, table)])


@every_form
@every_dtype
def test_what_is_not_finite_stays_in_the_rows_that_are_named(form, dtype):
    table, optimizer = np.ones((4, 3), dtype), form.optimizer()
    values = np.array([[1, np.nan, 1], [np.inf, 1, 1], [-np.inf, 1, 1]], dtype)
    optimizer.apply_gradients([(IndexedSlices(values, [2, 0, 0]), table)])
    assert np.isnan(table).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    optimizer.apply_gradients([(IndexedSlices(values[:0], []), table)])
    assert same_bits(table[[1, 3]], np.ones((2, 3), dtype))


# --- Identities ------------------------------------------------------------------------------


@every_form
@every_dtype
def test_all_rows_once_is_the_dense_step(form, dtype):
    rng = np.random.default_rng(3)
    table = random_array(rng, (9, 7), dtype)
    whole, sparse, dense = table.copy(), form.optimizer(), form.optimizer()
    for _ in range(4):
        gradient, order = random_array(rng, (9, 7), dtype), rng.permutation(9)
        sparse.apply_gradients([(IndexedSlices(gradient[order], order), table)])
        dense.apply_gradients([(gradient, whole)])
        assert state_of(sparse, [table]) == state_of(dense, [whole])


@every_dtype
def test_the_order_of_rows_changes_no_bit(dtype):
    """As long as the occurrences of each row keep theirs."""
    rng = np.random.default_rng(4)
    table = random_array(rng, (9, 3), dtype)
    other, optimizers = table.copy(), [BOTH.optimizer() for _ in range(2)]
    for _ in range(3):
        slices = random_slices(rng, table, 40)
        order = np.argsort(slices.indices, kind="stable")
        moved = IndexedSlices(slices.values[order], slices.indices[order])
        optimizers[0].apply_gradients([(slices, table)])
        optimizers[1].apply_gradients([(moved, other)])
        assert state_of(optimizers[0], [table]) == state_of(optimizers[1], [other])


@pytest.mark.parametrize("dtype", [*REAL[2:], *COMPLEX])  # half types would be rounded between
def test_coalescing_first_changes_no_bit(dtype):
    rng = np.random.default_rng(5)
    table = random_array(rng, (9, 3), dtype)
    other, optimizers = table.copy(), [BOTH.optimizer() for _ in range(2)]
    for _ in range(3):
        slices = random_slices(rng, table, 40)
        optimizers[0].apply_gradients([(slices, table)])
        optimizers[1].apply_gradients([(slices.coalesce(), other)])
        assert state_of(optimizers[0], [table]) == state_of(optimizers[1], [other])


# --- Tables as they lie in memory ------------------------------------------------------------


def c_ordered(array, folder):
    return array.copy()


def f_ordered(array, folder):
    return np.asfortranarray(array)


def permuted(array, folder):
    return np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1)


def inner_permuted(array, folder):
    return np.ascontiguousarray(array.transpose(0, 2, 1)).transpose(0, 2, 1)


def strided_rows(array, folder):
    return np.repeat(array, 2, axis=0)[::2]


def strided_columns(array, folder):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def upside_down(array, folder):
    return array[::-1].copy()[::-1]


def mirrored(array, folder):
    return array[..., ::-1].copy()[..., ::-1]


def all_at_once(array, folder):
    return np.repeat(f_ordered(array[::-1], folder), 2, axis=1)[::-1, ::2]


def misaligned(array, folder):
    memory = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def mapped(array, folder):
    memory = np.memmap(folder / "table", array.dtype, "w+", shape=array.shape)
    memory[...] = array
    return memory


def mapped_in_f_order(array, folder):
    memory = np.memmap(folder / "table", array.dtype, "w+", shape=array.shape, order="F")
    memory[...] = array
    return memory


def held(array, folder):
    return rmsjit.Variable(array.copy(), name="table")


LAYOUTS = [
    c_ordered,
    f_ordered,
    permuted,
    inner_permuted,
    strided_rows,
    strided_columns,
    upside_down,
    mirrored,
    all_at_once,
    misaligned,
    mapped,
    mapped_in_f_order,
    held,
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


@every_layout
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128"])
def test_every_layout_gives_the_same_bits(layout, dtype, tmp_path):
    rng = np.random.default_rng(6)
    table = random_array(rng, (7, 2, 3), dtype)
    other, optimizers = layout(table, tmp_path), [BOTH.optimizer() for _ in range(2)]
    for count in (0, 1, 5, 40):
        slices = random_slices(rng, table, count)
        optimizers[0].apply_gradients([(slices, table)])
        optimizers[1].apply_gradients([(slices, other)])
        assert same_bits(np.asarray(other), table)
        slots, other_slots = (
            slots_of(BOTH, optimizers[0], table),
            slots_of(BOTH, optimizers[1], other),
        )
        assert all(same_bits(slots[name], other_slots[name]) for name in BOTH.slots)


@pytest.mark.parametrize("step", [2, -2])
def test_what_lies_between_the_rows_is_left_alone(step):
    rng = np.random.default_rng(7)
    memory = random_array(rng, (12, 6), "float32")
    before = memory.copy()
    table = memory[::step, ::step]
    optimizer = BOTH.optimizer()
    optimizer.apply_gradients([(random_slices(rng, table, 30), table)])
    changed = np.zeros(memory.shape, bool)
    changed[::step, ::step] = True
    assert same_bits(memory[~changed], before[~changed])
    assert (memory != before)[changed].any()


def test_views_are_one_table():
    rng = np.random.default_rng(8)
    table = random_array(rng, (6, 4), "float64")
    other, optimizers = table.copy(), [BOTH.optimizer() for _ in range(2)]
    views = [lambda t: t, lambda t: t.reshape(12, 2), lambda t: t.T, lambda t: t[::-1, ::-1]]
    views += [lambda t: t.reshape(-1), lambda t: rmsjit.Variable(t), lambda t: t[...]]
    for view in views * 2:
        slices = random_slices(rng, np.asarray(view(table)), 5)
        dense = IndexedSlices(slices.values, slices.indices, view(table).shape)
        optimizers[0].apply_gradients([(slices, view(table))])
        touched = np.zeros_like(table)
        np.asarray(view(touched))[dense.indices] = 1
        state = [np.array(a) for a in (other, *slots_of(BOTH, optimizers[1], other).values())]
        optimizers[1].apply_gradients([(dense.to_dense(), view(other))])
        after = (other, *(np.asarray(optimizers[1].get_slot(other, n)) for n in BOTH.slots))
        for old, new in zip(state, after, strict=True):
            new[touched == 0] = old[touched == 0]
        assert state_of(optimizers[0], [table]) == state_of(optimizers[1], [other])


def test_a_table_without_rows_and_rows_without_elements():
    for shape in ((0, 3), (3, 0), (0,)):
        table, optimizer = np.ones(shape), BOTH.optimizer()
        count = shape[0] and 2
        slices = IndexedSlices(np.ones((count, *shape[1:])), np.zeros(count, int))
        assert int(optimizer.apply_gradients([(slices, table)])) == 1
        assert optimizer.get_slot(table, "rms").shape == shape


# --- Indices and values as they are given ----------------------------------------------------


def stepped(slices, table):
    table, optimizer = table.copy(), BOTH.optimizer()
    for _ in range(2):
        optimizer.apply_gradients([(slices, table)])
    return state_of(optimizer, [table])


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i8", ">u2", np.intc, np.longlong]
)
def test_every_integer_dtype_of_indices(dtype):
    rng = np.random.default_rng(9)
    table = random_array(rng, (100, 3), "float32")
    slices = random_slices(rng, table, 150)
    other = IndexedSlices(slices.values, slices.indices.astype(dtype))
    assert stepped(other, table) == stepped(slices, table)


@pytest.mark.parametrize(
    "given_as",
    [
        lambda i: np.repeat(i, 2)[::2],
        lambda i: i[::-1].copy()[::-1],
        lambda i: i.tolist(),
        lambda i: tuple(i.tolist()),
        rmsjit.Variable,
        lambda i: np.frombuffer(i.tobytes(), i.dtype),  # read-only
        lambda i: np.frombuffer(b"." + i.tobytes(), i.dtype, offset=1),  # misaligned
    ],
)
def test_indices_however_they_lie(given_as):
    rng = np.random.default_rng(10)
    table = random_array(rng, (100, 3), "float32")
    slices = random_slices(rng, table, 150)
    other = IndexedSlices(slices.values, given_as(slices.indices))
    assert stepped(other, table) == stepped(slices, table)


@pytest.mark.parametrize(
    "given_as",
    [
        np.asfortranarray,
        lambda v: np.repeat(v, 3, axis=0)[::3],
        lambda v: np.repeat(v, 2, axis=1)[:, ::2],
        lambda v: v[::-1, ::-1].copy()[::-1, ::-1],
        lambda v: v.tolist(),
        rmsjit.Variable,
        lambda v: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape),
        lambda v: np.frombuffer(b"." + v.tobytes(), v.dtype, offset=1).reshape(v.shape),
        lambda v: v.astype(v.dtype.newbyteorder()),
        lambda v: v.astype("float64"),
    ],
)
def test_values_however_they_lie(given_as):
    rng = np.random.default_rng(11)
    table = random_array(rng, (10, 4), "float32")
    slices = random_slices(rng, table, 30)
    other = IndexedSlices(given_as(slices.values), slices.indices)
    assert stepped(other, table) == stepped(slices, table)


def test_values_that_are_broadcast():
    table = np.ones((10, 4), np.float32)
    ones = np.broadcast_to(np.float32(1), (30, 4))
    indices = np.arange(30) % 7
    slices = IndexedSlices(np.ones((30, 4), np.float32), indices)
    assert stepped(IndexedSlices(ones, indices), table) == stepped(slices, table)


@every_dtype
@pytest.mark.parametrize("given", [*DTYPES, "int8", "uint64", "bool"])
def test_values_of_another_dtype(dtype, given):
    rng = np.random.default_rng(12)
    table = random_array(rng, (5, 3), dtype)
    values = rng.integers(0, 2, (8, 3)).astype(given)
    slices = IndexedSlices(values, rng.integers(0, 5, 8))
    if np.can_cast(values.dtype, table.dtype, "same_kind"):
        other = IndexedSlices(values.astype(dtype), slices.indices)
        assert stepped(slices, table) == stepped(other, table)
    else:
        with pytest.raises(TypeError, match=f"casts to {dtype} as same_kind, got {given}"):
            stepped(slices, table)


@every_layout
def test_values_that_lie_in_the_table(layout, tmp_path):
    rng = np.random.default_rng(13)
    table = layout(random_array(rng, (8, 2, 3), "float64"), tmp_path)
    other = np.array(np.asarray(table))
    optimizers = [BOTH.optimizer() for _ in range(2)]
    indices = np.array([5, 0, 7, 5, 1, 2])
    for read in (lambda t: t[:6], lambda t: t[2:], lambda t: t[::-1][:6]):
        array = np.asarray(table)
        optimizers[0].apply_gradients([(IndexedSlices(read(array), indices), table)])
        optimizers[1].apply_gradients([(IndexedSlices(read(other).copy(), indices), other)])
        assert same_bits(array, other)


def test_values_that_lie_in_a_slot():
    rng = np.random.default_rng(14)
    tables = [random_array(rng, (8, 3), "float64")]
    tables.append(tables[0].copy())
    optimizers = [BOTH.optimizer() for _ in range(2)]
    for optimizer, table in zip(optimizers, tables, strict=True):
        optimizer.apply_gradients([(IndexedSlices(np.ones((8, 3)), range(8)), table)])
    indices = np.array([5, 0, 7, 5])
    view = optimizers[0].get_slot(tables[0], "rms").array[2:6]
    copy = optimizers[1].get_slot(tables[1], "rms").numpy()[2:6]
    optimizers[0].apply_gradients([(IndexedSlices(view, indices), tables[0])])
    optimizers[1].apply_gradients([(IndexedSlices(copy, indices), tables[1])])
    assert same_bits(*tables)


def test_values_that_lie_in_another_variable_of_the_step():
    rng = np.random.default_rng(15)
    first, second = random_array(rng, (8, 3), "float64"), random_array(rng, (8, 3), "float64")
    copies = first.copy(), second.copy()
    indices = np.array([5, 0, 7, 5])
    BOTH.optimizer().apply_gradients(
        [(np.ones((8, 3)), first), (IndexedSlices(first[:4], indices), second)]
    )
    slices = IndexedSlices(copies[0][:4].copy(), indices)
    BOTH.optimizer().apply_gradients([(np.ones((8, 3)), copies[0]), (slices, copies[1])])
    assert same_bits(first, copies[0])
    assert same_bits(second, copies[1])


# --- Threads ---------------------------------------------------------------------------------


def run(form, dtype, *, shape, count, num_threads, steps=3, zipf=False, **arguments):
    rng = np.random.default_rng(16)
    table = random_array(rng, shape, dtype, 1)
    optimizer = form.optimizer(num_threads=num_threads, **arguments)
    for _ in range(steps):
        optimizer.apply_gradients([(random_slices(rng, table, count, zipf=zipf), table)])
    return state_of(optimizer, [table])


def assert_threads_agree(form, dtype, asked, **arguments):
    serial = run(form, dtype, num_threads=1, **arguments)
    assert asked == [False] * len(asked)
    for count in (2, 3, 4):
        assert run(form, dtype, num_threads=count, **arguments) == serial
        assert asked.pop()  # or nothing would have been compared


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 5, 200])
def test_threads_give_the_same_bits_for_every_dtype(dtype, count, always_parallel):
    assert_threads_agree(BOTH, dtype, always_parallel, shape=(50, 5), count=count)


@pytest.mark.parametrize("form", [KERAS[0], KERAS[1], KERAS[2]], ids=str)
def test_threads_give_the_same_bits_for_every_slot_set(form, always_parallel):
    assert_threads_agree(form, "float32", always_parallel, shape=(50, 9), count=500)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_threads_give_the_same_bits_where_one_row_takes_most(rows, always_parallel):
    assert_threads_agree(BOTH, "float32", always_parallel, shape=(rows, 3), count=3000, zipf=True)


@pytest.mark.parametrize("layout", [f_ordered, strided_rows], ids=lambda layout: layout.__name__)
def test_threads_give_the_same_bits_for_every_layout(layout, always_parallel):
    results = []
    for count in (1, 2):
        rng = np.random.default_rng(17)
        table = layout(random_array(rng, (50, 6), "float32"), None)
        optimizer = BOTH.optimizer(num_threads=count)
        for _ in range(3):
            optimizer.apply_gradients([(random_slices(rng, table, 200), table)])
        results.append(state_of(optimizer, [table]))
    assert results[0] == results[1]
    assert always_parallel[-1]


@every_dtype
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_threads_give_the_same_norms(dtype, clip, always_parallel):
    sizes = {"shape": (50, 33), "count": 700}
    assert_threads_agree(BOTH, dtype, always_parallel, **sizes, **{clip: 0.5})


@pytest.mark.parametrize(
    "dtype", [pytest.param("float16", marks=pytest.mark.slow), "float32", "complex128"]
)
def test_threads_start_by_themselves_for_many_rows(dtype, loaded):
    width = 64
    rows = trials.LEAST_BYTES // (width * np.dtype(dtype).itemsize) + 1
    sizes = {"shape": (rows, width), "count": 8 * rows, "steps": 16}
    serial = run(BOTH, dtype, num_threads=1, **sizes)
    assert set(loaded) == {False}
    loaded.clear()
    assert run(BOTH, dtype, num_threads=2, **sizes) == serial
    assert set(loaded) == {False, True}  # both were tried


def test_python_threads_that_step_at_once():
    """On rows of their own, so that the result does not depend on who comes first."""
    rng = np.random.default_rng(18)
    table = random_array(rng, (400, 4), "float64")
    other, optimizer, twin = table.copy(), BOTH.optimizer(), BOTH.optimizer()
    batches = [[random_slices(rng, table[:100], 300) for _ in range(50)] for _ in range(4)]
    parts = [
        [IndexedSlices(s.values, s.indices + 100 * part) for s in batch]
        for part, batch in enumerate(batches)
    ]
    optimizer.build([table])

    def work(part):
        for slices in part:
            optimizer.apply_gradients([(slices, table)])

    workers = [threading.Thread(target=work, args=(part,)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for part in parts:
        for slices in part:
            twin.apply_gradients([(slices, other)])
    assert same_bits(table, other)


# --- Several variables in one call -----------------------------------------------------------


@every_form
def test_dense_and_sparse_variables_in_one_call(form):
    rng = np.random.default_rng(19)
    optimizer = form.optimizer()
    tables = [random_array(rng, (6, 3), dtype) for dtype in DTYPES]
    others = [random_array(rng, (4, 2), dtype) for dtype in DTYPES]
    for _ in range(3):
        pairs = [(random_slices(rng, table, 9), table) for table in tables]
        pairs += [(random_array(rng, v.shape, v.dtype), v) for v in others]
        checked_step(form, optimizer, [pairs[k] for k in rng.permutation(len(pairs))])


@every_dtype
def test_grouping_gives_the_same_bits(dtype):
    """All tables in one call, one in each call, or all rows in one table."""
    rng = np.random.default_rng(20)
    whole = random_array(rng, (30, 3), dtype, 1)
    steps = [random_slices(rng, whole, 60) for _ in range(3)]
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]

    def of_part(slices, part):
        inside = (slices.indices >= part.start) & (slices.indices < part.stop)
        return IndexedSlices(slices.values[inside], slices.indices[inside] - part.start)

    together, apart = ([whole[part].copy() for part in parts] for _ in range(2))
    optimizer, optimizers = BOTH.optimizer(), [BOTH.optimizer() for _ in parts]
    table, alone = whole.copy(), BOTH.optimizer()
    for slices in steps:
        pieces = [of_part(slices, part) for part in parts]
        optimizer.apply_gradients(zip(pieces, together, strict=True))
        for one, *pair in zip(optimizers, pieces, apart, strict=True):
            one.apply_gradients([pair])
        alone.apply_gradients([(slices, table)])
    assert same_bits(np.concatenate(together), table)
    assert same_bits(np.concatenate(apart), table)


@every_slot_set
@pytest.mark.parametrize("order", ["ss", "sd", "ds", "sds", "dss"])
def test_a_table_that_comes_several_times_in_one_call(form, order):
    rng = np.random.default_rng(21)
    table = random_array(rng, (6, 3), "float32")
    other, optimizers = table.copy(), [form.optimizer() for _ in range(2)]
    for _ in range(3):
        gradients = [
            random_slices(rng, table, 9) if kind == "s" else random_array(rng, (6, 3), "float32")
            for kind in order
        ]
        optimizers[0].apply_gradients([(gradient, table) for gradient in gradients])
        for gradient in gradients:
            optimizers[1].apply_gradients([(gradient, other)])
        assert state_of(optimizers[0], [table])[0] == state_of(optimizers[1], [other])[0]


@every_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_and_sparse_steps_take_turns(form, dtype):
    rng = np.random.default_rng(22)
    table, optimizer = random_array(rng, (6, 3), dtype), form.optimizer()
    for kind in "sdssdds":
        gradient = random_array(rng, (6, 3), dtype)
        if kind == "s":
            gradient = random_slices(rng, table, 9)
        checked_step(form, optimizer, [(gradient, table)])


def test_momentum_that_is_set_later():
    rng = np.random.default_rng(23)
    table, optimizer = random_array(rng, (6, 3), "float32"), rmsjit.RMSprop(0.01)
    checked_step(PLAIN, optimizer, [(random_slices(rng, table, 9), table)])
    optimizer.momentum = 0.9
    later = Form("keras", centered=False, momentum=0.9)
    for _ in range(3):
        pairs = [(random_slices(rng, table, 9), table)]
        checked_step(later, optimizer, pairs, eps_inside=False)


# --- Clipping --------------------------------------------------------------------------------

CLIPS = {
    "clipvalue": lambda arrays, bound, dtype: [clip_by_value(a, bound, dtype) for a in arrays],
    "clipnorm": lambda arrays, bound, dtype: [clip_by_norm(a, bound, dtype) for a in arrays],
    "global_clipnorm": clip_by_global_norm,
}
PAIRS_OF_CLIPS = [{"clipvalue": 0.7, "clipnorm": 0.5}, {"clipvalue": 0.7, "global_clipnorm": 0.5}]
CLIP_SETTINGS = [{name: bound} for name in CLIPS for bound in (0.4, 1e6)] + PAIRS_OF_CLIPS


CLIP_CASES = [
    (clips, dtype)
    for clips in CLIP_SETTINGS
    for dtype in (REAL if "clipvalue" in clips else DTYPES)  # which complex numbers can't be
]


@pytest.mark.parametrize(("clips", "dtype"), CLIP_CASES, ids=str)
def test_values_are_clipped_before_they_are_summed(clips, dtype):
    rng = np.random.default_rng(24)
    table, dense = random_array(rng, (5, 3), dtype), random_array(rng, 7, dtype)
    tables = [table, dense, table.copy(), dense.copy()]
    clipped, plain = BOTH.optimizer(**clips), BOTH.optimizer()
    for _ in range(2):
        slices, gradient = random_slices(rng, table, 20), random_array(rng, 7, dtype)
        arrays = [slices.values, gradient]
        wide = "complex128" if dtype in COMPLEX else "float64"
        for name, bound in clips.items():
            arrays = CLIPS[name](arrays, bound, wide)
        twins = [array.astype(computing(dtype)) for array in arrays]
        clipped.apply_gradients([(slices, tables[0]), (gradient, tables[1])])
        # A half type would round the clipped values; the twin is given them all in one.
        sums = IndexedSlices(twins[0], slices.indices)
        plain.apply_gradients([(sums, tables[2]), (twins[1], tables[3])])
    limit = {"float16": 0.02, "bfloat16": 0.1, "float32": 1e-4, "complex64": 1e-3}.get(dtype, 1e-9)
    for got, expected in zip(tables[:2], tables[2:], strict=True):
        error = np.abs(got.astype(wide) - expected.astype(wide))
        assert np.all(error <= limit * np.abs(expected.astype(wide)).max())


def test_the_norm_is_that_of_the_values_as_given():
    """Of two equal rows for one index it is the root of two, not two."""
    values = np.ones((2, 1))
    settings = {"rho": 0.0, "momentum": 0.5, "epsilon": 1.0}
    table = np.zeros((1, 1))
    optimizer = rmsjit.RMSprop(1.0, clipnorm=1.0, **settings)
    optimizer.apply_gradients([(IndexedSlices(values, [0, 0]), table)])
    total = 2 / np.sqrt(2)  # not 1
    np.testing.assert_allclose(table, [[-total / np.sqrt(total**2 + 1)]], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_a_bound_that_is_not_reached_changes_no_bit(dtype):
    rng = np.random.default_rng(25)
    table = random_array(rng, (5, 3), dtype)
    slices = random_slices(rng, table, 20)
    results = []
    for clips in ({}, {"clipnorm": 1e6}, {"global_clipnorm": 1e6}):
        copied, optimizer = table.copy(), BOTH.optimizer(**clips)
        optimizer.apply_gradients([(slices, copied)])
        results.append(state_of(optimizer, [copied]))
    assert results[0] == results[1] == results[2]


def test_a_global_norm_that_is_not_finite_leaves_other_rows_alone():
    table, optimizer = np.ones((4, 2)), BOTH.optimizer(global_clipnorm=1.0)
    optimizer.apply_gradients([(IndexedSlices([[np.inf, 1.0], [1.0, 1.0]], [1, 3]), table)])
    assert np.isnan(table).tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]
    assert same_bits(table[[0, 2]], np.ones((2, 2)))


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_steps_that_are_not_finite_can_be_refused(nonfinite, bad):
    rng = np.random.default_rng(32)
    first, table = random_array(rng, (5, 2), "float32"), random_array(rng, (5, 2), "float32")
    optimizer = BOTH.optimizer(nonfinite=nonfinite)
    good = random_slices(rng, table, 8)
    values = good.values.copy()
    values[6, 1] = bad
    for _ in range(2):
        before = state_of(optimizer, [first, table])
        pairs = [(good, first), (IndexedSlices(values, good.indices), table)]
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match="variable 1 must be finite"):
                optimizer.apply_gradients(pairs)
        else:
            optimizer.apply_gradients(pairs)
        assert state_of(optimizer, [first, table]) == before
        checked_step(BOTH, optimizer, [(good, first), (good, table)])


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_the_norm_of_nothing(clip):
    table, optimizer = np.ones((4, 2)), BOTH.optimizer(**{clip: 1.0})
    optimizer.apply_gradients([(IndexedSlices(np.ones((0, 2)), []), table)])
    assert same_bits(table, np.ones((4, 2)))


# --- Errors ----------------------------------------------------------------------------------


def wrong_slices():
    """Gradients that do not fit a table of shape (10, 3), with the error and its message."""
    rows = np.ones((4, 3))
    indices = "variable 1 .* must have indices from 0 to 9 for its 10 rows, got {} at position {}"

    def outside(index, position, dtype="int64"):
        given = np.arange(4).astype(dtype)
        given[position] = index
        return IndexedSlices(rows, given), IndexError, indices.format(index, position)

    yield "too large", outside(10, 2)
    yield "negative", outside(-1, 3)
    yield "negative and small", outside(-128, 0, "int8")
    yield "huge", outside(2**62, 1)
    yield "hugest", outside(2**64 - 1, 1, "uint64")
    yield "half of that", outside(2**63, 1, "uint64")
    yield "swapped bytes", outside(11, 1, ">u2")
    where = "the gradient of variable 1 .* must have "
    shape = where + r"values of shape \(n, \*row\) for a variable of shape \(10, 3\), got \(4, {}\)"
    yield "narrow", (IndexedSlices(np.ones((4, 2)), range(4)), ValueError, shape.format(2))
    deep = IndexedSlices(np.ones((4, 3, 1)), range(4))
    yield "deep", (deep, ValueError, shape.format("3, 1"))
    flat = where + r"values of shape \(n, \*row\) for a variable of shape \(10, 3\), got \(4,\)"
    yield "flat", (IndexedSlices(np.ones(4), range(4)), ValueError, flat)
    other = where + r"its shape \(10, 3\) as dense_shape, got \(9, 3\)"
    yield "dense shape", (IndexedSlices(rows, range(4), (9, 3)), ValueError, other)
    dtype = f"the values of {where}a dtype that casts to float32 as same_kind, got complex128"
    yield "dtype", (IndexedSlices(rows * 1j, range(4)), TypeError, dtype)


WRONG = dict(wrong_slices())


@every_pair(
    name=WRONG,
    clips=[{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}],
    layout=[c_ordered, f_ordered],
)
def test_errors_change_nothing(name, layout, clips):
    slices, error, message = WRONG[name]
    rng = np.random.default_rng(26)
    first, table = np.ones((5, 2)), layout(random_array(rng, (10, 3), "float32"), None)
    table = rmsjit.Variable(table, name="table")
    optimizer = BOTH.optimizer(**clips)
    for _ in range(2):
        before = state_of(optimizer, [first, table]), int(optimizer.iterations)
        good = IndexedSlices(np.ones((2, 2)), [0, 4])
        pairs = [(good, first), (slices, table), (np.ones(3), np.ones(3))]
        with pytest.raises(error, match=message):
            optimizer.apply_gradients(pairs)
        assert (state_of(optimizer, [first, table]), int(optimizer.iterations)) == before
        pairs[1] = (IndexedSlices(np.ones((4, 3)), [9, 1, 1, 0]), table)
        optimizer.apply_gradients(pairs)  # and slots are there at the second attempt
    scratch = optimizer._store.find(table)._scratch
    assert not any(kept.any() for kept in scratch)


def test_messages_name_the_table():
    table = rmsjit.Variable(np.ones((3, 2)), name="embedding")
    with pytest.raises(IndexError, match=r"variable 0 \(embedding:0\) .* got 3 at position 1"):
        BOTH.optimizer().apply_gradients([(IndexedSlices(np.ones((2, 2)), [0, 3]), table)])
    with pytest.raises(IndexError, match=r"the gradient of variable 0 must"):
        BOTH.optimizer().apply_gradients(
            [(IndexedSlices(np.ones((2, 2)), [0, 3]), np.ones((3, 2)))]
        )


def test_no_index_is_a_row_of_an_empty_table():
    with pytest.raises(IndexError, match="for its 0 rows, got 0 at position 0"):
        BOTH.optimizer().apply_gradients([(IndexedSlices(np.ones((1, 2)), [0]), np.ones((0, 2)))])


def test_a_number_has_no_rows():
    with pytest.raises(ValueError, match=r"for a variable of shape \(\), got \(1,\)"):
        BOTH.optimizer().apply_gradients([(IndexedSlices([1.0], [0]), np.array(1.0))])


def test_a_table_with_a_constraint_takes_no_sparse_gradient():
    table = rmsjit.Variable(np.ones((3, 2)), name="table", constraint=np.abs)
    optimizer = BOTH.optimizer()
    with pytest.raises(RuntimeError, match=r"variable 0 \(table:0\) must not be sparse"):
        optimizer.apply_gradients([(IndexedSlices(np.ones((1, 2)), [0]), table)])
    assert int(optimizer.iterations) == 0
    assert same_bits(table.array, np.ones((3, 2)))


@pytest.mark.parametrize("count", [1, 3])
def test_read_only_tables_are_refused(count):
    table, optimizer = np.ones((3, 2)), BOTH.optimizer()
    pairs = [(IndexedSlices(np.ones((1, 2)), [0]), table)]
    for _ in range(count):
        optimizer.apply_gradients(pairs)
    before = table.copy()
    table.flags.writeable = False
    with pytest.raises(ValueError, match="variable 0 must be writeable"):
        optimizer.apply_gradients(pairs)
    assert same_bits(table, before)


def test_a_table_that_was_resized_in_place_is_right_or_refused():
    """Its old memory is gone, and may have come back as a part of the new."""
    table, optimizer = np.ones((3, 2)), BOTH.optimizer()
    for rows in (3, 3, 100_000, 100_000):
        table.resize((rows, 2), refcheck=False)
        with contextlib.suppress(ValueError):
            checked_step(BOTH, optimizer, [(IndexedSlices(np.ones((1, 2)), [rows - 1]), table)])


# --- Memory ----------------------------------------------------------------------------------


def scratch_of(optimizer, table):
    return optimizer._store.find(table)._scratch


@pytest.mark.parametrize("layout", [c_ordered, f_ordered], ids=lambda layout: layout.__name__)
def test_scratch_is_kept_and_left_clean(layout):
    rng = np.random.default_rng(27)
    table, optimizer = layout(np.ones((50, 3)), None), BOTH.optimizer()
    optimizer.apply_gradients([(random_slices(rng, table, 40), table)])
    (kept,) = scratch_of(optimizer, table)
    for count in (0, 1, 200):
        optimizer.apply_gradients([(random_slices(rng, table, count), table)])
        assert [id(scratch) for scratch in scratch_of(optimizer, table)] == [id(kept)]
        assert len(kept) == 50
        assert not kept.any()


def peak_of(action):
    """The most memory that Python and NumPy hold at once during an action, beyond what was held."""
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROWS, COUNT = 200_000, 1000
PLANS = 64 * 1024  # bytes for Python's objects, those that a plan keeps included


@pytest.mark.slow
@pytest.mark.parametrize("layout", [c_ordered, f_ordered], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("mode", ["rows", "exact"])
def test_no_step_allocates_as_much_as_the_table_has_rows(layout, mode):
    rng = np.random.default_rng(28)
    table = layout(np.zeros((ROWS, 4), np.float32), None)
    optimizer = BOTH.optimizer(sparse=mode)
    for _ in range(2):
        optimizer.apply_gradients([(random_slices(rng, table, COUNT), table)])
    slices = random_slices(rng, table, COUNT)
    peak = peak_of(lambda: optimizer.apply_gradients([(slices, table)]))
    assert peak < PLANS + COUNT * 200 < ROWS * 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rows", "exact"])
@pytest.mark.parametrize("index", ["int64", "int32"])
@pytest.mark.parametrize("many", [10, 500_000])
def test_memory_beside_variable_and_slots_stays_small(mode, index, many):
    """Under 10 bytes for each row and 16 for each index, over whole steps and syncs."""
    rng = np.random.default_rng(29)
    table = np.zeros((ROWS, 4), np.float32)
    slices = random_slices(rng, table, many)
    slices = IndexedSlices(slices.values, slices.indices.astype(index))
    few = random_slices(rng, table, 10)

    def train():
        optimizer = BOTH.optimizer(sparse=mode)
        optimizer.apply_gradients([(slices, table)])
        optimizer.apply_gradients([(few, table)])
        optimizer.sync()

    train()  # what compiling and loading take is not meant
    peak = peak_of(train) - 3 * table.nbytes
    assert peak < 10 * ROWS + 16 * many + PLANS


# --- Tables that are files -------------------------------------------------------------------


def file_allocator(folder):
    """Slots as files slot-0, slot-1, ... in a folder."""
    made = []

    def allocate(shape, dtype):
        path = folder / f"slot-{len(made)}"
        made.append(np.memmap(path, dtype, "w+", shape=shape))
        return made[-1]

    return allocate, made


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("mode", ["rows", "exact"])
def test_a_table_and_slots_that_are_files(order, mode, tmp_path):
    rng = np.random.default_rng(30)
    start = random_array(rng, (1000, 8), "float32")
    table = np.memmap(tmp_path / "table", "float32", "w+", shape=(1000, 8), order=order)
    table[...] = start
    allocate, slots = file_allocator(tmp_path)
    mapped = BOTH.optimizer(sparse=mode, slot_allocator=allocate)
    plain, other = BOTH.optimizer(sparse=mode), np.array(start, order=order)
    for _ in range(5):
        slices = random_slices(rng, table, 300)
        mapped.apply_gradients([(slices, table)])
        plain.apply_gradients([(slices, other)])
    assert state_of(mapped, [table]) == state_of(plain, [other])

    for name in BOTH.slots:
        slot = mapped.get_slot(table, name).array
        assert any(np.shares_memory(slot, memory) for memory in slots)
    for memory in (table, *slots):
        memory.flush()
    read = np.fromfile(tmp_path / "table", "float32").reshape((1000, 8), order=order)
    assert same_bits(read, other)
    assert len(slots) == len(BOTH.slots)
    for number, weight in enumerate(plain.weights[1:]):
        read = np.fromfile(tmp_path / f"slot-{number}", "float32")
        assert same_bits(read.reshape((1000, 8), order=order), weight.array)


def test_training_goes_on_from_the_files(tmp_path):
    """As after a restart: the table and its slots are opened, not computed."""
    rng = np.random.default_rng(31)
    start = random_array(rng, (100, 8), "float32")
    batches = [random_slices(rng, start, 50) for _ in range(6)]
    other, plain = start.copy(), BOTH.optimizer()
    for slices in batches:
        plain.apply_gradients([(slices, other)])

    table = np.memmap(tmp_path / "table", "float32", "w+", shape=start.shape)
    table[...] = start
    allocate, slots = file_allocator(tmp_path)
    optimizer = BOTH.optimizer(slot_allocator=allocate)
    for slices in batches[:3]:
        optimizer.apply_gradients([(slices, table)])
    for memory in (table, *slots):
        memory.flush()
    del table, slots, optimizer, memory

    table = np.memmap(tmp_path / "table", "float32", "r+", shape=start.shape)
    optimizer = BOTH.optimizer()
    optimizer.build([table])
    weights = [np.fromfile(tmp_path / f"slot-{k}", "float32").reshape(100, 8) for k in range(3)]
    optimizer.set_weights([np.array(3), *weights])
    for slices in batches[3:]:
        optimizer.apply_gradients([(slices, table)])
    assert same_bits(np.asarray(table), other)
    assert state_of(optimizer, []) == state_of(plain, [])
