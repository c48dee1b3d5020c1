"""The promises about compiled code: packed, cached, compiled once."""

import platform
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rmsjit
from rmsjit.arrays.dtypes import precision_of
from rmsjit.steps.partition import backwards, cut_by_length, cut_evenly
from strategies import BOTH, DTYPES, KERAS, random_array, run_python

x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly"
)


def assembly(dtype, centered, momentum, parallel):
    """What `rmsjit.kernels.loader.update_dense` would load, compiled here and now."""
    from numba import njit

    from rmsjit.kernels import dense, loader

    asked = []

    def note(function, signature, **settings):
        asked.append((function, signature))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "compile_kernel", note)
        loader.update_dense.__wrapped__(precision_of(np.dtype(dtype)), centered, momentum, parallel)
    ((function, signature),) = asked
    assert function is dense.update_dense
    flags = {"error_model": "numpy", "nogil": True, "boundscheck": False}
    dispatcher = njit(parallel=parallel, **flags)(function)
    dispatcher.compile(signature)
    return dispatcher.inspect_asm(signature)


def packed_loops(text, instruction):
    """The stretches between labels in which an instruction occurs."""
    blocks = re.split(r"^[.\w$]+:", text, flags=re.MULTILINE)
    return [block for block in blocks if re.search(rf"\b{instruction}\b", block)]


KERNELS = [
    (dtype, centered, momentum, False)
    for dtype in ("float32", "float64")
    for centered in (False, True)
    for momentum in (False, True)
]
KERNELS += [("float32", True, True, True)]


@x86
@pytest.mark.parametrize(("dtype", "centered", "momentum", "parallel"), KERNELS)
def test_roots_are_packed_and_nothing_is_allocated(dtype, centered, momentum, parallel):
    text = assembly(dtype, centered, momentum, parallel)
    packed, other = ("v?sqrtps", "v?sqrtpd") if dtype == "float32" else ("v?sqrtpd", "v?sqrtps")
    loops = packed_loops(text, packed)
    assert loops
    assert not packed_loops(text, other), "a number of another width has got into the loop"
    assert not any(re.search(r"\bcall", loop) for loop in loops)
    assert not re.search(r"NRT_MemInfo_alloc|NRT_Allocate|NRT_MemInfo_new", text)


@x86
def test_the_search_for_packed_roots_finds_none_where_there_are_none():
    """With Python's error model each division is checked for zero, which forbids packing."""
    from numba import float32, njit

    @njit((float32[::1], float32[::1]), error_model="python")
    def checked(a, b):
        for i in range(len(a)):
            a[i] = np.sqrt(a[i]) / b[i]

    text = checked.inspect_asm(checked.signatures[0])
    assert packed_loops(text, "v?sqrtss")
    assert not packed_loops(text, "v?sqrtps")


def compilations():
    from numba.core import event

    return event.install_recorder("numba:compile")


def a_few_steps(dtype, form, size=33, **arguments):
    rng = np.random.default_rng(0)
    optimizer = form.optimizer(**arguments)
    variables = [random_array(rng, size, dtype), random_array(rng, (3, size), dtype)]
    for _ in range(2):
        optimizer.apply_gradients([(random_array(rng, v.shape, dtype), v) for v in variables])
    return optimizer, variables


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_step_compiles_nothing(dtype):
    a_few_steps(dtype, BOTH, clipnorm=1.0)
    with compilations() as recorder:
        optimizer, variables = a_few_steps(dtype, BOTH, size=77, clipnorm=1.0)
        optimizer.learning_rate = lambda: 0.5
        optimizer.apply_gradients([(v[::-1], v) for v in variables])
        optimizer.apply_gradients([(v[::2].copy(), v[::2]) for v in [np.ones(9, dtype)]])
    assert not recorder.buffer


def test_the_recorder_sees_a_compilation():
    from numba import njit

    with compilations() as recorder:
        njit(lambda x: x)(1)
    assert recorder.buffer


STEPS = """
import numpy as np
from numba.core import event
import rmsjit
with event.install_recorder("numba:compile") as recorder:
    for dtype, size in (("float32", 5), ("float32", 1_100_000), ("float64", 5)):
        optimizer = rmsjit.RMSprop(num_threads=2)
        w = np.ones(size, dtype)
        for _ in range(2):
            optimizer.apply_gradients([(w.copy(), w)])
print(len(recorder.buffer))
"""


