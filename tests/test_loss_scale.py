"""Loss scales, fixed and dynamic: what they divide, when they change, and how they are kept."""

import copy
import json
import math
import pickle

import numpy as np
import pytest

import rmsjit
from pairs import every_pair
from rmsjit import DynamicLossScale, IndexedSlices

QUICK = {"initial": 8.0, "growth_interval": 2}


def normal(shape, dtype, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def scaled(gradient, scale):
    """A gradient of a scaled loss."""
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values * gradient.values.dtype.type(scale), gradient.indices)
    return gradient * gradient.dtype.type(scale)


def with_infinity(gradient):
    gradient = gradient.copy()
    gradient.flat[1] = np.inf
    return gradient


def followed(pattern, opt, variable):
    """The scale before each of some steps, whose gradients are finite or not."""
    scales = []
    for good in pattern:
        scales.append(opt.loss_scale)
        gradient = scaled(np.ones_like(variable), opt.loss_scale)
        opt.apply_gradients([(gradient if good else with_infinity(gradient), variable)])
    return [*scales, opt.loss_scale]


def expected_scales(pattern, initial, growth, backoff, interval):
    """The rules of PyTorch's scaler, which keeps the scale in float32."""
    scale, good, scales = np.float32(initial), 0, [initial]
    for fine in pattern:
        good = good + 1 if fine else 0
        if not fine:
            scale = np.float32(float(scale) * backoff)
        elif good == interval:
            grown, good = np.float32(float(scale) * growth), 0
            scale = grown if np.isfinite(grown) else scale
        scales.append(float(scale))
    return scales


PATTERNS = {
    "fine": [True] * 7,
    "never": [False] * 4,
    "mixed": np.random.default_rng(0).random(60) < 0.8,
}
ARGUMENTS = {
    "quick": (8.0, 2.0, 0.5, 2),
    "every step": (1.0, 4.0, 0.25, 1),
    "no powers of two": (1000.0, 1.7, 0.3, 3),
    "at the end of the range": (2.0**126, 2.0, 0.5, 1),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_rules(pattern, arguments):
    with np.errstate(over="ignore"):
        expected = expected_scales(pattern, *arguments)
    opt, w = rmsjit.RMSprop(0.01, loss_scale=DynamicLossScale(*arguments)), np.ones(3)
    assert followed(pattern, opt, w) == expected
    assert opt.skipped_steps == sum(not good for good in pattern)
    assert int(opt.iterations) == sum(pattern)


@pytest.mark.live
@pytest.mark.parametrize("arguments", list(ARGUMENTS.values())[:3], ids=list(ARGUMENTS)[:3])
def test_the_rules_of_torch(arguments):
    """A run with its scaler and its optimizer: the same scales and the same weights."""
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    theirs = torch.optim.RMSprop([parameter], lr=0.01, alpha=0.9)
    scaler = torch.amp.GradScaler("cpu", *arguments)
    w = np.ones(3)
    opt = rmsjit.forms.torch(0.01, alpha=0.9, loss_scale=DynamicLossScale(*arguments))
    for step, good in enumerate(PATTERNS["mixed"]):
        gradient = normal(3, "f8", step)
        scaler.scale(parameter.sum())  # which makes its scale
        assert scaler.get_scale() == opt.loss_scale
        given = scaled(gradient, opt.loss_scale)
        given = given if good else with_infinity(given)
        parameter.grad = torch.from_numpy(given.copy())
        scaler.step(theirs)
        scaler.update()
        opt.apply_gradients([(given, w)])
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-6)


