"""Contiguous copies of gradients that kernels can't read in place."""

import tracemalloc

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays import recycled
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.steps import converting
from rmsjit.steps.converting import ContiguousCopies

PAIRS = [
    ("float16", "float32"),
    ("bfloat16", "float16"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float32", "float32"),
    ("float64", "float16"),  # which kernels leave to NumPy, as they would round twice
    ("float64", "float32"),
    ("complex128", "complex64"),
    ("int8", "float32"),
]
SHAPES = ((7,), (5000,), (33, 65), (64, 3), (3, 40, 35), (2, 3, 5, 7), (1, 9, 1))
VIEWS = {
    "whole": lambda a: a,
    "transposed": lambda a: a.T,
    "reversed": lambda a: a[::-1],
    "every second": lambda a: a[..., ::2],
    "rows": lambda a: a[1:][::3].T,
    "swapped": lambda a: a.swapaxes(0, -1),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "one": lambda a: a[..., :1],
    "none": lambda a: a[:0],
    "not aligned": lambda a: unaligned(a),
}


def unaligned(array):
    """The same numbers, at addresses that their dtype does not like."""
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    other = memory.view(array.dtype).reshape(array.shape)
    other[...] = array
    return other


@pytest.fixture(params=["by NumPy", "by kernels"])
def copying(request, monkeypatch):
    """Both ways to copy: few numbers, and many."""
    monkeypatch.setattr(converting, "LEAST_BYTES", 0 if request.param == "by kernels" else 1 << 40)
    monkeypatch.setattr(recycled, "_LEAST_BYTES", 0)


in_both_ways = pytest.mark.usefixtures("copying")


def numbers(shape, dtype):
    """Of all magnitudes, some of which are no numbers of another dtype."""
    rng = np.random.default_rng(5)
    if dtype.kind == "i":
        return rng.integers(-9, 9, shape).astype(dtype)
    drawn = rng.normal(size=shape) * 10.0 ** rng.integers(-45, 45, shape)
    drawn = np.where(rng.random(shape) < 0.05, [[np.inf], [np.nan]][shape[0] % 2], drawn)
    with np.errstate(all="ignore"):
        return (drawn + 1j * drawn[::-1] if dtype.kind == "c" else drawn).astype(dtype)


def wide(array):
    """For comparison: a NaN of bfloat16 equals no other one."""
    return array if array.dtype.kind == "c" else array.astype(float)


@in_both_ways
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_copy_has_the_numbers_that_numpy_makes(source, target, view):
    source, target = dtype_named(source), dtype_named(target)
    copies = ContiguousCopies(2)
    for shape in SHAPES:
        array = view(numbers(shape, source))
        with np.errstate(all="ignore"):
            expected = array.astype(target)
        copy = copies.of(array, target)
        assert copy.flags.c_contiguous
        assert not np.shares_memory(copy, array)
        assert copy.dtype == target
        np.testing.assert_array_equal(wide(copy), wide(expected))


@in_both_ways
def test_a_scalar_is_copied():
    copy = ContiguousCopies(1).of(np.array(3.0), np.dtype("float32"))
    assert copy.shape == ()
    assert copy == 3.0


GRADIENTS = {
    "transposed": lambda g: g.T.copy().T,
    "strided": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "float64": lambda g: g.astype(float),
    "read-only": lambda g: np.broadcast_to(g[:1], g.shape),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("change", GRADIENTS.values(), ids=GRADIENTS)
def test_steps_with_large_gradients_of_other_layouts(change, threads):
    rng = np.random.default_rng(2)
    ours, plain = np.ones((300, 257), np.float32), np.ones((300, 257), np.float32)
    one, other = (rmsjit.RMSprop(0.1, num_threads=threads) for _ in range(2))
    for _ in range(40):  # more than trials take
        gradient = change(rng.normal(size=ours.shape).astype(np.float32))
        one.apply_gradients([(gradient, ours)])
        other.apply_gradients([(np.array(gradient, np.float32, order="C"), plain)])
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("index", [np.s_[:, ::2], np.s_[::2], np.s_[::-1, 1::2], np.s_[3]])
def test_large_strided_variables(index, threads):
    rng = np.random.default_rng(2)
    whole = np.ones((300, 40_000 // 100), np.float32)
    view = whole[index]
    plain = view.copy()
    one, other = (rmsjit.RMSprop(0.1, num_threads=threads) for _ in range(2))
    for _ in range(40):
        gradient = rng.normal(size=view.shape).astype(np.float32)
        one.apply_gradients([(gradient, view)])
        other.apply_gradients([(gradient, plain)])
    np.testing.assert_array_equal(view, plain)
    whole[index] = 1.0
    assert (whole == 1.0).all()


def test_memory_of_copies_is_used_again():
    w, gradient = np.zeros((300, 1000)), np.ones((1000, 300)).T
    opt = rmsjit.RMSprop(0.1)
    for _ in range(3):
        opt.apply_gradients([(gradient, w)])
    tracemalloc.start()
    try:
        opt.apply_gradients([(gradient, w)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < w.nbytes / 4