def test_a_fresh_process_loads_what_another_compiled(tmp_path):
    """And every kernel has a file of its own."""

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    environment = {"RMSJIT_CACHE_DIR": str(tmp_path)}
    assert int(run_python(STEPS, **environment)) > 0
    made = files()
    assert int(run_python(STEPS, **environment)) == 0
    assert files() == made
    assert {path.suffix for path in made} == {".kernel"}
    assert len(made) == 3 + 1  # three updates, and the reader of gradients


@pytest.mark.parametrize("form", KERAS, ids=str)
def test_a_kernel_belongs_to_one_dtype_and_set_of_slots(form):
    """So that no index ever has two entries."""
    from rmsjit.kernels import loader

    momentum = form.momentum > 0
    kernels = {
        loader.update_dense(precision_of(np.dtype(dtype)), form.centered, momentum, False)
        for dtype in DTYPES
    }
    assert len(kernels) == len(DTYPES)


# --- Sharing out work ------------------------------------------------------------------------

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=5).map(np.array)


def assert_covers(part, sizes, bins):
    """Every element is in one piece of one bin."""
    assert len(part.bins) == bins + 1
    assert part.bins[0] == 0
    assert part.bins[-1] == len(part.pieces)
    assert np.all(np.diff(part.bins) >= 0)
    counts = [np.zeros(size, int) for size in sizes]
    for row, start, count in part.pieces:
        assert count > 0
        assert start + count <= sizes[row]
        counts[row][start : start + count] += 1
    assert all(np.all(count == 1) for count in counts)


@given(
    sizes=lengths,
    bins=st.integers(1, 7),
    width=st.sampled_from([2, 4, 8, 16]),
    seed=st.integers(0, 99),
)
def test_bins_are_even_and_cut_on_cache_lines(sizes, bins, width, seed):
    addresses = 4096 + width * np.random.default_rng(seed).integers(0, 64, len(sizes))
    part = cut_evenly(sizes, addresses, width, bins)
    assert_covers(part, sizes, bins)
    starts = part.pieces[part.bins[1:-1][part.bins[1:-1] < len(part.pieces)]]
    for row, start, _ in starts:
        assert start == 0 or (addresses[row] + start * width) % 64 == 0
    for low, high in zip(part.bins, part.bins[1:], strict=False):
        assert part.pieces[low:high, 2].sum() <= sizes.sum() / bins + 64 / width + 1


@pytest.mark.parametrize("bins", [1, 2, 3])
@pytest.mark.parametrize("misfit", [0, 4, 16, 60])
def test_long_pieces_begin_on_a_cache_line(misfit, bins):
    sizes = np.array([50, 20_000, 5])
    part = cut_evenly(sizes, np.array([4096, 4096 + misfit, 8192]), 4, bins)
    assert_covers(part, sizes, bins)
    long = part.pieces[part.pieces[:, 2] > 100]
    assert len(long)
    assert np.all((misfit + 4 * long[:, 1]) % 64 == 0)


@pytest.mark.parametrize("dtype", [None, "float16", "complex128"])
@pytest.mark.parametrize(
    "prototype",
    [
        np.zeros(()),
        np.zeros(0),
        np.zeros((3, 5), np.float32),
        np.zeros((2, 3, 4)).transpose(1, 2, 0),
    ],
    ids=lambda array: str(array.shape),
)
def test_aligned_arrays(prototype, dtype):
    array = rmsjit.empty_like_aligned(prototype, dtype)
    expected = np.empty_like(prototype, dtype)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    if array.size:
        assert (array.ctypes.data % 64, array.strides) == (0, expected.strides)
    assert array.flags.writeable


@given(sizes=lengths, bins=st.integers(1, 7), length=st.sampled_from([1, 8, 100]))
def test_pieces_of_norms_do_not_depend_on_the_bins(sizes, bins, length):
    part = cut_by_length(sizes, length, bins)
    assert_covers(part, sizes, bins)
    assert np.array_equal(part.pieces, cut_by_length(sizes, length, 1).pieces)
    assert np.all(part.pieces[:, 1] % length == 0)


@given(sizes=lengths, bins=st.integers(1, 7), length=st.sampled_from([1, 8, 100]))
def test_work_turned_round_is_the_same_work(sizes, bins, length):
    part = cut_evenly(sizes, np.full(len(sizes), 4096), 4, bins)
    turned = backwards(part, length)
    assert_covers(turned, sizes, bins)
    for k in range(bins):
        one, other = (p.pieces[p.bins[k] : p.bins[k + 1]] for p in (part, turned))
        assert one[:, 2].sum() == other[:, 2].sum()
        assert [tuple(p) for p in other[::-1, :2]] == sorted(tuple(p) for p in other[:, :2])