SETTINGS = {
    "plain": {},
    "clipvalue": {"clipvalue": 0.3},
    "clipnorm": {"clipnorm": 0.5},
    "global": {"global_clipnorm": 0.7, "momentum": 0.9},
    "ascent": {"maximize": True, "grad_scale": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.5},
    "decay": {"weight_decay": 0.1},
    "accumulated": {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
    "summed": {"gradient_accumulation_steps": 3, "gradient_accumulation_reduction": "sum"},
}


SCALES = {"fixed": 1024.0, "dynamic": DynamicLossScale(**QUICK)}


@every_pair(name=SETTINGS, dtype=["float32", "float64", "float16"], scale=SCALES)
def test_a_scale_leaves_the_run_as_it_is(name, dtype, scale):
    """To the bit: a power of two changes no digit of what half types can hold."""
    settings, loss_scale = SETTINGS[name], SCALES[scale]
    w, table = normal((3, 4), dtype, 0), normal((6, 2), dtype, 1)
    others = [w.copy(), table.copy()]
    opt = rmsjit.RMSprop(0.05, loss_scale=loss_scale, **settings)
    twin = rmsjit.RMSprop(0.05, **settings)
    for step in range(6):
        rows = IndexedSlices(normal((3, 2), dtype, step), [5, step % 3, 5])
        gradients = [normal((3, 4), dtype, step), rows]
        pairs = zip([scaled(g, opt.loss_scale) for g in gradients], [w, table], strict=True)
        opt.apply_gradients(pairs)
        twin.apply_gradients(zip(gradients, others, strict=True))
    for mine, other in zip([w, table], others, strict=True):
        np.testing.assert_array_equal(mine, other)
    norms = opt.last_gradient_norm, twin.last_gradient_norm
    if None not in norms:
        assert math.isclose(*norms, rel_tol=1e-12)


def test_gradients_that_float16_can_not_hold():
    """At 1e-8, half of the smallest float16 is lost or doubled; scaled, it is exact."""
    w, wide = np.zeros(4, "f2"), np.zeros(4, "f4")
    opt = rmsjit.RMSprop(0.1, epsilon=1e-9, loss_scale=2.0**14, master_weights=True)
    twin = rmsjit.RMSprop(0.1, epsilon=1e-9)
    gradient = np.array([1e-8, -2e-8, 1e-9, 3e-8], "f4")
    for _ in range(3):
        given = (gradient * np.float32(2.0**14)).astype("f2")
        opt.apply_gradients([(given, w)])
        twin.apply_gradients([(given.astype("f4") / np.float32(2.0**14), wide)])
    assert (gradient.astype("f2") == 0).any()
    np.testing.assert_array_equal(opt.get_slot(w, "master").numpy(), wide)


def test_a_skipped_step_changes_nothing_but_the_scale():
    w = normal(5, "f2", 0)
    opt = rmsjit.RMSprop(0.1, momentum=0.9, master_weights=True, loss_scale="dynamic")
    opt.apply_gradients([(np.ones(5, "f2"), w)])
    before = [w.copy(), *opt.get_weights()]
    opt.apply_gradients([(with_infinity(np.ones(5, "f2")), w)])
    for now, then in zip([w, *opt.get_weights()], before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert (opt.loss_scale, opt.skipped_steps) == (2.0**15, 1)


def test_a_round_of_accumulation_is_skipped_as_a_whole():
    opt = rmsjit.RMSprop(0.1, gradient_accumulation_steps=2, loss_scale=DynamicLossScale(**QUICK))
    w = np.ones(3)
    for good in (True, False, True, True):
        opt.apply_gradients([(np.ones(3) if good else np.full(3, np.nan), w)])
    assert (int(opt.iterations), opt.skipped_steps, opt.loss_scale) == (1, 1, 4.0)


@pytest.mark.parametrize("how", ["function", "upstream", "tape", "updates"])
def test_minimize_scales_by_itself(how):
    v, other = rmsjit.Variable([1.0, 2.0]), rmsjit.Variable([1.0, 2.0])
    opt, twin = rmsjit.RMSprop(0.1, loss_scale=64.0), rmsjit.RMSprop(0.1)
    for one, variable in ((opt, v), (twin, other)):
        if how == "function":
            one.minimize(lambda x=variable: x * x, [variable])
        elif how == "upstream":
            one.minimize(lambda x=variable: x * x, [variable], grad_loss=[1.0, 0.5])
        elif how == "updates":
            one.get_updates(lambda x=variable: x * x, [variable])
        else:
            with rmsjit.GradientTape() as tape:
                loss = (variable * variable).sum()
            one.minimize(loss, [variable], tape=tape)
    np.testing.assert_array_equal(v.numpy(), other.numpy())
    assert opt.scale_loss(2.0) == 128.0
    assert twin.scale_loss(2.0) == 2.0


def test_two_optimizers_do_not_share_a_scale():
    scale = DynamicLossScale(initial=8.0, growth_interval=1)
    opt, other = rmsjit.RMSprop(loss_scale=scale), rmsjit.RMSprop(loss_scale=scale)
    opt.apply_gradients([(np.ones(2), np.ones(2))])
    assert (opt.loss_scale, other.loss_scale, scale.value) == (16.0, 8.0, 8.0)


@pytest.mark.parametrize("how", ["pickle", "copy", "file", "into"])
def test_a_run_goes_on_with_its_scale(how, tmp_path):
    opt, w = rmsjit.RMSprop(0.1, loss_scale=DynamicLossScale(8.0, growth_interval=3)), np.ones(4)
    followed([True, False, True, True], opt, w)
    if how == "pickle":
        other, v = pickle.loads(pickle.dumps((opt, w)))
    elif how == "copy":
        other, v = copy.deepcopy((opt, w))
    else:
        rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
        other, v = None, np.zeros(4)
        if how == "into":
            other = rmsjit.RMSprop(0.1, loss_scale=DynamicLossScale(growth_interval=3))
        other, named = rmsjit.load(tmp_path / "run.npz", other, {"w": v})
        v = named["w"]
    rest = [True, True, False]
    assert followed(rest, other, v) == followed(rest, opt, w) == [4.0, 8.0, 8.0, 4.0]
    np.testing.assert_array_equal(v, w)


@pytest.mark.parametrize("loss_scale", [None, 32.0])
def test_a_saved_scale_does_not_bind_an_optimizer_of_another_kind(loss_scale, tmp_path):
    opt, w = rmsjit.RMSprop(0.1, loss_scale="dynamic"), np.ones(4)
    opt.apply_gradients([(w, w)])
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    other, _ = rmsjit.load(tmp_path / "run.npz", rmsjit.RMSprop(loss_scale=loss_scale), {"w": w})
    assert other.loss_scale == loss_scale


@pytest.mark.parametrize("loss_scale", [128.0, "dynamic", DynamicLossScale(**QUICK)])
def test_the_configuration(loss_scale):
    opt = rmsjit.RMSprop(loss_scale=loss_scale)
    config = json.loads(json.dumps(opt.get_config()))
    again = rmsjit.RMSprop.from_config(config)
    assert again.get_config() == config
    assert again.loss_scale == opt.loss_scale
    assert "loss_scale" not in rmsjit.RMSprop().get_config()


def twice(pairs):
    return [(2 * gradient, variable) for gradient, variable in pairs]


class Hooked(rmsjit.RMSprop):
    def _transform_gradients(self, grads_and_vars):
        return grads_and_vars


@pytest.mark.parametrize("cls", [rmsjit.RMSprop, Hooked])
def test_hooks_are_refused(cls):
    settings = {} if cls is Hooked else {"gradient_transformers": [twice]}
    opt, w = cls(loss_scale=8.0, **settings), np.ones(2)
    with pytest.raises(NotImplementedError, match="can't be used with gradient_transformers"):
        opt.apply_gradients([(w, w)])
    assert (w == 1).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"loss_scale": 0.0}, ValueError, "loss_scale must be positive, got 0.0"),
        ({"loss_scale": "static"}, ValueError, 'loss_scale must be "dynamic" or a number'),
        ({"loss_scale": [1]}, TypeError, "loss_scale must be a number"),
        ({"loss_scale": "dynamic", "nonfinite": "raise"}, ValueError, "nonfinite must be"),
        ({"loss_scale": "dynamic", "nonfinite": "x"}, ValueError, "nonfinite must be"),
    ],
)
def test_wrong_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        rmsjit.RMSprop(**settings)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial": 0}, ValueError, "initial must be positive"),
        ({"initial": 1e39}, ValueError, "initial must be in the range of float32"),
        ({"initial": 1e-46}, ValueError, "initial must be in the range of float32"),
        ({"growth_factor": 1.0}, ValueError, "growth_factor must be above 1"),
        ({"backoff_factor": 1.0}, ValueError, "backoff_factor must be below 1"),
        ({"growth_interval": 0}, ValueError, "growth_interval must be at least 1"),
        ({"growth_interval": 2.0}, TypeError, "growth_interval must be an integer, got 2.0"),
        ({"growth_interval": None}, TypeError, "growth_interval must be an integer, got None"),
    ],
)
def test_wrong_scales(arguments, error, message):
    with pytest.raises(error, match=message):
        DynamicLossScale(**arguments)


def test_the_inverse_of_a_scale_never_overflows():
    scale = DynamicLossScale(initial=2.0**-126)
    for _ in range(4):
        scale.state = scale.after(taken=False)
    assert scale.value == 2.0**-127


def test_steps_go_on_after_any_number_of_skipped_ones():
    opt = rmsjit.RMSprop(0.1, nonfinite="skip", loss_scale="dynamic")
    v = np.ones(2, np.float32)
    for _ in range(400):
        opt.apply_gradients([(np.array([np.nan, 1.0], np.float32), v)])
    assert opt.skipped_steps == 400
    opt.apply_gradients([(np.full(2, opt.loss_scale, np.float32), v)])
    assert np.isfinite(v).all()
    assert (v < 1).all()
