"""`IndexedSlices` by itself: what it accepts, holds and turns into."""

import copy
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsjit
from rmsjit import IndexedSlices
from strategies import DTYPES, random_array, same_bits, seeds

INDEX_DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"]


def dense_twin(values, indices, shape):
    """The whole gradient, one addition after the other."""
    dense = np.zeros(shape, values.dtype)
    for value, index in zip(values, indices, strict=True):
        dense[index] += value
    return dense


# --- Construction ----------------------------------------------------------------------------


def test_holds_arrays_as_they_are():
    values, indices = np.ones((3, 2), np.float32)[::-1], np.array([2, 0, 2], np.uint16)
    slices = IndexedSlices(values, indices)
    assert slices.values is values
    assert slices.indices is indices
    assert slices.dtype == np.float32
    assert slices.dense_shape is None
    assert slices.shape is None


def test_takes_nested_lists():
    slices = IndexedSlices([[1.0, 2.0], [3.0, 4.0]], (5, 0), [6, 2])
    assert slices.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert slices.indices.tolist() == [5, 0]
    assert slices.dense_shape == slices.shape == (6, 2)
    assert [type(length) for length in slices.dense_shape] == [int, int]


def test_takes_variables_by_their_memory():
    values = rmsjit.Variable(np.ones((2, 3)), name="values")
    indices = rmsjit.Variable([1, 0], name="indices")
    slices = IndexedSlices(values, indices)
    assert slices.values is values.array
    assert slices.indices is indices.array


@pytest.mark.parametrize("dtype", INDEX_DTYPES)
def test_takes_every_integer_dtype_of_indices(dtype):
    indices = np.array([3, 1, 3], dtype)
    slices = IndexedSlices(np.ones(3), indices, (4,))
    assert slices.indices is indices
    assert slices.to_dense().tolist() == [0, 1, 0, 2]
    assert slices.coalesce().indices.tolist() == [1, 3]


def test_takes_no_rows_at_all():
    slices = IndexedSlices(np.ones((0, 2)), [], (3, 2))
    assert slices.indices.dtype == np.int64
    assert slices.to_dense().tolist() == [[0, 0]] * 3
    assert slices.coalesce().values.shape == (0, 2)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "indices must be integers, got dtype float64"),
        ([True, False], TypeError, "indices must be integers, got dtype bool"),
        (["a", "b"], TypeError, "indices must be integers, got dtype <U1"),
        (np.empty(0), TypeError, "indices must be integers, got dtype float64"),
        ([[0], [1]], ValueError, r"indices must be one-dimensional, got shape \(2, 1\)"),
        (1, ValueError, r"indices must be one-dimensional, got shape \(\)"),
        ([0], ValueError, r"one slice for each of the 1 indices, got values of shape \(2, 3\)"),
    ],
)
def test_refuses_wrong_indices(indices, error, message):
    with pytest.raises(error, match=message):
        IndexedSlices(np.ones((2, 3)), indices)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (1.0, ValueError, r"values must hold one slice for each of the 2 indices, .* \(\)"),
        (["a", "b"], TypeError, "values must be numbers, got dtype <U1"),
        ([None, None], TypeError, "values must be numbers, got dtype object"),
        (np.ones(2, "M8[s]"), TypeError, "values must be numbers"),
    ],
)
def test_refuses_wrong_values(values, error, message):
    with pytest.raises(error, match=message):
        IndexedSlices(values, [0, 1])


@pytest.mark.parametrize("dense_shape", [(), (4,), (4, 2), (4, 3, 1), (-1, 3)])
def test_refuses_a_dense_shape_that_does_not_fit(dense_shape):
    with pytest.raises(ValueError, match=r"dense_shape must be \(rows, \*\(3,\)\)"):
        IndexedSlices(np.ones((2, 3)), [0, 1], dense_shape)


@pytest.mark.parametrize("dense_shape", [4, (4.0, 3), "43", ("4", 3)])
def test_refuses_a_dense_shape_that_is_no_integers(dense_shape):
    with pytest.raises(TypeError, match="dense_shape must be a tuple of integers, got"):
        IndexedSlices(np.ones((2, 3)), [0, 1], dense_shape)


# --- An object -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["values", "indices", "dense_shape", "dtype", "anything"])
def test_parts_cannot_be_exchanged(name):
    slices = IndexedSlices(np.ones(1), [0])
    with pytest.raises(AttributeError):
        setattr(slices, name, np.array([0.5]))


