"""Memory that is used again once nobody refers to it."""

import copy
import pickle
import weakref

import numpy as np
import pytest

from rmsjit.arrays import recycled
from rmsjit.arrays.recycled import RecycledMemory

SIZE, DTYPE = 1 << 16, np.dtype("float32")


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_refers_to_is_used_again():
    memory = RecycledMemory()
    first = memory.array(SIZE, DTYPE)
    where = address(first)
    second = memory.array(SIZE, DTYPE)
    assert address(second) != where
    del first
    assert address(memory.array(SIZE, DTYPE)) == where


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[3:5],
        lambda array: array.reshape(2, -1).T[1:],
        lambda array: array.view(np.int32),
        memoryview,
        lambda array: [array],
    ],
)
def test_a_view_keeps_memory_in_use(hold):
    memory = RecycledMemory()
    held = hold(memory.array(SIZE, DTYPE))
    other = memory.array(SIZE, DTYPE)
    assert not np.shares_memory(np.asarray(held), other)


def test_other_sizes_and_dtypes_have_their_own_memory():
    memory = RecycledMemory()
    for size, dtype in (
        (SIZE, "float32"),
        (SIZE, "float64"),
        (SIZE + 1, "float32"),
        (3, "float64"),
    ):
        array = memory.array(size, np.dtype(dtype))
        assert array.shape == (size,)
        assert array.dtype == dtype


def test_sizes_that_are_not_asked_for_any_more_are_released():
    memory = RecycledMemory()
    gone, kept = (weakref.ref(memory.array(SIZE + k, DTYPE)) for k in range(2))
    for _ in range(2):
        memory.turn()
        memory.array(SIZE + 1, DTYPE)
    assert gone() is None
    assert kept() is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_no_memory(copied):
    memory = RecycledMemory()
    where = address(memory.array(SIZE, DTYPE))
    assert len(pickle.dumps(memory)) < 200
    assert address(copied(memory).array(SIZE, DTYPE)) != where


def test_without_a_lock_all_memory_is_new(monkeypatch):
    """Where references are counted in another way."""
    monkeypatch.setattr("sys._is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(recycled, "_FREE", recycled._references_to_a_free_array())
    memory = RecycledMemory()
    first = weakref.ref(memory.array(SIZE, DTYPE))
    assert memory.array(SIZE, DTYPE) is not first()
