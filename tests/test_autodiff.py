"""Gradients against numeric derivatives and TensorFlow, and the promises about tapes."""

import gc
import subprocess
import sys
import threading
import tracemalloc
import warnings
from typing import NamedTuple

import autograd
import autograd.numpy as anp
import ml_dtypes
import numpy as np
import pytest

from differences import check_gradients, cplx, positive, real
from rmsjit import RMSprop
from rmsjit.autodiff import hooks
from rmsjit.autodiff.gather import gather
from rmsjit.autodiff.losses import gradients_of, gradients_of_arguments, gradients_of_touched
from rmsjit.autodiff.tape import GradientTape
from rmsjit.autodiff.traced import Traced
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.nest import flatten
from rmsjit.variables import Variable

# Numeric derivatives ----------------------------------------------------------------------------


def logsumexp(a):
    from autograd.scipy.special import logsumexp  # imports all of SciPy, which takes seconds

    return logsumexp(a)


X = real(5, 3)  # data, not a variable

LOSSES = {
    # plain NumPy
    "operators": (lambda a: 1 - a / 2 + 2 / a - (-a) + abs(a) + a**3 + 2.0**a, [positive(4)]),
    "data on the left": (lambda a: (X * a - a) / X + np.sum(X @ a), [real(3)]),
    "np functions": (lambda a: np.sum(np.exp(a) * np.tanh(a)) + np.mean(np.sqrt(a)), [positive(4)]),
    "linear model": (lambda w, b: np.mean((X @ w + b) ** 2), [real(3, 2), real(2)]),
    "np.dot": (lambda w: np.dot(X, w) ** 2, [real(3, 2)]),
    "np.einsum": (lambda a, b: np.einsum("ij,jk->ik", a, b) ** 2, [real(2, 3), real(3, 2)]),
    "np.where": (lambda a: np.where(a > 0, a**2, np.exp(a)), [real(6)]),
    "np.concatenate": (lambda a, b: np.concatenate([a * 2, b]) ** 2, [real(2), real(3)]),
    "np.stack": (lambda a, b: np.stack([a, b]) ** 2, [real(3), real(3)]),
    "np.vstack": (lambda a, b: np.vstack((a, b)) ** 2, [real(3), real(3)]),
    "np.hstack": (lambda a, b: np.hstack((a, b)) ** 2, [real(2), real(3)]),
    "np.linalg": (lambda a: np.linalg.norm(a) + np.linalg.det(a), [real(3, 3)]),
    "np.linalg.eigh": (lambda a: np.linalg.eigh(a @ a.T)[0][0], [real(3, 3)]),
    "np.fft": (lambda a: np.abs(np.fft.fft(a)) ** 2, [real(4)]),
    "np.split": (lambda a: np.split(a, 2)[0] ** 2, [real(4)]),
    # autograd.numpy
    "anp functions": (lambda a: anp.sum(anp.exp(a) * anp.tanh(a)), [real(2, 3)]),
    "anp.array": (lambda a, b: anp.array([a, b]) ** 2, [real(), real(1)[0:1].reshape(())]),
    "anp.stack": (lambda a, b: anp.stack([a, b]) ** 2, [real(3), real(3)]),
    "anp.append": (lambda a, b: anp.append(a, b) ** 2, [real(2), real(3)]),
    "anp.linalg": (lambda a: anp.linalg.norm(a) * a, [real(3)]),
    "scipy": (logsumexp, [real(4)]),
    # indexing, shapes and methods
    "indexing": (lambda a: a[0, 0] * a[1, 1] + a[:, 0] * a[[1, 0, 0], 1], [real(3, 2)]),
    "boolean index": (lambda a: a[X[0] > 0] ** 2, [real(3)]),
    "iteration": (lambda a: sum((row**2).sum() for row in a), [real(3, 2)]),
    "shapes": (
        lambda a: a.reshape(2, 3) * a.reshape((2, -1)) + a.T * a.transpose() + a.swapaxes(0, 1),
        [real(3, 2)],
    ),
    "flat": (lambda a: a.flatten() * a.ravel() * a.squeeze().ravel(), [real(3, 2)]),
    "sums": (lambda a: a.sum(axis=0) * a.mean() + a.prod() + a.cumsum(axis=1), [real(2, 2)]),
    "spread": (lambda a: a.std() + a.var() + a.max() * a.min(), [real(4)]),
    "clip and repeat": (lambda a: a.clip(-0.5, 0.5) * a + a.repeat(1), [real(4)]),
    "copy and dot": (lambda a: a.copy().dot(a) + (a * 1).dot(a) + (a * 1).copy(), [real(3)]),
    "0-d": (lambda a: a * a, [np.array(3.0)]),
    "empty": (lambda a: a * a, [np.empty((0, 3))]),
    "rounding is constant": (lambda a: a * (a // 1) + a.round(), [real(4) + 0.3]),
    # complex
    "modulus": (lambda z: anp.abs(z) ** 2, [cplx(3)]),
    "holomorphic": (lambda z: z**3 + anp.exp(1j * z), [cplx(3)]),
    "conjugate": (lambda z: anp.conj(z) * z * z.conj(), [cplx(3)]),
    "parts": (lambda z: z.real * (z * z).imag + (z * (1 + 2j)).real, [cplx(3)]),
    "real and complex": (lambda z, x: z * x + x + x.astype(complex) * z, [cplx(3), real(3)]),
    # gather
    "gather": (lambda t: gather(t, [[0, 2], [2, 1]]) ** 2, [real(3, 2)]),
    "gather rows of numbers": (lambda t: gather(t, 1) ** 3, [real(3)]),
    "gather twice": (lambda t: gather(t, [0, 2]) * gather(t, [2, 2]), [real(3, 2)]),
    "gather and dense": (lambda t: gather(t, [0, 2]) ** 2 + (t**3).sum(), [real(3, 2)]),
    "gather of a result": (lambda t: gather(t * t, [0, 2, 2]), [real(3, 2)]),
    "gather of complex": (lambda t: (gather(t, [0, 0, 1]) ** 2 * 1j).real, [cplx(3)]),
    "gather of nothing": (lambda t: gather(t, []), [real(3, 2)]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_numeric_derivatives(name):
    loss, arrays = LOSSES[name]
    check_gradients(loss, *arrays)


def test_the_check_notices_a_wrong_gradient():
    def loss(a):
        return a * getattr(a, "array", a)  # the second factor counts as a constant

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_gradients(loss, real(3))


HALF_PRECISION_LOSSES = {
    "sum": lambda v: (v**2).sum(),
    "mean": lambda v: anp.mean(v * v * 0.5),
    "matmul": lambda v: (np.ones((3, 3), v.dtype) @ v) ** 2,
    "functions": lambda v: np.tanh(v) * np.exp(v) + anp.maximum(v, 0),
    "indexing": lambda v: v[0] * v[1:] + v.max(),
    "gather": lambda v: gather(v, [0, 0, 2]) ** 2,
    "cast": lambda v: (v.astype(np.float32) ** 2).sum(),
}


@pytest.mark.parametrize("name", HALF_PRECISION_LOSSES)
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32"])
def test_gradients_have_the_dtype_of_the_variable(name, dtype):
    loss = HALF_PRECISION_LOSSES[name]
    wide, narrow = Variable([0.5, 1.0, 2.0], dtype="float64"), Variable([0.5, 1.0, 2.0], "n", dtype)
    gradients = []
    for v in (wide, narrow):
        with GradientTape() as tape:
            target = loss(v)
        gradient = tape.gradient(target, v)
        assert gradient.dtype == v.dtype
        dense = gradient.to_dense() if isinstance(gradient, IndexedSlices) else gradient
        gradients.append(dense.astype("float64"))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=tolerance, atol=tolerance)


def test_float32_stays_float32_on_the_way_back():
    # autograd's rule for a power gives float64, which would double the work of all that follows.
    seen = []

    @autograd.extend.primitive
    def spy(x):
        return x + 0

    autograd.extend.defvjp(spy, lambda ans, x: lambda g: seen.append(g.dtype) or g)
    v = Variable(np.ones(3, np.float32))
    with GradientTape() as tape:
        target = (spy(v * 2) ** 2).sum()
    tape.gradient(target, v)
    assert seen == [np.float32]


# Second derivatives -----------------------------------------------------------------------------


def test_an_outer_tape_differentiates_a_gradient():
    v = Variable([1.0, 2.0], dtype="float64")
    with GradientTape() as outer:
        with GradientTape() as inner:
            target = v**3
        slope = inner.gradient(target, v)
        assert isinstance(slope, Traced)
    np.testing.assert_allclose(slope, [3, 12])
    np.testing.assert_allclose(outer.gradient(slope, v), [6, 12])


def test_an_inner_tape_differentiates_the_gradient_of_an_outer_one():
    v = Variable([1.0, 2.0], dtype="float64")
    with GradientTape() as outer, GradientTape() as inner:
        slope = outer.gradient(v**3, v)
    np.testing.assert_allclose(inner.gradient(slope, v), [6, 12])


def test_a_persistent_tape_differentiates_its_own_gradients():
    v = Variable(2.0, dtype="float64")
    with GradientTape(persistent=True) as tape:
        target = v**4
        first = tape.gradient(target, v)
        second = tape.gradient(first, v)
    assert (tape.gradient(target, v), tape.gradient(first, v)) == (32, 48)
    assert tape.gradient(second, v) == 48


def test_third_derivatives():
    v = Variable(2.0, dtype="float64")
    with GradientTape() as a:
        with GradientTape() as b:
            with GradientTape() as c:
                target = v**4
            first = c.gradient(target, v)
        second = b.gradient(first, v)
    assert a.gradient(second, v) == 48


@pytest.mark.parametrize("name", ["linear model", "anp.linalg", "conjugate", "gather and dense"])
def test_second_derivatives_are_numeric_derivatives_of_the_first(name):
    loss, arrays = LOSSES[name]

    def squared_slope(*arguments):
        variables = [v if isinstance(v, Variable) else Variable(v) for v in arguments]
        with GradientTape() as tape:
            target = loss(*variables)
        slopes = tape.gradient(target, variables)
        dense = [s.to_dense() if isinstance(s, IndexedSlices) else s for s in slopes]
        return sum((anp.abs(s) ** 2).sum() for s in dense)

    check_gradients(squared_slope, *arrays)


def test_second_derivatives_through_gather_are_sparse_in_the_end():
    table = Variable(real(4, 2))
    with GradientTape() as outer:
        with GradientTape() as inner:
            target = (gather(table, [0, 2, 2]) ** 3).sum()
        slope = inner.gradient(target, table)
        assert isinstance(slope, Traced)  # dense, so that it can be differentiated
        penalty = (slope**2).sum()
    gradient = outer.gradient(penalty, table)
    assert isinstance(gradient, IndexedSlices)
    expected = 36 * np.array([[1], [0], [4], [0]]) * table.array**3
    np.testing.assert_allclose(gradient.to_dense(), expected)


def test_a_gather_that_only_the_inner_tape_knows_under_weights_that_both_know():
    table, w = Variable(real(4, 2)), Variable(real(2))
    with GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(w)
        with GradientTape() as inner:
            target = (gather(table, [1, 1]) @ w).sum()
        slope = inner.gradient(target, table)
        total = (slope**2).sum()
    np.testing.assert_allclose(outer.gradient(total, w), 8 * w.array)


def test_autograd_grad_works_within_a_tape_but_not_around_it():
    v = Variable([1.0, 2.0], dtype="float64")
    with GradientTape() as tape:
        slope = autograd.grad(lambda x: anp.sum(x**3 * v))(v)
    np.testing.assert_allclose(tape.gradient(slope, v), 6 * v.array**2 + 3 * v.array**2)

    def outside(x):
        with GradientTape() as inner:
            target = v * x
        return anp.sum(inner.gradient(target, v))

    with pytest.raises(TypeError, match="use a tape for both"):
        autograd.grad(outside)(np.ones(2))


def test_autograd_differentiates_gather_and_takes_variables():
    table = Variable(real(3, 2))

    def loss(t):
        return anp.sum(gather(t, [0, 2, 2]) ** 3)

    expected = 3 * np.array([[1], [0], [2]]) * table.array**2
    np.testing.assert_allclose(autograd.grad(loss)(table.array), expected)
    np.testing.assert_allclose(autograd.grad(loss)(table), expected)


# What a tape records ----------------------------------------------------------------------------


def test_a_source_that_the_target_does_not_use_gets_none_or_zeros():
    v, unused = Variable([1.0]), Variable(np.ones((2, 3)), dtype="float16")
    with GradientTape(persistent=True) as tape:
        target = v * 2
    assert tape.gradient(target, unused) is None
    zeros = tape.gradient(target, unused, unconnected_gradients="zero")
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((2, 3), np.float16, False)
    assert tape.gradient(3.0, v) is None
    assert tape.gradient(np.ones(3), v) is None
    with pytest.raises(ValueError, match="unconnected_gradients must be"):
        tape.gradient(target, v, unconnected_gradients="ones")


@pytest.mark.parametrize("convert", [Variable.numpy, lambda v: v.array, lambda v: float(v[0])])
def test_what_leaves_the_traced_computation_is_a_constant(convert):
    v = Variable([3.0])
    with GradientTape(persistent=True) as tape:
        constant = convert(v) * 1.0
        target = v * constant
    assert tape.gradient(constant, v) is None
    assert tape.gradient(target, v).tolist() == [3.0]


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda x: np.zeros(2).__setitem__(slice(None), x),
        lambda x: np.r_[x, 1.0],
        lambda x: np.ones(2).dot(x),
        lambda x: np.mean([x, x]),
        lambda x: np.dstack([x, x]),
        lambda x: np.clip(1.0, a_min=x, a_max=2.0),
        lambda x: np.select([x > 0], [x]),
        lambda x: np.interp(0.5, [0, 1], x),
        lambda x: np.heaviside(x, 0.0),
        lambda x: np.add.reduce(x),
        lambda x: np.ones(2).__iadd__(x),
        lambda x: np.block([x, x]),
    ],
)
def test_a_result_is_never_lost_in_silence(convert):
    v = Variable([1.0, 2.0])
    with GradientTape(), pytest.raises((TypeError, NotImplementedError)):
        convert(v * 2)
    with GradientTape():
        result = v * 2
    convert(result)  # once no tape records it, a result is an array like any other
    with GradientTape():
        convert(result)


def test_a_result_behaves_like_an_array():
    v = Variable([[1.0, 2.0]], dtype="float64")
    with GradientTape() as tape:
        result = v * 2
        loss = result.sum()
        assert result.numpy().tolist() == result.tolist() == [[2.0, 4.0]]
        assert (result > 3).tolist() == [[False, True]]
        assert np.shape(result) == result.shape == (1, 2)
        assert (np.ndim(result), np.size(result), len(result)) == (2, 2, 1)
        assert np.zeros_like(result).tolist() == [[0.0, 0.0]]
        assert result.astype(int).tolist() == [[2, 4]]
        assert [row.tolist() for row in result] == [[2.0, 4.0]]
        assert float(loss) == int(loss) == complex(loss) == loss.item() == 6
        assert loss
        with pytest.raises(TypeError, match="len"):
            list(loss)
    assert f"{loss:.2f} {loss} {+loss}" == "6.00 6.0 6.0"
    assert repr(loss) == "<rmsjit result: shape=() dtype=float64, numpy=np.float64(6.0)>"
    assert type(loss.numpy()) is np.float64
    assert np.asarray(result).tolist() == [[2.0, 4.0]]
    assert np.exp(loss) == np.exp(6)
    assert type(np.sum(result)) is np.float64
    gradient = tape.gradient(loss, v)
    result.numpy()[:] = 0
    assert result.tolist() == [[2.0, 4.0]]
    assert gradient.tolist() == [[2.0, 2.0]]


def test_integers_are_constants():
    v, n = Variable([1.5, 2.0]), Variable([1, 2])
    with GradientTape(persistent=True) as tape:
        target = (v.astype(int) * n).sum() + (v * 0).sum()
        counts = n * 2
    assert isinstance(counts, np.ndarray)
    assert tape.gradient(target, v).tolist() == [0.0, 0.0]
    assert tape.gradient(target, n) is None


def test_only_what_happens_within_the_context_is_recorded():
    v, w = Variable(2.0), Variable(3.0)
    with GradientTape() as tape:
        y = v * w
    z = y * v
    assert tape.gradient(z, [v, w]) == [None, None]


def test_stop_recording():
    v = Variable(2.0)
    with GradientTape(persistent=True) as tape:
        y = v * v
        with GradientTape() as other, tape.stop_recording():
            z = v * v
        u = y * z
    assert (tape.gradient(u, v), tape.gradient(z, v), tape.gradient(u, y)) == (16, None, 4)
    assert other.gradient(z, v) == 4
    with pytest.raises(RuntimeError, match="is not recording"), tape.stop_recording():
        pass
    with GradientTape() as tape:
        y = v * v
        with tape.stop_recording():
            assert tape.gradient(y, v) == 4
        assert hooks.records() == []


def test_reset():
    v = Variable(2.0)
    with GradientTape(persistent=True) as tape:
        y = v * v
        tape.reset()
        assert tape.watched_variables() == ()
        z = y * v
    assert tape.gradient(z, v) == 4
    tape.reset()
    assert tape.gradient(z, v) is None


def test_a_tape_goes_on_when_it_is_entered_again():
    v = Variable(2.0)
    tape = GradientTape()
    with tape:
        y = v * v
    with tape:
        z = y * v
        with pytest.raises(ValueError, match="already recording"):
            tape.__enter__()
    assert tape.gradient(z, v) == 12
    with pytest.raises(RuntimeError, match="persistent=True"):
        tape.gradient(z, v)
    with pytest.raises(RuntimeError, match="persistent=True"):
        tape.watch(v)
    with tape:  # used up, it starts anew
        z = v * 3
    assert tape.gradient(z, v) == 3


def test_gradient_within_the_context_ends_the_recording():
    v = Variable(2.0)
    with GradientTape() as tape:
        gradient = tape.gradient(v * v, v)
        assert isinstance(gradient, np.ndarray)
        assert isinstance(v * v, np.floating)
        assert hooks.records() == []
    assert gradient == 4


def test_an_error_within_the_context_ends_the_recording():
    with pytest.raises(ZeroDivisionError), GradientTape():
        1 / 0  # noqa: B018
    assert hooks.records() == []


def test_what_is_watched():
    a, b, c = Variable(2.0, "a"), Variable(3.0, "b", trainable=False), Variable(4.0, "c")
    with GradientTape() as tape:
        target = c * b * a
    assert tape.watched_variables() == (c, a)
    assert tape.gradient(target, [a, b, c]) == [12, None, 6]

    with GradientTape(watch_accessed_variables=False) as tape:
        assert tape.watch(b) is b
        target = c * b * a
        assert tape.watch(target) is target
        square = target**2
    assert tape.watched_variables() == (b,)
    assert tape.gradient(square, [a, b, c, target]) == [None, 2 * 24 * 8, None, 48]


@pytest.mark.parametrize("wrong", [3, "x", None, np.ones(2, int), Variable([1]), np.array(["x"])])
def test_what_cannot_be_watched(wrong):
    with pytest.raises(TypeError, match="can watch"):
        GradientTape().watch([wrong])


def test_structures_of_sources_and_targets():
    class Layer(NamedTuple):
        w: Variable
        b: Variable

    a, b, c = Variable([1.0]), Variable([2.0]), Variable([3.0])
    with GradientTape(persistent=True) as tape:
        target = a * b * c
        other = a * 2
    gradients = tape.gradient(target, {"z": [a, (b,)], "layer": Layer(c, a)})
    assert list(gradients) == ["z", "layer"]
    assert gradients == {"z": [6, (3,)], "layer": Layer(2, 6)}
    assert type(gradients["layer"]) is Layer
    assert tape.gradient(target, []) == []
    assert tape.gradient([target, {"x": other}], a) == 8
    assert tape.gradient([target, {"x": other}], a, [None, {"x": [10.0]}]) == 26
    assert tape.gradient(a, a) == 1
    assert tape.gradient([a, target], [a]) == [7]
    with pytest.raises(ValueError, match="length of target, 2, got 1"):
        tape.gradient([target, other], a, [None])


def test_output_gradients_weigh_the_target():
    v, weights = Variable([1.0, 2.0]), np.array([10, 20])
    with GradientTape(persistent=True) as tape:
        target = v**2
    assert tape.gradient(target, v, weights).tolist() == [20, 80]
    assert tape.gradient(target, v, [1.0, 0.0]).tolist() == [2, 0]
    assert tape.gradient(target, v, Variable(weights, dtype="float32")).tolist() == [20, 80]
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        tape.gradient(target, v, np.ones(3))
    with pytest.raises(TypeError, match=r"output_gradients .* casts to float32"):
        tape.gradient(target, v, [1j, 1j])


@pytest.mark.parametrize("target", [None, "text", np.array([None]), [np.ones(2), None]])
def test_a_target_that_is_no_array(target):
    with GradientTape() as tape:
        pass
    with pytest.raises(TypeError, match="a target must be"):
        tape.gradient(target, Variable(1.0))


def test_gradients_share_no_memory():
    a, b, weights = Variable(np.ones((2, 3))), Variable(np.ones((2, 3))), np.ones((2, 3))
    with GradientTape(persistent=True) as tape:
        target = a + b
        rows = gather(a, [0, 1])
    gradients = tape.gradient(target, [a, b, a], weights)
    for gradient in gradients:
        assert gradient.flags.writeable
        assert not np.shares_memory(gradient, weights)
        gradient += 1
    assert all((gradient == 2).all() for gradient in gradients)
    assert not np.shares_memory(tape.gradient(rows, a, weights).values, weights)


def test_gradients_at_once_are_those_one_by_one():
    variables = [Variable(array) for array in (real(3, 2), real(2))]
    with GradientTape(persistent=True) as tape:
        hidden = X @ variables[0] + variables[1]
        target = np.tanh(hidden) ** 2
    together = tape.gradient(target, [hidden, *variables])
    for source, gradient in zip([hidden, *variables], together, strict=True):
        np.testing.assert_array_equal(tape.gradient(target, source), gradient)


# Plain arrays, views, memory --------------------------------------------------------------------


def test_a_plain_array_is_followed_through_its_stand_in():
    array = np.array([1.0, 2.0])
    tape = GradientTape(persistent=True)
    x = tape.watch(array)
    assert x.array is array
    with tape:
        target = x**2
    assert tape.gradient(target, x).tolist() == tape.gradient(target, array).tolist() == [2, 4]
    y, z = tape.watch((3.0, np.float32(2)))
    with tape:
        target = y * z
    assert tape.gradient(target, [y, z]) == [2, 3]
    assert tape.gradient(target, z).dtype == np.float32


def test_a_plain_array_that_was_not_followed_is_an_error():
    array = np.array([1.0, 2.0])
    with GradientTape(persistent=True) as tape:
        tape.watch(array)
        target = array**2 + Variable([0.0, 0.0])
    for source in (array, np.ones(2)):
        with pytest.raises(TypeError, match=r"source 0 is a plain array.*rmsjit\.Variable"):
            tape.gradient(target, source)
    with pytest.raises(TypeError, match="source 1 must be a variable"):
        tape.gradient(target, [tape.watch(array), 2.0])


def test_variables_of_one_array_are_one_source():
    array = np.array([1.0, 2.0])
    a, b = Variable(array), Variable(array)
    with GradientTape() as tape:
        target = a * b * Variable(array)
    gradients = tape.gradient(target, [a, b, array])
    assert [gradient.tolist() for gradient in gradients] == [[3, 12]] * 3


def test_a_memmap_is_a_variable(tmp_path):
    array = np.memmap(tmp_path / "array", np.float64, "w+", shape=(3,))
    array[:] = [1, 2, 3]
    v = Variable(array)
    with GradientTape() as tape:
        target = v[1:] * v[:-1] + (v * v).sum() + anp.sum(v)
    np.testing.assert_allclose(tape.gradient(target, v), 1 * 2 + np.array([4, 8, 12]) + [2, 4, 2])


def test_a_change_of_a_variable_before_the_gradient_is_an_error():
    v, other = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    with GradientTape(persistent=True) as tape:
        old = v * other
        rows = gather(v, [0]) * 3
        v.assign_add([1.0, 1.0])
        new = v * v
    with pytest.raises(RuntimeError, match="assigned or updated"):
        tape.gradient(old, other)
    assert tape.gradient(new, v).tolist() == [4, 6]
    assert tape.gradient(rows, v).values.tolist() == [3]  # rows are copied when they are taken
    for change in (
        lambda: v.assign([0.0, 0.0]),
        lambda: v.assign_sub([1.0, 1.0]),
        lambda: v.__setitem__(0, 1.0),
        lambda: v.__iadd__(1.0),
        lambda: np.add.at(v, [0], 1.0),
        lambda: hooks.wrote([v.array]),
    ):
        with tape:
            target = v * v
        change()
        with pytest.raises(RuntimeError, match="assigned or updated"):
            tape.gradient(target, v)


VIEWS = {
    "flat": lambda w: w.reshape(-1),
    "transposed": lambda w: w.T,
    "backwards": lambda w: w[::-1],
    "a column": lambda w: w[:, 1],
    "a row": lambda w: w[1:],
    "the whole": lambda w: w[...],
    "the base": lambda w: w.base,
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_step_of_another_view_of_the_memory_is_noticed(name):
    w = np.ones(6).reshape(2, 3)
    v, view, unused = Variable(w), VIEWS[name](w), Variable(np.ones(6))
    with GradientTape(persistent=True) as tape:
        target = (v**3).sum()
        other = (unused**3).sum()
    RMSprop(0.1).apply_gradients([(np.ones_like(view), view)])
    with pytest.raises(RuntimeError, match="assigned or updated"):
        tape.gradient(target, v)
    assert tape.gradient(other, unused).tolist() == [3] * 6
    with tape:
        target = (v**3).sum()
    Variable(view).assign_add(np.ones_like(view))
    with pytest.raises(RuntimeError, match="assigned or updated"):
        tape.gradient(target, v)


def test_a_step_of_other_elements_of_the_same_array_is_none_of_the_variable():
    w = np.ones((2, 3))
    v, empty = Variable(w[:, 0]), Variable(w[:0])
    with GradientTape(persistent=True) as tape:
        target = (v**3).sum() + (empty**3).sum()
    RMSprop(0.1).apply_gradients([(np.ones(2), w[:, 1]), (np.ones(2), w[:, 2])])
    assert (w[:, 1:] < 1).all()
    assert tape.gradient(target, v).tolist() == [3, 3]
    assert tape.gradient(target, empty).shape == (0, 3)


def test_an_operator_does_not_write_to_a_variable_that_is_recorded():
    v, frozen = Variable([1.0, 2.0]), Variable([1.0], trainable=False)
    with GradientTape() as tape:
        with pytest.raises(TypeError, match=r"Variable:0.*v\.assign"):
            v += 1
        with pytest.raises(TypeError, match="can't write"):
            np.add(1.0, 1.0, out=v)
        frozen += 1
        frozen.assign(v[:1] * 5)
        target = frozen * v
    assert frozen.numpy() == 5
    assert tape.gradient(target, v).tolist() == [5, 5]


def test_results_that_are_kept_keep_no_arrays_of_the_computation_alive():
    gc.disable()  # nothing here may need the collector: there must be no cycles
    try:
        v = Variable(np.ones(100_000))
        kept = []
        tracemalloc.start()
        for _ in range(5):
            with GradientTape() as tape:
                kept.append(((v * 2) ** 2).sum())
            tape.gradient(kept[-1], v)
        assert tracemalloc.get_traced_memory()[0] < 100_000
        with GradientTape(persistent=True) as tape:
            kept.append(((v * 2) ** 2).sum())
        tape.gradient(kept[-1], v)
        del tape
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
        gc.enable()
    assert id(v.array) not in hooks.sources


def test_tapes_belong_to_their_threads():
    shared = Variable([1.0, 2.0], dtype="float64")
    barrier = threading.Barrier(4)
    failures = []

    def work(number):
        for _ in range(50):
            barrier.wait()
            with GradientTape() as outer:
                with GradientTape() as inner:
                    target = shared**3 * number
                slope = inner.gradient(target, shared)
            second = outer.gradient(slope, shared)
            if not (second == 6 * shared.array * number).all() or hooks.records():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    with GradientTape() as tape:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert tape.watched_variables() == ()


def test_variables_are_light_to_import():
    code = "import rmsjit.variables, sys; print('autograd' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# gather -----------------------------------------------------------------------------------------


def test_gathers_concatenate_in_order_of_use():
    table = Variable(np.arange(8.0).reshape(4, 2))
    with GradientTape() as tape:
        first = gather(table, np.array([[3, 1]]))
        second = gather(table, [0])
        target = 2 * second.sum() + first.sum()
    gradient = tape.gradient(target, table)
    assert first.shape == (1, 2, 2)
    assert gradient.indices.tolist() == [3, 1, 0]
    assert gradient.values.tolist() == [[1, 1], [1, 1], [2, 2]]
    assert gradient.dense_shape == (4, 2)
    assert gradient.dtype == table.dtype


def test_gather_and_a_dense_use_add_up_densely():
    table = Variable(np.ones((3, 2)))
    with GradientTape() as tape:
        target = gather(table, [2, 2]).sum() + table.sum()
    assert tape.gradient(target, table).tolist() == [[1, 1], [1, 1], [3, 3]]


def test_gather_costs_by_the_rows():
    table, ids = Variable(np.ones((200_000, 8))), np.arange(100)
    tracemalloc.start()
    with GradientTape() as tape:
        target = (gather(table, ids) ** 2).sum()
    tape.gradient(target, table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.array.nbytes / 20


@pytest.mark.parametrize("wrap", [np.asarray, Variable])
def test_gather_without_a_tape_takes_rows(wrap):
    table = wrap(np.arange(8.0).reshape(4, 2))
    rows = gather(table, [[3, 0], [0, 1]])
    assert type(rows) is np.ndarray
    np.testing.assert_array_equal(rows, np.asarray(table)[[[3, 0], [0, 1]]])
    assert gather(table, Variable([1])).tolist() == [[2, 3]]
    assert gather(table, np.uint8(1)).tolist() == [2, 3]
    assert gather(table, []).shape == (0, 2)
    assert gather([1.0, 2.0], [1]).tolist() == [2]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[0, 1], [4, 0]], IndexError, r"indices\[1, 0\] is 4, but there are 4 rows"),
        ([0, -1], IndexError, r"indices\[1\] is -1"),
        (np.uint64(2**63), IndexError, f"indices is {2**63}"),
        ([0.0], TypeError, "must be integers, got dtype float64"),
        ([True], TypeError, "must be integers, got dtype bool"),
        (np.array([]), TypeError, "must be integers"),
    ],
)
def test_gather_checks_the_ids(ids, error, message):
    with pytest.raises(error, match=message):
        gather(Variable(np.ones((4, 2))), ids)
    with pytest.raises(ValueError, match="must have rows"):
        gather(Variable(1.0), [0])


