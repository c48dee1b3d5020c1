"""Sparse gradients of torch and TensorFlow as `IndexedSlices`; live where these are installed."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit import IndexedSlices


class CooTensor:
    """What `from_torch` needs of a tensor of torch."""

    is_sparse = True

    def __init__(self, indices, values, shape):
        self.indices, self.values, self.shape = np.array(indices), np.array(values), shape

    def _indices(self):
        return self.indices

    def _values(self):
        return self.values


def test_rows_of_torch():
    slices = IndexedSlices.from_torch(CooTensor([[2, 0, 2]], np.ones((3, 4), "float32"), (5, 4)))
    assert slices.indices.tolist() == [2, 0, 2]
    assert (slices.values.shape, slices.dtype, slices.dense_shape) == ((3, 4), np.float32, (5, 4))


def test_elements_of_torch_become_rows():
    places = [[2, 0, 2, 2], [1, 0, 1, 3]]
    slices = IndexedSlices.from_torch(CooTensor(places, [1.0, 2.0, 3.0, 4.0], (5, 4)))
    assert slices.indices.tolist() == [0, 2]
    assert slices.values.tolist() == [[2, 0, 0, 0], [0, 4, 0, 4]]
    empty = IndexedSlices.from_torch(CooTensor(np.zeros((2, 0), int), [], (5, 4)))
    assert (empty.values.shape, empty.dense_shape) == ((0, 4), (5, 4))


@pytest.mark.parametrize("shape", [None, np.array([5, 4])])
def test_slices_of_tensorflow(shape):
    tensors = {"values": np.ones((2, 4)), "indices": np.array([3, 3]), "dense_shape": shape}
    slices = IndexedSlices.from_tensorflow(SimpleNamespace(**tensors))
    assert slices.indices.tolist() == [3, 3]
    assert slices.dense_shape == (None if shape is None else (5, 4))


def test_what_is_no_sparse_gradient():
    with pytest.raises(TypeError, match=r"layout torch\.sparse_coo, got ndarray"):
        IndexedSlices.from_torch(np.ones(3))
    with pytest.raises(TypeError, match=r"slices must be a tf\.IndexedSlices, got ndarray"):
        IndexedSlices.from_tensorflow(np.ones(3))


# --- live -----------------------------------------------------------------------------------


@pytest.mark.live
def test_an_embedding_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    embedding = torch.nn.Embedding(6, 3, sparse=True)
    (embedding(torch.tensor([4, 1, 4])) ** 2).sum().backward()
    table = embedding.weight.detach().numpy().copy()
    expected = table.copy()
    slices = IndexedSlices.from_torch(embedding.weight.grad)
    np.testing.assert_array_equal(slices.to_dense(), embedding.weight.grad.to_dense())
    rmsjit.RMSprop().apply_gradients([(slices, table)])
    rmsjit.RMSprop().apply_gradients([(embedding.weight.grad.to_dense().numpy(), expected)])
    np.testing.assert_allclose(table, expected, rtol=1e-6)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of torch's, that other layouts are in beta
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sparse_tensors_of_torch(dtype, axes):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dense = torch.arange(24.0).reshape(4, 3, 2).to(getattr(torch, dtype))
    dense[1], dense[2, 1] = 0, 0
    slices = IndexedSlices.from_torch(dense.to_sparse(axes))
    assert slices.indices.tolist() == [0, 2, 3]
    assert slices.dtype == np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    wide = torch.complex64 if dtype == "complex64" else torch.float64
    np.testing.assert_array_equal(
        slices.to_dense().astype("complex64" if dtype == "complex64" else "float64"),
        dense.to(wide).numpy(),
    )
    with pytest.raises(TypeError, match=r"got torch\.strided"):
        IndexedSlices.from_torch(dense)
    with pytest.raises(TypeError, match=r"got torch\.sparse_csr"):
        IndexedSlices.from_torch(dense[:, :, 0].to_sparse_csr())


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of TensorFlow's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gather_of_tensorflow(dtype):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    table = tf.Variable(tf.cast(tf.reshape(tf.range(12), (6, 2)), dtype))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [4, 1, 4]) ** 2)
    gradient = tape.gradient(loss, table)
    assert isinstance(gradient, tf.IndexedSlices)
    slices = IndexedSlices.from_tensorflow(gradient)
    assert slices.indices.tolist() == [4, 1, 4]
    assert slices.dense_shape == (6, 2)
    np.testing.assert_array_equal(slices.to_dense(), tf.convert_to_tensor(gradient).numpy())