def test_compares_by_identity():
    one, other = (IndexedSlices(np.ones(1), [0]) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_own_their_arrays(duplicate):
    slices = IndexedSlices(np.ones((2, 3)), [4, 4], (5, 3))
    copied = duplicate(slices)
    assert same_bits(copied.values, slices.values)
    assert same_bits(copied.indices, slices.indices)
    assert copied.dense_shape == (5, 3)
    assert not np.shares_memory(copied.values, slices.values)


def test_repr_tells_sizes():
    slices = IndexedSlices(np.ones((2, 3), np.float32), [4, 4], (5, 3))
    assert repr(slices) == (
        "IndexedSlices(values of shape (2, 3) and dtype float32, 2 indices, dense_shape=(5, 3))"
    )


# --- Sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("row", [(), (3,), (2, 1, 2)])
@settings(max_examples=25)
@given(seed=seeds, rows=st.integers(1, 9), count=st.integers(0, 40))
def test_sums_are_in_order_of_occurrence(dtype, row, seed, rows, count):
    rng = np.random.default_rng(seed)
    values, indices = random_array(rng, (count, *row), dtype), rng.integers(0, rows, count)
    slices = IndexedSlices(values, indices, (rows, *row))
    expected = dense_twin(values, indices, (rows, *row))
    assert same_bits(slices.to_dense(), expected)
    together = slices.coalesce()
    assert together.indices.tolist() == sorted(set(indices.tolist()))
    assert same_bits(together.values, expected[together.indices])
    assert together.dense_shape == slices.dense_shape
    assert same_bits(together.to_dense(), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_summed_in_float32_and_rounded_once(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.array([1, *[float(ml_dtypes.finfo(dtype).eps) / 2] * 4], dtype)
    slices = IndexedSlices(values, np.zeros(5, int), (1,))
    expected = np.array([values.astype(np.float32).sum()]).astype(dtype)
    assert expected > 1  # each addition by itself would be lost
    assert same_bits(slices.to_dense(), expected)
    assert same_bits(slices.coalesce().values, expected)


def test_small_integers_are_summed_as_numpy_sums_them():
    assert IndexedSlices(np.full(3, 100, np.int8), [0, 0, 0], (1,)).to_dense().tolist() == [300]
    assert IndexedSlices([True, True], [0, 0], (1,)).to_dense().tolist() == [2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_gradients_keep_the_dtype(dtype):
    slices = IndexedSlices(np.ones((2, 2), dtype), [1, 1], (3, 2))
    assert slices.to_dense().dtype == slices.coalesce().dtype == np.dtype(dtype)


def test_dense_needs_a_shape():
    with pytest.raises(ValueError, match="to_dense needs dense_shape"):
        IndexedSlices(np.ones(1), [0]).to_dense()


@pytest.mark.parametrize(("index", "dtype"), [(5, "int8"), (-1, "int64"), (2**64 - 1, "uint64")])
def test_dense_needs_rows_that_are_there(index, dtype):
    slices = IndexedSlices(np.ones(2), np.array([0, index], dtype), (5,))
    with pytest.raises(IndexError, match=rf"indices\[1\] is {index}, but there are 5 rows"):
        slices.to_dense()


# --- scipy.sparse ----------------------------------------------------------------------------

FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_scipy_matrix(form, kind):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros((7, 3), np.float32)
    dense[[1, 4, 6]] = [[0, 2, 0], [1, 0, 3], [0, 0, 4]]
    slices = IndexedSlices.from_scipy(getattr(sparse, f"{form}_{kind}")(dense))
    assert slices.indices.tolist() == [1, 4, 6]
    assert same_bits(slices.values, dense[[1, 4, 6]])
    assert slices.dense_shape == (7, 3)
    assert same_bits(slices.to_dense(), dense)


def test_scipy_entries_that_come_twice_are_added_and_zeros_that_are_stored_count():
    sparse = pytest.importorskip("scipy.sparse")
    entries = ([1.0, 2.0, 0.0], ([3, 3, 0], [1, 1, 0]))
    slices = IndexedSlices.from_scipy(sparse.coo_array(entries, shape=(5, 2)))
    assert slices.indices.tolist() == [0, 3]
    assert slices.values.tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 2)])
def test_scipy_matrix_without_entries(shape):
    sparse = pytest.importorskip("scipy.sparse")
    slices = IndexedSlices.from_scipy(sparse.csr_array(shape))
    assert slices.values.shape == (0, shape[1])
    assert slices.dense_shape == shape


def test_scipy_matrix_is_a_gradient():
    sparse = pytest.importorskip("scipy.sparse")
    inputs = sparse.random_array((8, 50), density=0.05, format="csr", rng=0)
    slope = np.random.default_rng(0).normal(size=(8, 3))
    gradient = sparse.csr_array(inputs.T @ sparse.csr_array(slope))
    weights, whole = np.ones((50, 3)), np.ones((50, 3))
    rmsjit.RMSprop().apply_gradients([(IndexedSlices.from_scipy(gradient), weights)])
    rmsjit.RMSprop().apply_gradients([(gradient.toarray(), whole)])
    np.testing.assert_allclose(weights, whole, rtol=1e-15)


def test_scipy_rows_take_memory_for_themselves_only():
    sparse = pytest.importorskip("scipy.sparse")
    huge = sparse.csr_array(([1.0], ([99_999], [0])), shape=(10**5, 10**5))  # 80 GB if dense
    slices = IndexedSlices.from_scipy(huge)
    assert slices.indices.tolist() == [99_999]
    assert slices.values.shape == (1, 10**5)


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), [[1.0]], None])
def test_from_scipy_refuses_what_is_not_sparse(matrix):
    with pytest.raises(TypeError, match=r"matrix must be a scipy\.sparse matrix or array, got"):
        IndexedSlices.from_scipy(matrix)


def test_from_scipy_refuses_other_dimensions():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"must be two-dimensional, got shape \(3,\)"):
        IndexedSlices.from_scipy(sparse.coo_array(np.ones(3)))


def test_scipy_is_imported_by_nothing_here():
    script = "import sys, rmsjit; rmsjit.IndexedSlices([1], [0]); assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