def test_the_ids_may_be_reused_before_the_gradient():
    table, ids = Variable(np.ones((4, 2))), np.array([1, 2])
    with GradientTape() as tape:
        target = gather(table, ids)
    ids[:] = 0
    assert tape.gradient(target, table).indices.tolist() == [1, 2]


def test_callbacks_before_a_gather():
    class Owner:
        def __init__(self):
            self.calls = []

        def sync(self, array, ids):
            self.calls.append((array, ids.tolist()))
            array[ids] += 1
            assert isinstance(Variable(1.0) * 2, np.floating)  # no tape records this

    owner, table = Owner(), Variable(np.zeros((3, 2)))
    hooks.before_gather(owner.sync)
    hooks.before_gather(owner.sync)  # the same, not another
    with GradientTape() as tape:
        rows = gather(table, [[2], [0]])
        gather(tape.watch(table.array), [1])
        gather(table * 2, [1])  # a result is no variable
    gather(table.array, [0])
    assert rows.tolist() == [[[1, 1]], [[1, 1]]]
    assert all(array is table.array for array, _ in owner.calls)
    assert [ids for _, ids in owner.calls] == [[2, 0], [1], [0]]
    assert tape.gradient(rows, table).indices.tolist() == [2, 0]
    calls = owner.calls
    del owner
    gather(table, [0])
    assert len(calls) == 3


