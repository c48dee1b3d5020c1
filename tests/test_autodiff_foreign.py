"""Code that tapes know nothing of: it is differentiated or refused, never taken for a constant."""

import array
import copy
import ctypes
import pickle

import autograd.numpy as anp
import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit import GradientTape, Variable

sparse = pytest.importorskip("scipy.sparse")
special = pytest.importorskip("scipy.special")
linalg = pytest.importorskip("scipy.sparse.linalg")

FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]
KINDS = [*(f"{name}_matrix" for name in FORMATS), *(f"{name}_array" for name in FORMATS)]
rng = np.random.default_rng(0)
DENSE = rng.normal(size=(6, 4)) * (rng.random((6, 4)) < 0.5)
every_kind = pytest.mark.parametrize("kind", KINDS)


def matrix(kind, values=DENSE):
    return getattr(sparse, kind)(values)


def gradient_of(loss, value, dtype="float64"):
    v = Variable(np.array(value, dtype))
    with GradientTape() as tape:
        target = loss(v)
    return tape.gradient(target, v)


# --- products with sparse matrices ----------------------------------------------------------

PRODUCTS = {  # of a sparse (or dense) A of (6, 4) and x
    "A @ x": (lambda A, x: A @ x, (4, 3)),
    "A @ vector": (lambda A, x: A @ x, (4,)),
    "A.T @ x": (lambda A, x: A.T @ x, (6, 2)),
    "A @ result": (lambda A, x: A @ (x * 2), (4, 3)),
    "x @ A": (lambda A, x: x @ A, (3, 6)),
    "vector @ A": (lambda A, x: x @ A, (6,)),
    "x.T @ A": (lambda A, x: x.T @ A, (6, 3)),
    "result @ A": (lambda A, x: anp.exp(x) @ A, (3, 6)),
    "both": (lambda A, x: x.T @ A @ x[:4], (6, 2)),
    "twice": (lambda A, x: A.T @ (A @ x), (4, 2)),
}


@every_kind
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_dense_matrices(kind, name):
    product, shape = PRODUCTS[name]
    x = rng.normal(size=shape)
    A = matrix(kind)

    def loss(A):
        return lambda v: anp.sum(product(A, v) ** 2) + 0.1 * anp.sum(v**2)

    gradient = gradient_of(loss(A), x)
    np.testing.assert_allclose(gradient, gradient_of(loss(DENSE), x), rtol=1e-12)
    assert type(gradient) is np.ndarray


@every_kind
def test_products_are_plain_without_a_tape(kind):
    A, v = matrix(kind), Variable(rng.normal(size=(4, 6)))
    for product, expected in (
        (A @ v, DENSE @ v.array),
        (v @ A, v.array @ DENSE),
        (v.T @ A.T, v.array.T @ DENSE.T),
    ):
        assert type(product) is np.ndarray
        np.testing.assert_allclose(product, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_gradients_are_of_the_dtype_of_the_variable(dtype):
    x = rng.normal(size=(4, 2)) + 1j * rng.normal(size=(4, 2)) * (np.dtype(dtype).kind == "c")
    values = DENSE + 1j * np.roll(DENSE, 1) * (np.dtype(dtype).kind == "c")
    values = values if np.dtype(dtype).kind == "c" else values.real
    x = x if np.dtype(dtype).kind == "c" else x.real

    def loss(A):
        return lambda v: anp.sum(anp.abs(A @ v) ** 2)

    gradient = gradient_of(loss(sparse.csr_array(values)), x, dtype)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, gradient_of(loss(values), x, dtype), rtol=1e-4)


def test_arrays_of_one_dimension():
    row = sparse.coo_array(np.array([1.0, 0.0, 2.0, 0.0]))
    for shape in ((4,), (4, 2)):
        x = rng.normal(size=shape)
        gradient = gradient_of(lambda v: anp.sum((row @ v) ** 2), x)
        np.testing.assert_allclose(
            gradient, gradient_of(lambda v: anp.sum((row.toarray() @ v) ** 2), x)
        )
    gradient = gradient_of(lambda v: anp.sum((v @ row) ** 2), x.T)
    np.testing.assert_allclose(
        gradient, gradient_of(lambda v: anp.sum((v @ row.toarray()) ** 2), x.T)
    )


def test_second_derivatives_go_through_sparse_products():
    A, v = sparse.csr_array(DENSE), Variable(rng.normal(size=4))
    with GradientTape() as outer:
        with GradientTape() as inner:
            loss = anp.sum((A @ v) ** 3)
        slope = inner.gradient(loss, v)
    curvature = outer.gradient(slope, v)
    np.testing.assert_allclose(curvature, 6 * (DENSE.T @ np.diag(DENSE @ v.array) @ DENSE).sum(0))


