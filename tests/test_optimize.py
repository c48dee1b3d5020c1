"""`rmsjit.optimize`, and the method for ``scipy.optimize.minimize``."""

import autograd.numpy as anp
import numpy as np
import pytest
from scipy import optimize as so

import rmsjit
from rmsjit.minimization.result import Result
from strategies import run_python

METHOD = rmsjit.scipy_method(rmsjit.RMSprop(0.1))


def bowl(x, center=3.0):
    return np.sum((x - center) ** 2)


def bowl_der(x, center=3.0):
    return 2 * (x - center)


def both(x, center=3.0):
    return bowl(x, center), bowl_der(x, center)


def steps_by_hand(x, count, lr=0.1, low=-np.inf, high=np.inf):
    """The points of RMSprop on the bowl, computed in NumPy."""
    x, rms, points = np.array(x, float), np.zeros(np.shape(x)), []
    for _ in range(count):
        g = bowl_der(x)
        rms = 0.9 * rms + 0.1 * g * g
        x = np.clip(x - lr * g / (np.sqrt(rms) + 1e-7), low, high)
        points.append(x.copy())
    return points


GRADIENTS = {
    "jac": {"fun": bowl, "jac": bowl_der},
    "jac=True": {"fun": both, "jac": True},
    "autograd": {"fun": bowl},
    "autograd.numpy": {"fun": lambda x, center=3.0: anp.sum((x - center) ** 2)},
    "jac=False": {"fun": bowl, "jac": False},
}