# What optimizers ask for ------------------------------------------------------------------------


def test_gradients_of_a_loss():
    a, b = Variable([1.0, 2.0]), Variable(3.0, trainable=False)
    gradients, variables = gradients_of(lambda: a**2 * b, {"z": a, "y": [b]})
    assert variables[0] is b
    assert variables[1] is a
    assert gradients[0] == 5
    assert gradients[1].tolist() == [6, 12]
    assert gradients_of(lambda: a**2, [a], grad_loss=[1.0, 10.0])[0][0].tolist() == [2, 40]
    assert gradients_of(lambda: a**2, []) == ([], [])
    assert gradients_of(lambda: 1.0, [a]) == ([None], [a])
    assert gradients_of(lambda: [a**2, b], [b])[0] == [1]


def test_a_callable_var_list_is_called_after_the_loss():
    made = []

    def loss():
        made.append(Variable(2.0))
        return made[-1] ** 2

    gradients, variables = gradients_of(loss, lambda: made)
    assert gradients == [4]
    assert variables[0] is made[0]
    assert len(made) == 1


def test_gradients_of_a_recorded_value():
    v = Variable(2.0)
    with GradientTape() as tape:
        value = v**2
    assert gradients_of(value, [v], tape=tape)[0] == [4]
    assert gradients_of(lambda: v**3, [v], tape=GradientTape())[0] == [12]
    with pytest.raises(ValueError, match="needs the tape"):
        gradients_of(value, [v])