def test_softmax_regression_learns():
    labels, W = rng.integers(0, 3, 6), Variable(np.zeros((4, 3)))
    X, optimizer = sparse.csr_matrix(DENSE), rmsjit.RMSprop(0.1)

    def loss():
        scores = X @ W
        chosen = anp.sum(scores * np.eye(3)[labels], axis=1)
        return anp.mean(anp.log(anp.sum(anp.exp(scores), axis=1)) - chosen)

    first = loss()
    for _ in range(100):
        optimizer.minimize(loss, [W])
    assert loss() < 0.7 * first


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "coo_array", "dia_matrix"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda A, x: A + x,
        lambda A, x: x - A,
        lambda A, x: A.multiply(x),
        lambda A, x: A / x,
        lambda A, x: x * A,
        lambda A, x: A * x,
        lambda A, x: A.maximum(x),
        lambda A, x: x > A,
        lambda A, x: anp.multiply(x, A),
        lambda A, x: anp.add(A, x),
        lambda A, x: np.add(A, x),
        lambda A, x: A.dot(x.T),  # which is recorded where scipy makes it `A @ x`
        lambda A, x: np.dot(A, x.T),
        lambda A, x: anp.dot(A, x.T),
        lambda A, x: anp.sum(x) * A,
    ],
)
@pytest.mark.parametrize("result", [False, True], ids=["variable", "result"])
@pytest.mark.filterwarnings("ignore")  # of scipy, about the format
def test_other_operations_with_sparse_matrices_lose_nothing(kind, operation, result):
    v = Variable(rng.normal(size=(6, 4)))
    with GradientTape() as tape:
        x = v * 1 if result else v
        try:
            target = operation(matrix(kind), x)
        except (TypeError, NotImplementedError, ValueError):
            return
    assert isinstance(target, rmsjit.autodiff.traced.Traced)
    assert tape.gradient(target, v) is not None


def test_dense_arrays_of_three_dimensions_are_refused():
    v = Variable(rng.normal(size=(2, 4, 3)))
    with GradientTape(), pytest.raises((TypeError, ValueError)):
        sparse.csr_array(DENSE) @ v
    with GradientTape(), pytest.raises((TypeError, ValueError)):
        v @ sparse.csr_array(DENSE)


# --- conversions ----------------------------------------------------------------------------


def of_a_linear_operator(v):
    return linalg.aslinearoperator(DENSE) @ v


def into_an_array(v):
    np.zeros(4)[...] = v


CONVERSIONS = {
    "np.asarray": np.asarray,
    "np.array": np.array,
    "np.array of a list": lambda v: np.array([v, v]),
    "np.array with a dtype": lambda v: np.array(v, "float32"),
    "np.asanyarray": np.asanyarray,
    "np.ascontiguousarray": np.ascontiguousarray,
    "float array of a list": lambda v: np.array([v, np.zeros(4)], float),
    "dot of an array": lambda v: np.ones(4).dot(v),
    "assignment": into_an_array,
    "take": lambda v: np.arange(9.0).take(v),
    "random": lambda v: np.random.default_rng(0).normal(v),
    "a linear operator": of_a_linear_operator,
    "its dot": lambda v: linalg.aslinearoperator(DENSE).dot(v),
    "a diagonal operator": lambda v: linalg.LinearOperator((4, 4), matvec=lambda x: x) * v,
    "a sparse matrix of it": lambda v: sparse.csr_matrix(np.atleast_2d(v)),
    "np.poly1d": lambda v: np.poly1d(v),
    "a variable of a list": lambda v: Variable([v, v]),
    "np.frompyfunc": lambda v: (
        np.frompyfunc(lambda x: x, 1, 1)(np.ones(4), out=None)[0] + v.__array__()
    ),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_watched_variable_is_never_converted_in_silence(name):
    v = Variable(np.array([1.0, 2.0, 3.0, 4.0]), name="weights")
    CONVERSIONS[name](v)  # without a tape as ever
    with GradientTape(), pytest.raises((TypeError, ValueError, NotImplementedError)):
        CONVERSIONS[name](v)
    with GradientTape() as tape:
        pass
    CONVERSIONS[name](v)  # nor once it has recorded
    del tape


def test_the_message_says_what_to_do():
    v = Variable([1.0], name="weights")
    with (
        GradientTape(),
        pytest.raises(TypeError, match=r"weights:0 can't .*autograd\.numpy.*\.numpy\(\)"),
    ):
        np.asarray(v)


@pytest.mark.parametrize(
    "explicit",
    [
        Variable.numpy,
        lambda v: v.array,
        Variable.tolist,
        lambda v: float(v[0]),
        lambda v: v[0].item(),
        lambda v: np.array(v.tolist()),
        lambda v: np.zeros_like(v),
        repr,
        str,
        len,
        pickle.dumps,
        np.shape,
    ],
)
def test_explicit_ways_stay(explicit):
    v = Variable(np.array([1.0, 2.0]))
    with GradientTape() as tape:
        explicit(v)
        loss = anp.sum(v**2)
    assert tape.gradient(loss, v).tolist() == [2, 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Variable([1, 2]),
        lambda: Variable([1.0, 2.0], trainable=False),
        lambda: Variable(np.array([True, False])),
        lambda: Variable([1.0, 2.0]).array,
    ],
)
def test_what_no_tape_watches_is_converted(make):
    value = make()
    with GradientTape():
        assert np.asarray(value).shape == (2,)
    with GradientTape(watch_accessed_variables=False):
        assert np.asarray(Variable([1.0, 2.0])).shape == (2,)