@pytest.mark.parametrize("given", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("x0", [[0.0, 1.0], [[1.0], [5.0]], 2.0, [1, 2]], ids=str)
def test_steps_are_those_of_rmsprop(given, x0):
    points = []
    found = rmsjit.optimize(
        **given, x0=x0, optimizer=rmsjit.RMSprop(0.1), maxiter=5, callback=points.append
    )
    np.testing.assert_allclose(points, steps_by_hand(x0, 5), rtol=1e-13)
    assert (found.nit, found.nfev, found.njev, found.status) == (5, 6, 6, 1)
    assert not found.success
    assert found.message == "The maximum number of iterations was reached."


@pytest.mark.parametrize("given", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("args", [(1.0,), 1.0])
def test_arguments_are_handed_on(given, args):
    found = rmsjit.optimize(**given, x0=np.zeros(3), args=args, optimizer=rmsjit.RMSprop(0.1))
    assert found.success
    np.testing.assert_allclose(found.x, 1.0, atol=1e-5)
    assert found.fun == bowl(found.x, 1.0)
    np.testing.assert_array_equal(found.jac, bowl_der(found.x, 1.0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_is_kept(dtype):
    seen = []

    def fun(x):
        seen.append(x.dtype)
        return both(x)

    found = rmsjit.optimize(fun, np.zeros(2, dtype), True, maxiter=2)
    assert {found.x.dtype, *seen} == {np.dtype(dtype)}


def test_the_first_point_and_the_optimizer_are_left_alone():
    x0, optimizer = np.zeros(3), rmsjit.RMSprop(0.1, momentum=0.9)
    runs = [rmsjit.optimize(bowl, x0, optimizer=optimizer, maxiter=7) for _ in range(2)]
    assert not x0.any()
    assert int(optimizer.iterations) == 0
    assert not optimizer.variables_seen
    np.testing.assert_array_equal(runs[0].x, runs[1].x)


def test_user_code_gets_points_that_stay():
    points = []

    def fun(x):
        points.append(x)
        x += 1000.0  # its own copy
        return both(x - 1000.0)

    rmsjit.optimize(fun, np.zeros(1), True, optimizer=rmsjit.RMSprop(0.1), maxiter=3)
    expected = [[1000.0], *(point + 1000 for point in steps_by_hand([0.0], 3))]
    np.testing.assert_allclose(points, expected)


# --- endings ------------------------------------------------------------------------------------


def test_a_small_gradient_ends_the_run():
    found = rmsjit.optimize(bowl, np.zeros(2), gtol=0.5, optimizer=rmsjit.RMSprop(0.1))
    assert found.success
    assert found.status == 0
    assert "gtol" in found.message
    assert np.abs(found.jac).max() <= 0.5
    assert found.nit < 60


def test_a_run_may_begin_at_its_end():
    found = rmsjit.optimize(bowl, np.full(2, 3.0))
    assert (found.nit, found.nfev, found.success) == (0, 1, True)


def test_a_small_step_ends_the_run():
    schedule = rmsjit.schedules.ExponentialDecay(0.1, 1, 0.5)
    found = rmsjit.optimize(bowl, np.zeros(2), optimizer=rmsjit.RMSprop(schedule), xtol=1e-3)
    assert found.success
    assert "xtol" in found.message
    assert found.nit == 9


RESTING = {  # in its first iterations
    "warm-up": lambda: rmsjit.RMSprop(
        rmsjit.schedules.CosineDecay(0.0, 400, warmup_target=0.1, warmup_steps=50)
    ),
    "function": lambda: rmsjit.RMSprop(lambda step: 0.001 * step),
    "accumulation": lambda: rmsjit.RMSprop(0.05, gradient_accumulation_steps=3),
}


@pytest.mark.parametrize("name", RESTING)
def test_an_iteration_that_moves_nothing_need_not_be_the_end(name):
    found = rmsjit.optimize(bowl, np.zeros(2), optimizer=RESTING[name]())
    assert found.nit > 20
    np.testing.assert_allclose(found.x, 3.0, atol=0.1)


def test_steps_below_the_precision_of_x_add_up():
    for settings in ({"master_weights": True}, {"rounding": "stochastic"}):
        optimizer = rmsjit.RMSprop(1e-4, **settings)
        found = rmsjit.optimize(bowl, np.ones(64, "f2"), optimizer=optimizer, maxiter=100)
        assert found.nit == 100
        assert 1.005 < found.x.mean() < 1.02
    found = rmsjit.optimize(bowl, np.ones(64, "f2"), optimizer=rmsjit.RMSprop(1e-4, rho=0.0))
    assert (found.nit, found.success) == (1, True)


def test_a_used_optimizer_begins_again():
    schedule = rmsjit.schedules.CosineDecay(0.1, 30)
    optimizer, w = rmsjit.RMSprop(schedule, gradient_accumulation_steps=2), np.ones(2)
    for _ in range(99):
        optimizer.apply_gradients([(np.ones(2), w)])
    fresh = rmsjit.RMSprop(schedule, gradient_accumulation_steps=2)
    found = [
        rmsjit.optimize(bowl, np.zeros(2), optimizer=one, maxiter=20) for one in (optimizer, fresh)
    ]
    np.testing.assert_array_equal(found[0].x, found[1].x)
    assert (int(optimizer.iterations), optimizer.accumulated_calls) == (49, 1)


@pytest.mark.parametrize("scale", [1024.0, "dynamic"])
@pytest.mark.parametrize("jac", [None, lambda x: 2 * (x - 1)])
def test_a_loss_scale_is_left_out(scale, jac):
    ends = []
    for loss_scale in (None, scale):
        optimizer = rmsjit.RMSprop(0.01, epsilon=1.0, loss_scale=loss_scale)
        found = rmsjit.optimize(
            lambda x: np.sum((x - 1.0) ** 2), np.zeros(2), jac, optimizer=optimizer, maxiter=100
        )
        ends.append(found.x.tolist())
    assert ends[0] == ends[1]


def test_no_steps():
    found = rmsjit.optimize(bowl, np.zeros(2), maxiter=0)
    assert (found.nit, found.nfev, found.status, found.fun) == (0, 1, 1, 18.0)


def test_the_best_point_is_kept():
    """At so high a rate, later points are worse than earlier ones."""
    values = []

    def fun(x):
        values.append(bowl(x))
        return both(x)

    found = rmsjit.optimize(fun, [2.0], True, optimizer=rmsjit.RMSprop(2.0), maxiter=20)
    assert found.fun == min(values) < values[-1]
    assert bowl(found.x) == found.fun


def faulty_after(count, value, gradient):
    calls = []

    def fun(x):
        calls.append(x)
        return (value, np.full(x.shape, gradient)) if len(calls) > count else both(x)

    return fun


@pytest.mark.parametrize(("value", "gradient"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
@pytest.mark.parametrize("count", [0, 3])
def test_a_value_that_is_not_finite_ends_the_run(value, gradient, count):
    found = rmsjit.optimize(faulty_after(count, value, gradient), [0.0], True)
    assert (found.success, found.status, found.nit) == (False, 3, count)
    if count and not np.isfinite(value):
        assert found.fun == pytest.approx(bowl(found.x))


# --- callbacks ----------------------------------------------------------------------------------


def test_a_callback_may_take_a_result():
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)

    rmsjit.optimize(bowl, np.zeros(2), callback=callback, maxiter=3)
    assert [type(one) for one in seen] == [so.OptimizeResult] * 3
    assert [one.fun for one in seen] == [bowl(one.x) for one in seen]


def test_a_callback_may_end_the_run():
    def callback(x):
        if x[0] > 0.5:
            raise StopIteration

    found = rmsjit.optimize(bowl, np.zeros(2), callback=callback, optimizer=rmsjit.RMSprop(0.1))
    assert (found.success, found.status) == (False, 2)
    assert 0.5 < found.x[0] < 1.0


# --- bounds -------------------------------------------------------------------------------------

BOUNDS = {
    "pairs": [(None, 1.0), (-1.0, None), (None, None)],
    "Bounds": so.Bounds([-np.inf, -1.0, -np.inf], [1.0, np.inf, np.inf]),
    "an array": np.array([[-np.inf, 1.0], [-1.0, np.inf], [-np.inf, np.inf]]),
}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_steps_are_projected_into_bounds(bounds):
    points = []
    x0 = [5.0, -5.0, 0.0]
    found = rmsjit.optimize(
        bowl,
        x0,
        bounds=bounds,
        callback=points.append,
        optimizer=rmsjit.RMSprop(0.1),
    )
    low, high = [-np.inf, -1.0, -np.inf], [1.0, np.inf, np.inf]
    expected = steps_by_hand(np.clip(x0, low, high), len(points), low=low, high=high)
    np.testing.assert_allclose(points, expected, rtol=1e-12)
    assert found.success  # although the gradient at the bound is not small
    np.testing.assert_allclose(found.x, [1.0, 3.0, 3.0], atol=1e-4)


def test_bounds_that_are_alike_for_all():
    found = rmsjit.optimize(bowl, np.zeros((2, 2)), bounds=so.Bounds(-1, 1), maxiter=200)
    np.testing.assert_array_equal(found.x, np.ones((2, 2)))


BAD_BOUNDS = {
    "too few": ([(0, 1)], ValueError, "a pair for each of 2 elements, got 1"),
    "no pairs": ([0, 1], TypeError, "a sequence of .min, max., got"),
    "a number": (3, TypeError, "a sequence of .min, max., got 3"),
    "reversed": ([(0, 1), (1, 0)], ValueError, r"min <= max, got others for the element \[1\]"),
    "NaN": ([(0, 1), (np.nan, 0)], ValueError, r"min <= max, got others for the element \[1\]"),
    "a wrong shape": (so.Bounds([0] * 3, [1] * 3), ValueError, "must fit x of shape"),
}


@pytest.mark.parametrize(("bounds", "error", "message"), BAD_BOUNDS.values(), ids=BAD_BOUNDS)
def test_bounds_that_are_refused(bounds, error, message):
    with pytest.raises(error, match=message):
        rmsjit.optimize(bowl, np.zeros(2), bounds=bounds)


# --- errors -------------------------------------------------------------------------------------

REFUSED = {
    "fun": ({"fun": 3}, TypeError, "fun must be callable, got 3"),
    "jac": ({"jac": "2-point"}, TypeError, "jac must be callable, True or None, got '2-point'"),
    "callback": ({"callback": 3}, TypeError, "callback must be callable or None, got 3"),
    "maxiter": ({"maxiter": 2.5}, TypeError, "maxiter must be an integer, got 2.5"),
    "negative": ({"maxiter": -1}, ValueError, "maxiter must not be negative, got -1"),
    "gtol": ({"gtol": -1.0}, ValueError, "gtol must not be negative, got -1.0"),
    "xtol": ({"xtol": "small"}, TypeError, "xtol must be a number, got 'small'"),
    "ascent": (
        {"optimizer": rmsjit.RMSprop(maximize=True)},
        ValueError,
        "optimizer must not maximize, got .*: negate the function",
    ),
    "optimizer": ({"optimizer": 0.1}, TypeError, "optimizer must be an rmsjit.RMSprop or None"),
    "x0": ({"x0": [1j]}, TypeError, "x0 must be real numbers, got dtype complex128"),
    "value": ({"fun": lambda x: x, "jac": bowl_der}, TypeError, r"real number, got .*\(2,\)"),
    "gradient": ({"jac": lambda x: x[:1]}, ValueError, r"shape of x, \(2,\), got .*\(1,\)"),
    "pair": ({"jac": True}, TypeError, "fun must return its value and the gradient, got float"),
    "constant": ({"fun": lambda x: 1.0}, ValueError, "does not depend on x .* or pass jac"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        rmsjit.optimize(**{"fun": bowl, "x0": np.zeros(2), **changes})


def test_the_gradient_of_gathered_elements_is_made_dense():
    points = {}
    for take in (rmsjit.gather, lambda x, ids: x[ids]):
        found = rmsjit.optimize(
            lambda x, take=take: bowl(take(x, [0, 2, 2])),
            [1.0, 2.0, 5.0],
            optimizer=rmsjit.RMSprop(0.1),
            maxiter=5,
        )
        points[take] = found.x
    first, second = points.values()
    np.testing.assert_array_equal(first, second)
    assert first[1] == 2.0


def test_a_function_that_autograd_cannot_differentiate_says_so():
    with pytest.raises(TypeError) as caught:
        rmsjit.optimize(so.rosen, np.zeros(2))
    assert "since jac was left out" in caught.value.__notes__[0]


# --- scipy.optimize.minimize ----------------------------------------------------------------------


@pytest.mark.parametrize("given", GRADIENTS.values(), ids=GRADIENTS)
def test_scipy_takes_the_same_steps(given):
    points = []
    found = so.minimize(
        given["fun"],
        np.zeros(2),
        args=(3.0,),
        jac=given.get("jac"),
        method=METHOD,
        callback=points.append,
        options={"maxiter": 5},
    )
    np.testing.assert_allclose(points, steps_by_hand(np.zeros(2), 5), rtol=1e-13)
    assert isinstance(found, so.OptimizeResult)
    assert found.nit == 5


def test_scipy_hands_over_bounds_tolerance_and_callback():
    stops = []

    def callback(intermediate_result):
        stops.append(intermediate_result.fun)

    found = so.minimize(
        bowl,
        np.zeros(3),
        jac=bowl_der,
        method=METHOD,
        bounds=so.Bounds(-1, 1),
        tol=1e-3,
        callback=callback,
    )
    np.testing.assert_array_equal(found.x, np.ones(3))
    assert found.success
    assert len(stops) == found.nit


@pytest.mark.slow
def test_the_valley_of_rosenbrock():
    schedule = rmsjit.schedules.CosineDecay(0.05, 5000)
    method = rmsjit.scipy_method(rmsjit.RMSprop(schedule, rho=0.99))
    options = {"maxiter": 5000}
    found = so.minimize(so.rosen, np.zeros(4), jac=so.rosen_der, method=method, options=options)
    np.testing.assert_allclose(found.x, 1.0, atol=0.05)


def test_basin_hopping_uses_the_method():
    """A user of the interface: it minimises from many points, and compares results."""
    rng = np.random.default_rng(1)
    found = so.basinhopping(
        lambda x: np.cos(4 * x).sum() + np.sum(x**2),
        np.ones(2),
        niter=10,
        rng=rng,
        minimizer_kwargs={
            "method": METHOD,
            "jac": lambda x: -4 * np.sin(4 * x) + 2 * x,
            "options": {"maxiter": 200},
        },
    )
    np.testing.assert_allclose(np.abs(found.x), 0.6959, atol=0.05)


def test_what_the_method_refuses():
    with pytest.raises(ValueError, match="constraints must be empty"):
        so.minimize(
            bowl, [0.0], method=METHOD, constraints={"type": "eq", "fun": lambda x: x.sum()}
        )
    with pytest.raises(TypeError, match="unexpected keyword argument 'maxfun'"):
        so.minimize(bowl, [0.0], method=METHOD, options={"maxfun": 3})
    with pytest.raises(TypeError, match="optimizer must be"):
        rmsjit.scipy_method("RMSprop")


@pytest.mark.live
def test_statsmodels_fits_with_the_method():
    """It hands over gradient, Hessian and options; its own Newton iterations give the truth."""
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(500), rng.normal(size=(500, 2))])
    y = rng.random(500) < 1 / (1 + np.exp(-x @ [0.3, -1.0, 0.7]))
    model = api.Logit(y.astype(float), x)
    method = rmsjit.scipy_method(rmsjit.RMSprop(rmsjit.schedules.CosineDecay(0.05, 500)))
    fitted = model.fit(method="minimize", min_method=method, maxiter=1000, disp=0)
    assert fitted.mle_retvals["converged"]
    np.testing.assert_allclose(fitted.params, model.fit(disp=0).params, atol=1e-3)


def test_disp_prints_the_end(capsys):
    so.minimize(bowl, [0.0], method=METHOD, options={"maxiter": 1, "disp": True})
    assert capsys.readouterr().out.startswith("The maximum number of iterations was reached. 1 it")


# --- without scipy --------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_without_scipy():
    code = """
import sys
sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
import numpy as np, rmsjit
seen = []
found = rmsjit.optimize(
    lambda x: (np.sum(x * x), 2 * x), [1.0], True, maxiter=1,
    callback=lambda intermediate_result: seen.append(intermediate_result.fun),
)
print(type(found).__name__, found.nit, found["success"], len(seen))
"""
    assert run_python(code).split() == ["Result", "1", "False", "1"]


def test_a_result_is_a_dict_with_attributes():
    found = Result(x=1, fun=2.0)
    found.nit = 3
    assert found["nit"] == 3
    assert repr(found) == "  x: 1\nfun: 2.0\nnit: 3"
    assert dir(found) == ["fun", "nit", "x"]
    del found.nit
    with pytest.raises(AttributeError, match="there is no 'nit' in x, fun"):
        found.nit  # noqa: B018