def test_gradients_of_a_loss_that_reads_plain_arrays():
    array = np.array([1.0, 2.0])
    with pytest.raises(TypeError, match=r"source 0 is a plain array.*rmsjit\.Variable"):
        gradients_of(lambda: (array**2).sum(), [array])
    gradients, variables = gradients_of(lambda: (Variable(array) ** 2).sum(), [array])
    assert gradients[0].tolist() == [2, 4]
    assert variables[0] is array


@pytest.mark.parametrize("ask", [gradients_of, gradients_of_arguments])
def test_what_is_no_variable_is_named(ask):
    for wrong in (3.0, "w", None):
        with pytest.raises(TypeError, match=r"var_list\[1\] must be a variable"):
            ask(lambda *_: 1.0, [Variable(1.0), wrong])
    with pytest.raises(TypeError, match="a target must be"):
        ask(lambda *_: None, [Variable(1.0)])


def test_gradients_of_arguments():
    v, array, unused = Variable([1.0, 2.0]), np.array([3.0, 4.0]), np.ones(2)
    gradients, variables = gradients_of_arguments(lambda a, b, c: a * b, [v, array, unused])
    assert gradients[0].tolist() == [3, 4]
    assert gradients[1].tolist() == [1, 2]
    assert gradients[2] is None
    assert variables[1] is array
    table = np.ones((4, 2))
    gradients, _ = gradients_of_arguments(lambda t: gather(t, [1, 1]), [table], np.ones((2, 2)))
    assert gradients[0].indices.tolist() == [1, 1]