def test_watched_by_hand_counts_too():
    v = Variable([1.0], trainable=False)
    with GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(v)
        with pytest.raises(TypeError, match="implicitly"):
            np.asarray(v)


def test_a_tape_that_is_paused_or_elsewhere_lets_convert():
    v = Variable([1.0])
    with GradientTape() as tape, tape.stop_recording():
        assert np.asarray(v) is v.array


def test_optimizers_take_variables_while_a_tape_records():
    v, gradient = Variable(np.ones(3)), Variable(np.ones(3))
    optimizer = rmsjit.RMSprop(rmsjit.Variable(0.1))
    with GradientTape():
        optimizer.apply_gradients([(gradient, v)])
        optimizer.set_weights(optimizer.weights)
        v.assign(gradient)
        repr(optimizer)
    assert (v.array == 1).all()


def test_bfloat16_is_no_exception():
    v = Variable(np.ones(3, ml_dtypes.bfloat16))
    with GradientTape(), pytest.raises(TypeError, match="implicitly"):
        np.asarray(v)


def test_what_has_other_protocols_can_not_be_reached_by_them():
    v = Variable(np.ones(3))
    with GradientTape():
        for convert in (
            memoryview,
            bytes,
            lambda v: array.array("d", memoryview(v)),
            ctypes.c_double.from_buffer,
        ):
            with pytest.raises(TypeError):
                convert(v)


def test_results_that_are_python_objects_are_refused():
    v = Variable(np.ones(2))
    with GradientTape(), pytest.raises(TypeError):
        anp.multiply(v, np.array([object(), None]))
    assert special.expit(v.array).shape == (2,)


# --- elements, copies, pickles ---------------------------------------------------------------


def store(y, value):
    y[1] = value


def store_in_a_slice(y, value):
    y[0:1] = value


def add_to_an_element(y, value):
    y[1] += value


RECORDED = {
    "an element": lambda v: v[1],
    "a result": lambda v: v[0] * 2,
    "a variable": lambda v: Variable(np.array(2.0), name="weights"),
}
ARRAYS = {
    "float64": np.zeros(3),
    "float32": np.zeros(3, "f4"),
    "int64": np.zeros(3, int),
    "complex": np.zeros(3, complex),
    "bfloat16": np.zeros(3, ml_dtypes.bfloat16),
    "array.array": array.array("d", [0.0, 0.0]),
}


@pytest.mark.parametrize("write", [store, store_in_a_slice, add_to_an_element])
@pytest.mark.parametrize("recorded", RECORDED)
@pytest.mark.parametrize("name", ARRAYS)
def test_an_element_does_not_become_a_constant_in_silence(name, recorded, write):
    v, y = Variable(np.array([1.0, 2.0])), ARRAYS[name]
    for _ in range(20):  # Python specialises the instruction
        write(np.zeros(3), 1.0)
    with GradientTape() as tape:
        value = RECORDED[recorded](v)
        # NumPy makes a ValueError of the TypeError.
        with pytest.raises((TypeError, ValueError)) as caught:
            write(y, value)
        error = caught.value.__cause__ or caught.value
        assert name in ("array.array", "bfloat16") or "implicitly" in str(error)
        y[0] = complex(value) if name == "complex" else int(value)
        np.zeros(3)[int(value)] = float(value)
        loss = anp.sum(v**2)
    assert y[0] == value.numpy()
    assert tape.gradient(loss, v).tolist() == [2, 4]
    if name == "float64":
        write(y, value)  # once no tape records


def test_an_element_of_what_no_tape_watches_is_stored():
    v, y = Variable(np.array(2.0), trainable=False), np.zeros(3)
    with GradientTape() as tape:
        y[0] = v
        y[1] = v * 3
        with tape.stop_recording():
            y[2] = Variable(np.array(5.0))
    assert y.tolist() == [2.0, 6.0, 5.0]
    assert tape.watched_variables() == ()


def test_a_copy_of_a_result_is_the_result():
    v = Variable(np.array([1.0, 2.0]))
    with GradientTape() as tape:
        result = v * 2
        assert copy.copy(result) is result
        (kept,) = copy.deepcopy([result])
        loss = anp.sum(kept**2)
    assert tape.gradient(loss, v).tolist() == [8, 16]
    assert copy.deepcopy(result) is result


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_result_is_a_plain_array(protocol):
    v = Variable(np.array([1.0, 2.0]))
    with GradientTape():
        result = v * 2
        with pytest.raises(TypeError, match="implicitly"):
            pickle.dumps(result, protocol)
    restored = pickle.loads(pickle.dumps(result, protocol))
    assert type(restored) is np.ndarray
    assert restored.tolist() == [2.0, 4.0]
