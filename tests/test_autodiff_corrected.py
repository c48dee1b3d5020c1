"""Arguments for which autograd's derivatives are wrong: they are corrected or refused."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from differences import check_gradients, cplx, real
from rmsjit import GradientTape, Variable

MASK = np.array([[True, False], [False, True]])
WITH_ZERO = np.array([[2.0, 0.0, 3.0], [1.0, -2.0, 0.5], [0.0, 0.0, 4.0]])


def weighed(value):
    """The sum with weights that differ, so that no permutation of a gradient goes unnoticed."""
    weights = np.cos(np.arange(np.size(value)) + 1.0).reshape(np.shape(value))
    return np.sum(value * weights)


CORRECTED = {
    # norms
    "norm keepdims": (lambda a: a / np.linalg.norm(a, axis=1, keepdims=True), [real(3, 4)]),
    "norm of rows of a product": (
        lambda a: a @ real(4, 2) / np.linalg.norm(a @ real(4, 2), axis=-1, keepdims=True),
        [real(3, 4)],
    ),
    "norm negative axes": (lambda a: np.linalg.norm(a, axis=(-2, -1)), [real(2, 3, 2)]),
    "norm of matrices keepdims": (
        lambda a: a / np.linalg.norm(a, axis=(2, 0), keepdims=True),
        [real(2, 3, 2)],
    ),
    "norm nuc": (lambda a: np.linalg.norm(a, "nuc", axis=(-1, -2)), [real(2, 3, 2)]),
    "norm 3": (lambda a: np.linalg.norm(a, ord=3, axis=0, keepdims=True), [real(2, 3)]),
    "norm inf": (lambda a: np.linalg.norm(a, np.inf), [real(4)]),
    "norm -inf": (lambda a: np.linalg.norm(a, -np.inf, axis=-1), [real(3, 4)]),
    "norm 1": (lambda a: np.linalg.norm(a, 1, axis=0, keepdims=True), [real(3, 4)]),
    "norm of one axis in a tuple": (lambda a: np.linalg.norm(a, axis=(1,)), [real(3, 4)]),
    # axes and repetition
    "repeat axis=-1": (lambda a: np.repeat(a, 2, axis=-1), [real(3, 2)]),
    "repeat axis=-2": (lambda a: np.repeat(a, 2, axis=-2), [real(3, 2)]),
    "a.repeat": (lambda a: (a * 2).repeat(2, -1) + a.repeat(2, axis=-1), [real(3, 2)]),
    "repeat counts": (lambda a: np.repeat(a, [1, 2, 0], axis=0), [real(3, 2)]),
    "repeat counts of all": (lambda a: np.repeat(a, [1, 2, 0, 3]), [real(2, 2)]),
    "tile": (lambda a: np.tile(a, 2), [real(2, 3)]),
    "tile odd": (lambda a: np.tile(a, (2,)), [real(3, 3)]),
    "transpose": (lambda a: np.transpose(a, (0, -1, -2)), [real(2, 3, 4)]),
    "a.transpose": (lambda a: a.transpose(0, -1, -2) + (a * 2).transpose(0, 2, 1), [real(2, 3, 4)]),
    "a.transpose of three": (lambda a: a.transpose((-1, 0, 1)), [real(2, 3, 4)]),
    "roll": (lambda a: np.roll(a, (1, 2), axis=(0, 1)), [real(3, 4)]),
    "roll flat": (lambda a: np.roll(a, (1, 2)), [real(3, 4)]),
    "ravel A": (lambda a: np.ravel((a * 1).T, order="A"), [real(2, 3)]),
    "a.ravel A": (lambda a: (a * 1).T.ravel(order="A"), [real(2, 3)]),
    "a.ravel K": (lambda a: (a * 1).T.ravel("K"), [real(2, 3)]),
    "flatten A": (lambda a: (a * 1).T.flatten(order="A"), [real(2, 3)]),
    "reshape A": (lambda a: np.reshape((a * 1).T, (2, 3), order="A"), [real(2, 3)]),
    "a.reshape A": (lambda a: (a * 1).T.reshape(2, 3, order="A"), [real(2, 3)]),
    "booleans": (lambda a: a[[True, False, True]] * 2, [real(3, 2)]),
    "booleans of a result": (lambda a: (a * 2)[[True, False, True]], [real(3, 2)]),
    "diag": (np.diag, [real(3, 4)]),
    "diag above": (lambda a: np.diag(a, 1), [real(4, 3)]),
    "pad": (lambda a: np.pad(a, 1), [real(2, 3)]),
    "pad widths": (lambda a: np.pad(a, (1, 0)), [real(2, 3)]),
    "concatenate": (lambda a, b: np.concatenate([a, b], axis=None), [real(2, 3), real(2)]),
    "gradient": (lambda a: np.gradient(a, axis=0), [real(3, 4)]),
    "gradient of all": (lambda a: np.gradient(a * a)[1], [real(2, 3)]),
    # broadcasting
    "where": (lambda a: np.where(MASK, a, 0.0), [real(2)]),
    "where of two": (lambda a, b: np.where(MASK[:, :1], a, b), [real(2), real(2, 1)]),
    "where of a number": (lambda a, b: np.where(a > 0, a, b), [real(2, 3), real()]),
    "clip a number": (lambda a: np.clip(a, [-1.0, 0.0], [1.0, 2.0]), [np.array(0.1)]),
    "clip to an array": (lambda a: np.clip(a, real(3, 1) - 2, real(3, 1)), [real(4)]),
    "a.clip": (lambda a: a.clip(0.1) + (a * 2).clip(max=1.0), [real(5)]),
    "broadcast_to": (lambda a: np.broadcast_to(a, (2, 3)), [real(3)]),
    "broadcast_to a list": (lambda a: np.broadcast_to(a, [4, 2, 3]), [real(2, 1)]),
    "full_like": (lambda a: np.full_like(a, a[0] * 2), [real(2, 3)]),
    "linspace": (lambda a, b: np.linspace(a, b, 3), [real(2), real(3, 2)]),
    "linspace of matrices": (lambda a: np.linspace(a, 1.0, 4), [real(4, 2)]),
    "linspace without end": (lambda a: np.linspace(0.0, a, 4, endpoint=False), [np.array(2.0)]),
    "solve": (np.linalg.solve, [real(3, 3), real(2, 3, 1)]),
    "solve stacked": (np.linalg.solve, [real(2, 3, 3), real(3, 2)]),
    "solve vector": (lambda a, b: np.linalg.solve(a, b), [real(2, 3, 3), real(3)]),
    "cross": (np.cross, [real(2, 3), real(3)]),
    "outer": (np.outer, [real(2, 2), real(3, 1)]),
    "kron": (np.kron, [real(2, 3, 2), real(2, 1, 3)]),
    "tril": (np.tril, [real(3)]),
    "triu": (lambda a: np.triu(a, 1), [real(3)]),
    # Fourier transforms
    "rfft backward": (lambda a: np.fft.rfft(a, norm="backward"), [real(4)]),
    "rfft n": (lambda a: np.fft.rfft(a, n=6), [real(4)]),
    "rfft n axis": (lambda a: np.fft.rfft(a, axis=0, n=2), [real(4, 3)]),
    "rfft2 backward": (lambda a: np.fft.rfft2(a, (4, 2), norm="backward"), [real(4, 4)]),
    "irfft backward": (lambda a: np.fft.irfft(a, norm="backward"), [cplx(3)]),
    # numbers
    "prod": (np.prod, [WITH_ZERO[0]]),
    "prod axis": (lambda a: np.prod(a, axis=1), [WITH_ZERO]),
    "prod keepdims": (lambda a: a.prod(axis=(0,), keepdims=True), [WITH_ZERO]),
    "prod of all": (lambda a: (a + 0.0).prod(), [WITH_ZERO[:2]]),
    "sinc": (np.sinc, [np.array([0.0, 0.3, -1.2])]),
    "power": (lambda a: a ** [1.0, 2.0, 3.0], [real(3)]),
    "np.power": (lambda a: np.power(a * 1, [1.0, 2.0, 3.0]), [real(3)]),
    "arctan2": (lambda a: np.arctan2([1.0, 2.0, 3.0], a), [real(3)]),
    # keywords by position, and named results
    "sum by position": (lambda a: np.sum(a, 0, None, None, True), [real(2, 3)]),
    "var by position": (lambda a: a.var(1, None, None, 1), [real(2, 3)]),
    "eigenvalues": (lambda a: np.linalg.eigh(a + a.T).eigenvalues, [real(3, 3)]),
    "logabsdet": (lambda a: np.linalg.slogdet(a).logabsdet, [real(3, 3)]),
    "svd": (lambda a: np.linalg.svd(a, full_matrices=False).S, [real(2, 3)]),
}
if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # which has these keywords
    CORRECTED["clip min"] = lambda a: np.clip(a, min=0.1, max=0.5), [real(5)]
    CORRECTED["clip max"] = lambda a: np.clip(a, max=0.5), [real(5)]


@pytest.mark.parametrize("name", CORRECTED)
def test_derivatives_that_autograd_lacks(name):
    function, arrays = CORRECTED[name]
    check_gradients(lambda *values: weighed(function(*values)), *arrays)


@pytest.mark.parametrize("name", CORRECTED)
def test_the_result_is_that_of_numpy(name):
    function, arrays = CORRECTED[name]
    for dtype in ("float64", "float32"):
        values = [array if array.dtype.kind == "c" else array.astype(dtype) for array in arrays]
        with GradientTape():
            result = function(*map(Variable, values))
        expected = function(*values)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(result.array, expected, rtol=1e-6 if dtype == "float32" else 0)
    assert type(function(*map(Variable, arrays))) is type(function(*arrays))  # without a tape


@pytest.mark.parametrize("name", ["norm keepdims", "tile", "where", "prod", "sinc", "gradient"])
def test_second_derivatives_of_these_are_right_too(name):
    function, arrays = CORRECTED[name]

    def slope(*values):
        variables = [v if isinstance(v, Variable) else Variable(v) for v in values]
        with GradientTape() as tape:
            target = weighed(function(*variables) ** 2)
        return sum(weighed(g) for g in tape.gradient(target, variables))

    check_gradients(slope, *arrays)


def test_broadcasting_keeps_zeros_and_nan():
    v = Variable(np.array([-0.0, np.nan]))
    with GradientTape():
        chosen = np.where(np.ones((2, 1), bool), v, 1.0)
    assert np.signbit(chosen.array[:, 0]).all()
    assert np.isnan(chosen.array[:, 1]).all()


MASK3 = np.array([True, False, True])
REFUSED = {
    "sum where": (lambda v: np.sum(v, where=MASK3), "numpy.sum with where=.*np.where"),
    "v.sum where": (lambda v: v.sum(where=MASK3), "numpy.sum with where="),
    "mean where": (lambda v: v.mean(where=MASK3), "numpy.mean with where="),
    "std where": (lambda v: np.std(v, where=MASK3), "numpy.std with where="),
    "max where": (lambda v: np.max(v, where=MASK3, initial=0.0), "numpy.max with"),
    "min initial": (lambda v: np.min(v, initial=-1.0), "numpy.min with initial="),
    "v.min initial": (lambda v: (v * 2).min(initial=-1.0), "numpy.min with initial="),
    "sum initial": (lambda v: np.sum(v, initial=2.0), "numpy.sum with initial="),
    "prod initial": (lambda v: np.prod(v * 0, initial=2.0), "numpy.prod with initial="),
    "var correction": (lambda v: np.var(v, correction=1), "numpy.var with correction=.*ddof"),
    "sum out": (lambda v: np.sum(v * 2, out=np.zeros(())), "numpy.sum with out="),
    "sum positional out": (lambda v: np.sum(v, None, None, np.zeros(())), "numpy.sum with out="),
    "v.sum out": (lambda v: v.sum(out=np.zeros(())), "numpy.sum with out="),
    "einsum out": (lambda v: np.einsum("i->", v, out=np.zeros(())), "numpy.einsum with out="),
    "clip out": (lambda v: np.clip(v, 0, 1, np.zeros(3)), "numpy.clip with out="),
    "concatenate out": (lambda v: np.concatenate([v], out=np.zeros(3)), "concatenate with out="),
    "concatenate dtype": (lambda v: np.concatenate([v], dtype="f4"), "concatenate with dtype="),
    "fft out": (lambda v: np.fft.fft(v, out=np.zeros(3, complex)), "numpy.fft.fft with out="),
    "rfft forward": (lambda v: np.fft.rfft(v, norm="forward"), 'rfft with norm="forward"'),
    "irfft forward": (lambda v: np.fft.irfft(v, 4, norm="forward"), 'irfft with norm="forward"'),
    "exp dtype": (lambda v: np.exp(v, dtype="f4"), "numpy.exp with dtype=.*astype"),
    "complex sign": (lambda v: np.sign(v * 1j), r"numpy.sign with complex .* z / np.abs\(z\)"),
    "reduce": (lambda v: np.add.reduce(v, axis=0), "record add as reduce"),
    "add where": (lambda v: np.add(v, 1.0, where=MASK3), "numpy.add with where="),
    "cholesky": (lambda v: np.linalg.cholesky(np.diag(v + 0j)), "cholesky with complex"),
    "pinv": (lambda v: np.linalg.pinv(v[None] + 0j), "pinv with complex"),
    "full_like": (lambda v: np.full_like(v, v[0], "f4"), "numpy.full_like with dtype="),
    "linspace axis": (lambda v: np.linspace(v, 1.0, axis=-1), "numpy.linspace with axis="),
    "ravel K": (lambda v: np.outer(v, v)[:, :2].ravel(order="K"), 'ravel with order="K"'),
    "gradient spacing": (lambda v: np.gradient(v, 2.0), "numpy.gradient with spacing"),
}


@pytest.mark.filterwarnings("ignore:'where' used without 'out'")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_is_refused(name):
    function, message = REFUSED[name]
    v = Variable(np.array([1.0, 2.0, 3.0]))
    expected = function(v)  # without a tape as ever
    with GradientTape(persistent=True), pytest.raises(TypeError, match=message):
        function(v)
    with GradientTape() as tape:
        result = v * 1
    del tape
    np.testing.assert_array_equal(function(result.array), expected)


def test_what_needs_no_derivative_is_not_refused():
    v = Variable(np.array([1.0, 2.0, 3.0]))
    with GradientTape():
        assert np.argmax(v * 2, out=np.zeros((), int)) == 2
        assert np.greater(v, 1.0, dtype=bool).tolist() == [False, True, True]
    check_gradients(lambda a: np.std(a, 0, where=True, out=None), v.array)


# What no table can correct: autograd's own functions, and rules of the user ---------------------

WRONG = {
    "anp.linalg.norm": (
        lambda v: v / anp.linalg.norm(v, axis=1, keepdims=True),
        (ValueError, NotImplementedError),  # autograd 1.8 knows no keepdims
        "autograd.* numpy.linalg.norm",
    ),
    "norm of a product": (
        lambda v: v @ v / anp.linalg.norm(v @ v, axis=1, keepdims=True),
        (ValueError, NotImplementedError),
        "autograd.* numpy.linalg.norm",
    ),
    "anp.where": (
        lambda v: anp.where(np.ones((3, 2, 2), bool), v, 0.0),
        ValueError,
        r"autograd's derivative of numpy.where is wrong .* \(3, 2, 2\), .* \(2, 2\)",
    ),
    "a repeated index": (
        lambda v: np.einsum("ii", v),
        NotImplementedError,
        "autograd can't differentiate numpy.einsum for these arguments .*ValueError",
    ),
    "anp.broadcast_to": (
        lambda v: anp.broadcast_to(v, (3, 2, 2)),
        NotImplementedError,
        "autograd can't differentiate numpy.broadcast_to .*AssertionError: Can't handle",
    ),
    "pad": (
        lambda v: np.pad(v, 1, mode="edge"),
        NotImplementedError,
        "autograd can't differentiate numpy.pad .*Only constant mode",
    ),
    "keyword": (
        lambda v: anp.exp(v, dtype="f4"),
        NotImplementedError,
        "autograd can't differentiate numpy.exp .*unexpected keyword",
    ),
    "odd rfft": (
        lambda v: np.fft.rfft(v, 3),
        NotImplementedError,
        "autograd can't differentiate numpy.fft.rfft .*odd lengthed",
    ),
    "singular": (
        lambda v: np.linalg.det(v * [[1.0, 0.0]]),
        np.linalg.LinAlgError,
        "autograd can't differentiate numpy.linalg.det .*Singular",
    ),
    "sort": (
        lambda v: np.sort(v),
        NotImplementedError,
        "autograd can't differentiate numpy.sort",
    ),
}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_function_whose_derivative_is_wrong(name, persistent):
    function, error, message = WRONG[name]
    v = Variable(np.array([[1.0, 2.0], [3.0, 5.0]]))

    def differentiate():
        with GradientTape(persistent=persistent) as tape:
            target = function(v)
        tape.gradient(target, v)

    with pytest.raises(error, match=message) as caught:
        differentiate()
    assert "is wrong" in str(caught.value) or caught.value.__cause__ is not None


def of_the_user(rule):
    @autograd.extend.primitive
    def doubled(x):
        return 2 * x

    autograd.extend.defvjp(doubled, rule)
    return doubled


def test_a_rule_of_the_user_raises_what_it_raises():
    v = Variable(np.ones((2, 3)))

    def fail(g):
        raise ValueError("not today")

    doubled = of_the_user(lambda ans, x: fail)
    with GradientTape() as tape:
        target = doubled(v)
    with pytest.raises(ValueError, match="not today"):
        tape.gradient(target, v)
    doubled = of_the_user(lambda ans, x: lambda g: 2 * g[0])
    with GradientTape() as tape:
        target = doubled(v * 1)
    with pytest.raises(ValueError, match=r"^the derivative of .*doubled is wrong .*\(3,\)"):
        tape.gradient(target, v)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.mean(where=[True, True, False]),
        lambda y: y.sum(initial=1.0),
        lambda y: y.max(initial=9.0),
        lambda y: y.std(where=[True, True, False]),
        lambda y: y.sum(out=np.zeros((), np.float32)),
    ],
)
def test_methods_of_results_that_no_tape_records_are_those_of_arrays(function):
    v = Variable(np.float32([1.0, 2.0, 3.0]))
    with GradientTape():
        y = v * 2
    np.testing.assert_array_equal(function(y), function(np.float32([2.0, 4.0, 6.0])))


def test_a_rule_of_the_user_may_give_a_list():
    v = Variable(np.array([1.0, 2.0, 3.0]))
    doubled = of_the_user(lambda ans, x: lambda g: [2.0, 2.0, 2.0])
    with GradientTape() as tape:
        target = doubled(v)
    assert np.asarray(tape.gradient(target, v)).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("dtype", "large"), [("float16", 100.3), ("float32", 1e20)])
def test_sinc_of_large_numbers_beside_zero(dtype, large):
    v = Variable(np.array([0.0, large], dtype))
    with GradientTape() as tape:
        target = np.sinc(v).sum()
    gradient = tape.gradient(target, v)
    assert gradient[0] == 0.0
    assert np.isfinite(gradient).all()


def test_more_positions_than_a_tape_records_are_refused_by_name():
    v = Variable(np.array([1.0, 2.0]))
    with (
        GradientTape(),
        pytest.raises(TypeError, match=r"record numpy\.linspace with (dtype|retstep)="),
    ):
        np.linspace(v[0], 1.0, 5, True, False, np.float32)


@pytest.mark.parametrize("subscripts", ["ij,ij->i", "ij, ij", "ij,ij->j"])
def test_einsum_sums_over_repeated_axes(subscripts):
    rng = np.random.default_rng(0)
    a, b = Variable(rng.normal(size=(3, 1))), Variable(rng.normal(size=(3, 4)))
    with GradientTape(persistent=True) as tape:
        target = (np.einsum(subscripts, a, b) ** 2).sum()
        same = (np.einsum(subscripts, a + np.zeros((3, 4)), b) ** 2).sum()
    for one, other in zip(tape.gradient(target, [a, b]), tape.gradient(same, [a, b]), strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 2)])
def test_the_sign_of_a_complex_determinant_is_differentiated(shape):
    rng = np.random.default_rng(0)
    a = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    v, step = Variable(a), 1e-6
    with GradientTape(persistent=True) as tape:
        sign, logarithm = np.linalg.slogdet(v)
        target = np.real(sign).sum() + logarithm.sum()
    np.testing.assert_allclose(sign.array, np.linalg.slogdet(a).sign)
    gradient = tape.gradient(target, v)

    def value(x):
        sign, logarithm = np.linalg.slogdet(x)
        return np.real(sign).sum() + logarithm.sum()

    for index in np.ndindex(*shape):
        unit = np.zeros(shape)
        unit[index] = step
        by_real = (value(a + unit) - value(a - unit)) / (2 * step)
        by_imaginary = (value(a + 1j * unit) - value(a - 1j * unit)) / (2 * step)
        np.testing.assert_allclose(
            [gradient[index].real, abs(gradient[index].imag)],
            [by_real, abs(by_imaginary)],
            rtol=1e-5,
        )