def test_gradients_of_touched():
    a, b, frozen = Variable(2.0), Variable(3.0), Variable(1.0, trainable=False)
    gradients, variables = gradients_of_touched(lambda: (b * frozen).sum() ** 2 + 0 * float(a + 0))
    assert [variable is expected for variable, expected in zip(variables, [b, a], strict=True)]
    assert gradients == [6, None]


def test_a_constant_loss_makes_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradients_of(lambda: 0.5, [Variable(1.0)])[0] == [None]


# Live -------------------------------------------------------------------------------------------


def outside(tape_class, variable):
    v = variable(2.0)
    with tape_class() as tape:
        y = v * v
    return [tape.gradient(y * v, v)]


def stopped(tape_class, variable):
    v = variable(2.0)
    with tape_class(persistent=True) as tape:
        y = v * v
        with tape_class(), tape.stop_recording():
            z = v * v
        u = y * z
    return [tape.gradient(u, v), tape.gradient(z, v), tape.gradient(u, [y, z])]


def started_again(tape_class, variable):
    v = variable(2.0)
    tape = tape_class(persistent=True)
    with tape:
        y = v * v
    with tape:
        z = y * v
    with tape:
        tape.reset()
        u = y * v
    return [tape.gradient(z, v), tape.gradient(u, v)]


def twice(tape_class, variable):
    v = variable(2.0)
    with tape_class(persistent=True) as tape:
        first = tape.gradient(v**4, v)
        second = tape.gradient(first, v)
    with tape_class() as a, tape_class() as b:
        slope = a.gradient(v**3, v)
    return [first, second, tape.gradient(second, v), b.gradient(slope, v)]


def watched(tape_class, variable):
    a, b, c = variable(2.0), variable(3.0, trainable=False), variable([1.0, 1.0])
    with tape_class(watch_accessed_variables=False) as tape:
        tape.watch(b)
        y = a * b
    zero = tape.gradient(y, [a, b, c], unconnected_gradients="zero")
    with tape_class() as tape:
        y, z = [a * c, b * c]
    weights = [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    return [zero, tape.gradient([y, z], {"c": [c], "b": b, "a": (a,)}, weights)]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scene", [outside, stopped, started_again, twice, watched])
def test_tapes_behave_as_those_of_tensorflow(scene):
    tf = pytest.importorskip("tensorflow")

    def variable(value, trainable=True):
        return Variable(value, trainable=trainable)

    def numbers(gradients):
        return [None if leaf is None else np.asarray(leaf).tolist() for leaf in flatten(gradients)]

    assert numbers(scene(GradientTape, variable)) == numbers(scene(tf.GradientTape, tf.Variable))


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_gradients_are_those_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    x, w, b, z = (a.astype("f4") for a in (X, real(3, 2), real(2), real(3)))
    z = (z + 1j * z[::-1]).astype("c8")
    ids = [[2, 0], [2, 2]]
    cases = [
        (
            lambda w, b: anp.mean(anp.tanh(x @ w + b) ** 2),
            lambda w, b: tf.reduce_mean(tf.tanh(x @ w + b) ** 2),
            [w, b],
        ),
        (lambda w: w**3, lambda w: w**3, [w]),
        (lambda w, b: w * 2, lambda w, b: w * 2, [w, b]),
        (lambda z: anp.abs(z) ** 2, lambda z: tf.abs(z) ** 2, [z]),
        (lambda z: z**3 + anp.exp(1j * z), lambda z: z**3 + tf.exp(1j * z), [z]),
        (lambda z: anp.conj(z) * z * z, lambda z: tf.math.conj(z) * z * z, [z]),
        (lambda z: anp.imag(z * z * 2j), lambda z: tf.math.imag(z * z * 2j), [z]),
        (lambda z: anp.angle(z), lambda z: tf.math.angle(z), [z]),
        (lambda w: gather(w, ids) ** 2, lambda w: tf.gather(w, ids) ** 2, [w]),
        (
            lambda w: gather(w, [0, 1]).sum() + 3 * gather(w, [2]).sum(),
            lambda w: tf.reduce_sum(tf.gather(w, [0, 1])) + 3 * tf.reduce_sum(tf.gather(w, [2])),
            [w],
        ),
        (
            lambda w: gather(w, [0, 1]).sum() + (w**2).sum(),
            lambda w: tf.reduce_sum(tf.gather(w, [0, 1])) + tf.reduce_sum(w**2),
            [w],
        ),
    ]
    for ours, theirs, arrays in cases:
        variables = [Variable(array.copy()) for array in arrays]
        twins = [tf.Variable(array) for array in arrays]
        with GradientTape() as tape:
            target = ours(*variables)
        with tf.GradientTape() as twin_tape:
            twin_target = theirs(*twins)
        np.testing.assert_allclose(target, twin_target, rtol=1e-5, atol=1e-6)
        gradients = tape.gradient(target, variables)
        twin_gradients = twin_tape.gradient(twin_target, twins)
        for gradient, twin in zip(gradients, twin_gradients, strict=True):
            assert (gradient is None) == (twin is None)
            assert isinstance(gradient, IndexedSlices) == isinstance(twin, tf.IndexedSlices)
            if isinstance(gradient, IndexedSlices):
                assert gradient.indices.tolist() == twin.indices.numpy().tolist()
                gradient, twin = gradient.values, twin.values
            if gradient is not None:
                np.testing.assert_allclose(gradient, twin.numpy(), rtol=1e-5, atol=1e-6)


INTO_ARRAYS = {
    "operator": lambda x, v: x.__iadd__(v),
    "out": lambda x, v: np.exp(v, out=x),
    "both": lambda x, v: np.add(x, v, out=x),
    "at": lambda x, v: np.add.at(x, [0, 1], v),
}


@pytest.mark.parametrize("name", INTO_ARRAYS)
def test_a_variable_is_not_computed_into_an_array_unseen(name):
    """What is computed from the array would be a constant."""
    v, x = Variable([1.0, 2.0]), np.zeros(2, np.float32)
    with GradientTape() as tape:
        with pytest.raises(
            TypeError, match=r"Variable:0 can't be computed into an array .* x \+ v"
        ):
            INTO_ARRAYS[name](x, v)
        total = (x + v).sum() + (+v).sum()
    np.testing.assert_array_equal(x, 0.0)
    np.testing.assert_array_equal(tape.gradient(total, v), [2.0, 2.0])
    INTO_ARRAYS[name](x, v)  # without a tape
    assert x.any()


WRITERS = {
    "copyto": lambda v: np.copyto(v, [10.0, 20.0]),
    "put": lambda v: np.put(v, [0], [10.0]),
    "place": lambda v: np.place(v, [True, False], [10.0]),
    "putmask": lambda v: np.putmask(v, [True, False], [10.0]),
    "clip": lambda v: np.clip(v, 5.0, 6.0, out=v),
    "sum": lambda v: np.sum(np.ones((3, 2)), axis=0, out=v),
    "dst": lambda v: np.copyto(dst=v, src=[10.0, 20.0]),
    "a": lambda v: np.put(a=v, ind=[0], v=[10.0]),
    "positional out": lambda v: np.clip(v, 5.0, 6.0, v),
    "dot": lambda v: np.dot(np.eye(2) * 5.0, np.ones(2), v),
    "take": lambda v: np.take(np.array([5.0, 6.0]), [0, 1], 0, v),
    "round": lambda v: np.round(np.array([5.0, 6.0]), 0, v),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_numpy_writes_to_a_variable_is_noticed(name):
    v = Variable(np.array([1.0, 2.0]))
    with GradientTape() as tape:
        loss = (v**2).sum()
        with pytest.raises(TypeError, match="an operator can't write to Variable:0 while"):
            WRITERS[name](v)
    np.testing.assert_array_equal(v, [1.0, 2.0])
    WRITERS[name](v)
    assert v.numpy()[0] != 1.0
    with pytest.raises(RuntimeError):
        tape.gradient(loss, v)


def test_what_nan_to_num_writes_is_noticed():
    v = Variable(np.array([np.nan, 2.0]))
    with GradientTape() as tape:
        loss = (v**2).sum()
        with pytest.raises(TypeError, match="an operator can't write to Variable:0 while"):
            np.nan_to_num(v, copy=False)
        with pytest.raises(TypeError, match="missing"):
            np.copyto(v)
    np.nan_to_num(v, copy=False)
    assert v.tolist() == [0.0, 2.0]
    with pytest.raises(RuntimeError):
        tape.gradient(loss, v)
