"""Variables of half types: float32 master weights, and how the variable is rounded from them."""

import copy
import json
import pickle

import numpy as np
import pytest

import rmsjit
from rmsjit import Form, IndexedSlices
from rmsjit.arrays.dtypes import dtype_named
from strategies import run_python

HALVES = {name: dtype_named(name) for name in ("float16", "bfloat16")}
every_half = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
every_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"momentum": 0.9, "centered": True},
    "decay": {"weight_decay": 0.1},
    "coupled": {"weight_decay": 0.1, "decoupled_weight_decay": False},
    "clipped": {"clipvalue": 0.5},
    "norm": {"global_clipnorm": 1.0},
    "clip_weights": {"clip_weights": 0.7},
    "average": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    "ascent": {"maximize": True, "grad_scale": 0.5},
    "torch": {"form": Form.with_slots("rms", "momentum", learning_rate="outside"), "momentum": 0.9},
}
# Every setting for one dtype and rounding; for the others those that differ in their slots.
CASES = [("float16", "nearest", name) for name in SETTINGS]
CASES += [("bfloat16", "nearest", "centered"), ("bfloat16", "stochastic", "momentum")]
CASES += [("float16", "stochastic", "average")]
STEPS = 6


def normal(shape, dtype, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def dense_gradients(shape, dtype, steps=STEPS):
    return [normal(shape, dtype, 10 + step) for step in range(steps)]


def train(opt, variable, gradients):
    for gradient in gradients:
        opt.apply_gradients([(gradient, variable)])


def widened(gradient):
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values.astype("f4"), gradient.indices, gradient.dense_shape)
    return gradient.astype("f4")


def master_of(opt, variable):
    return opt.get_slot(variable, "master").numpy()


def has_neighbours(variable, exact):
    """Whether each element is one of the two numbers between which the exact one lies."""
    exact = exact.astype("f8")
    nearest = exact.astype(variable.dtype)
    down = np.where(nearest.astype("f8") > exact, next_to(nearest, -np.inf), nearest)
    up = np.where(nearest.astype("f8") < exact, next_to(nearest, np.inf), nearest)
    return ((variable == down) | (variable == up)).all()


def next_to(array, direction):
    return np.nextafter(array, array.dtype.type(direction))


# --- master weights -------------------------------------------------------------------------


@pytest.mark.parametrize(("half", "rounding", "name"), CASES)
def test_master_weights_are_a_run_in_float32(half, rounding, name):
    """Bit for bit, slots as well, if the gradients are the same."""
    dtype, settings = HALVES[half], SETTINGS[name]
    w, gradients = normal((7, 13), dtype, 0), dense_gradients((7, 13), dtype)
    wide = w.astype("f4")
    opt = rmsjit.RMSprop(0.05, master_weights=True, rounding=rounding, **settings)
    twin = rmsjit.RMSprop(0.05, **settings)
    train(opt, w, gradients)
    train(twin, wide, map(widened, gradients))
    np.testing.assert_array_equal(master_of(opt, w), wide)
    for name in twin.get_slot_names():
        np.testing.assert_array_equal(opt.get_slot(w, name), twin.get_slot(wide, name))
        assert opt.get_slot(w, name).dtype == np.float32
    if rounding == "nearest":
        np.testing.assert_array_equal(w, wide.astype(dtype))
    else:
        assert has_neighbours(w, wide)
        assert (w != wide.astype(dtype)).any()


def test_accumulated_gradients_are_rounded_once():
    w, gradients = normal(40, "f2", 0), dense_gradients(40, "f2")
    wide = w.astype("f4")
    opt = rmsjit.RMSprop(0.05, master_weights=True, gradient_accumulation_steps=2)
    train(opt, w, gradients)
    pairs = zip(map(widened, gradients[::2]), map(widened, gradients[1::2]), strict=True)
    means = [(first + second) / np.float32(2) for first, second in pairs]
    train(rmsjit.RMSprop(0.05), wide, [mean.astype("f2").astype("f4") for mean in means])
    np.testing.assert_array_equal(master_of(opt, w), wide)


@every_half
def test_the_face_of_tensorflow_1(dtype):
    w, gradients = normal(40, dtype, 0), dense_gradients(40, dtype)
    wide, step = w.astype("f4"), np.zeros((), np.int64)
    opt = rmsjit.train.RMSPropOptimizer(0.05, master_weights=True, rounding="stochastic")
    twin = rmsjit.train.RMSPropOptimizer(0.05)
    for gradient in gradients:
        opt.apply_gradients([(gradient, w)], global_step=step)
    train(twin, wide, map(widened, gradients))
    np.testing.assert_array_equal(master_of(opt, w), wide)
    assert "master_weights=True" in repr(opt)
    with pytest.raises(ValueError, match="pass a global_step, got None"):
        opt.apply_gradients([(gradients[0], w)])


@every_half
@pytest.mark.parametrize("sparse", ["rows", "exact"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_tables(dtype, sparse, order):
    table = np.asarray(normal((9, 5), dtype, 0), order=order)
    wide = np.array(table, "f4")
    settings = {"momentum": 0.9, "sparse": sparse}
    if sparse == "exact":
        settings |= {"weight_decay": 0.1}
    opt, twin = (rmsjit.RMSprop(0.05, master_weights=m, **settings) for m in (True, False))
    for step in range(STEPS):
        rows = np.array([step, 8, step, 3])
        gradient = IndexedSlices(normal((4, 5), dtype, step), rows)
        train(opt, table, [gradient])
        train(twin, wide, [widened(gradient)])
    np.testing.assert_allclose(master_of(opt, table), twin_value(twin, wide), rtol=1e-6)
    np.testing.assert_array_equal(table, master_of(opt, table).astype(dtype))


def twin_value(twin, wide):
    twin.sync(wide)
    return wide


@every_half
@every_rounding
def test_strided_variables(dtype, rounding):
    memory = normal((8, 12), dtype, 0)
    views = [memory[:, ::3], memory[::-1, 1::3].T]
    whole = [np.ascontiguousarray(view, dtype="f4") for view in views]
    opt = rmsjit.RMSprop(0.05, master_weights=True, rounding=rounding)
    twin = rmsjit.RMSprop(0.05)
    for step in range(STEPS):
        gradients = [normal(view.shape, dtype, step) for view in views]
        opt.apply_gradients(zip(gradients, views, strict=True))
        twin.apply_gradients(zip(map(widened, gradients), whole, strict=True))
    for view, wide in zip(views, whole, strict=True):
        np.testing.assert_array_equal(master_of(opt, view), wide)
        assert has_neighbours(view, wide)


def test_variables_of_other_dtypes_have_no_master():
    dtypes = ["float16", "float32", "float64", "complex64"]
    variables = [np.ones(5, dtype) for dtype in dtypes]
    others = [array.copy() for array in variables]
    opt = rmsjit.RMSprop(0.1, momentum=0.9, master_weights=True, rounding="stochastic")
    twin = rmsjit.RMSprop(0.1, momentum=0.9)
    for _ in range(3):
        opt.apply_gradients([(array.copy(), array) for array in variables])
        twin.apply_gradients([(array.copy(), array) for array in others])
    for array, other in zip(variables[1:], others[1:], strict=True):
        np.testing.assert_array_equal(array, other)
        assert opt.get_slot(array, "rms").dtype == array.dtype
        with pytest.raises(KeyError, match="no slot 'master'"):
            opt.get_slot(array, "master")
    assert [weight.shape for weight in opt.weights].count((5,)) == 2 * 4 + 1


@every_half
@every_rounding
def test_what_is_written_to_a_variable_counts(dtype, rounding):
    """Also if few elements change; all others keep the bits that the variable does not have."""
    w = normal(64, dtype, 0)
    opt = rmsjit.RMSprop(0.01, master_weights=True, rounding=rounding)
    gradients = dense_gradients(64, dtype, 4)
    train(opt, w, gradients[:3])
    before = master_of(opt, w).copy()
    w[10:20] = 3.0
    expected = np.where((np.arange(64) >= 10) & (np.arange(64) < 20), np.float32(3), before)
    train(opt, w, [np.zeros_like(w)])
    np.testing.assert_array_equal(master_of(opt, w), expected)
    assert (expected.astype(dtype) != expected).any()


def test_a_constraint_holds_for_master_weights():
    v = rmsjit.Variable(np.array([0.05, 1.0], "f2"), constraint=lambda w: np.maximum(w, 0))
    opt = rmsjit.RMSprop(0.1, rho=0.0, master_weights=True)
    for _ in range(2):
        opt.apply_gradients([(np.ones(2, "f2"), v)])
    opt.apply_gradients([(np.zeros(2, "f2"), v)])
    assert (v.numpy()[0], master_of(opt, v)[0]) == (0, 0)


def test_the_average_has_the_bits_of_the_master():
    w = normal(50, "f2", 0)
    opt = rmsjit.RMSprop(0.01, use_ema=True, ema_momentum=0.5, master_weights=True)
    train(opt, w, dense_gradients(50, "f2"))
    average = opt.get_slot(w, "average").numpy().copy()
    before = w.copy()
    with opt.averaged([w]):
        np.testing.assert_array_equal(w, average.astype("f2"))
    np.testing.assert_array_equal(w, before)
    opt.finalize_variable_values([w])
    np.testing.assert_array_equal(master_of(opt, w), average)
    np.testing.assert_array_equal(w, average.astype("f2"))


# --- rounding -------------------------------------------------------------------------------


def rounded(exact, dtype, copies, **settings):
    """Copies of numbers, rounded by a step that changes nothing else."""
    w = np.zeros((len(exact), copies), dtype)
    opt = rmsjit.RMSprop(0.0, master_weights=True, rounding="stochastic", **settings)
    opt.build([w])
    with np.errstate(over="ignore"):
        w[...] = np.asarray(exact, "f4")[:, None].astype(dtype)
    opt.get_slot(w, "master").array[...] = np.asarray(exact, "f4")[:, None]
    train(opt, w, [np.zeros_like(w)])
    return w


@every_half
@pytest.mark.parametrize("size", [1.0, 2.0**-14, 2.0**-22, 2.0**-27], ids="{:.0e}".format)
def test_the_mean_of_what_is_rounded_is_exact(dtype, size):
    """Also for the smallest numbers of float16, which have fewer bits."""
    copies = 20_000
    exact = normal(40, "f4", 5) * np.float32(size)
    w = rounded(exact, dtype, copies)
    assert has_neighbours(w, np.broadcast_to(exact[:, None], w.shape))
    spacing = np.abs(w.astype("f8").max(axis=1) - w.astype("f8").min(axis=1))
    errors = np.abs(w.astype("f8").mean(axis=1) - exact)
    assert (errors <= 5 * 0.5 * spacing / np.sqrt(copies) + 1e-4 * spacing).all()
    assert (spacing > 0).any()


@every_half
def test_what_needs_no_rounding_stays(dtype):
    exact = np.array([0, -0.0, 1, -1.5, 2.0**-14, 3 * 2.0**-24, np.inf, -np.inf, np.nan], "f4")
    w = rounded(exact, dtype, 50)
    np.testing.assert_array_equal(w.astype("f4"), np.repeat(exact[:, None], 50, axis=1))
    assert np.signbit(w[1].astype("f4")).all()


@every_half
@pytest.mark.parametrize("master", [False, True], ids=["alone", "master"])
def test_every_number_of_a_half_type_stays_itself(dtype, master):
    before = np.arange(1 << 16, dtype=np.uint16)
    w, infinity = before.view(dtype).copy(), np.array(np.inf, dtype).view(np.uint16)
    opt = rmsjit.RMSprop(0.0, master_weights=master)
    train(opt, w, [np.zeros_like(w)] * 2)
    after = w.view(np.uint16)
    is_nan = before & 0x7FFF > infinity
    np.testing.assert_array_equal(after[~is_nan], before[~is_nan])
    np.testing.assert_array_equal(after & 0x7FFF > infinity, is_nan)


NANS = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF], np.uint32).view("f4")


@every_half
@every_rounding
def test_no_payload_of_a_nan_becomes_a_number(dtype, rounding):
    """Rounding adds to the bits, which must not carry into the sign and beyond."""
    w = np.ones(4, dtype)
    opt = rmsjit.RMSprop(0.1, master_weights=True, rounding=rounding)
    train(opt, w, [np.zeros_like(w)])
    opt.get_slot(w, "master").array[...] = NANS
    w[...] = NANS
    train(opt, w, [np.zeros_like(w)])
    assert np.isnan(w.astype("f4")).all()
    assert np.isnan(master_of(opt, w)).all()
    w[...] = 0  # what somebody writes to the variable counts
    train(opt, w, [np.zeros_like(w)])
    assert not w.astype("f4").any()


BORDERS = np.array(
    [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F818001, 0x3F7F8000, 0x7F7F7FFF, 0x7F7F8000, 0x00008000]
    + [0x7F800000, 0x00800000, 0x00000001, 0x3F800000, 0x00018000, 0],
    np.uint32,
)


def half_numbers_about(master, dtype):
    """The nearest numbers, those beside them, those of the other sign, infinities and zero."""
    with np.errstate(over="ignore"):
        near = master.astype(dtype)
    bits = near.view(np.uint16)
    near_bits = [bits, bits + np.uint16(1), bits - np.uint16(1), bits ^ np.uint16(0x8000)]
    infinity = np.array(np.inf, dtype)
    others = [
        np.full_like(near, value) for value in (infinity, -infinity, dtype.type(1), dtype.type(0))
    ]
    return [part.view(dtype) for part in near_bits] + others


@every_half
@pytest.mark.parametrize("sign", [0, 0x80000000], ids=["above zero", "below zero"])
def test_what_is_written_counts_unless_it_is_the_nearest_number(dtype, sign):
    """Next to the master weight, half a unit away, on the other side of zero, infinite, NaN."""
    some = np.random.default_rng(0).integers(0, 0x7F800000, 300, np.uint32)
    master = np.concatenate([BORDERS, some, NANS.view(np.uint32) & 0x7FFFFFFF]) | np.uint32(sign)
    master = master.view("f4")
    written = np.concatenate(half_numbers_about(master, dtype))
    master = np.resize(master, written.size)
    with np.errstate(over="ignore", invalid="ignore"):
        value, nearest = written.astype("f4"), master.astype(dtype).astype("f4")
    opt = rmsjit.RMSprop(0.0, master_weights=True)
    opt.build([written])
    opt.get_slot(written, "master").array[...] = master
    train(opt, written, [np.zeros_like(written)])
    expected = np.where(nearest == value, master, value)
    # A zero of the other sign may count as the same number, or as written.
    is_clear = (value != 0) | (np.signbit(value) == np.signbit(master))
    np.testing.assert_array_equal(master_of(opt, written)[is_clear], expected[is_clear])


def test_a_nan_of_any_payload_stays_in_a_slot_of_a_half_type():
    w = np.ones(4, "f4")
    opt = rmsjit.RMSprop(0.1, form=Form((rmsjit.Slot("rms", dtype="bfloat16"),)))
    train(opt, w, [NANS])
    assert np.isnan(opt.get_slot(w, "rms").numpy().astype("f4")).all()


def test_a_number_in_range_does_not_become_infinite():
    w = rounded([65519.0, -65519.0, 65520.0], "f2", 200)
    assert (np.abs(w[:2]) == 65504).all()
    assert set(w[2].tolist()) <= {65504.0, np.inf}
    largest = np.float32(3.3895e38)  # is nearest to the largest finite bfloat16
    assert np.isfinite(rounded([largest], HALVES["bfloat16"], 200).astype("f4")).all()


@every_half
def test_small_steps_add_up_without_master_weights(dtype):
    """Steps of a 16th of the spacing are lost by nearest, and are right in the mean by chance."""
    spacing = float(np.nextafter(dtype.type(1), dtype.type(2))) - 1
    ends = {}
    for rounding in ("nearest", "stochastic"):
        w = np.ones(4000, dtype)
        opt = rmsjit.RMSprop(spacing / 16, rho=0.0, epsilon=1e-12, rounding=rounding)
        train(opt, w, [np.full_like(w, -1)] * 64)
        ends[rounding] = w.astype("f8")
    assert (ends["nearest"] == 1).all()
    mean = (ends["stochastic"].mean() - 1) / spacing
    assert abs(mean - 4) < 5 * 2 / np.sqrt(4000)


@every_half
@pytest.mark.parametrize("master", [False, True], ids=["alone", "master"])
def test_bits_do_not_depend_on_threads(dtype, master):
    ends = []
    for threads in (1, 2):
        w, small = normal(300_000, dtype, 0), normal((3, 5), dtype, 1)
        settings = {"master_weights": master, "rounding": "stochastic", "clipnorm": 1.0}
        opt = rmsjit.RMSprop(0.01, num_threads=threads, **settings)
        for step in range(2):
            pairs = [(normal(v.shape, dtype, step), v) for v in (small, w)]
            opt.apply_gradients(pairs)
        ends.append(w.tobytes() + small.tobytes())
    assert ends[0] == ends[1]


def runs_of(seeds, steps=3, **settings):
    found = []
    for seed in seeds:
        w = np.linspace(0.5, 1.5, 500).astype("f2")
        opt = rmsjit.RMSprop(0.01, rounding="stochastic", seed=seed, **settings)
        train(opt, w, dense_gradients(500, "f2", steps))
        found.append(w)
    return found


def test_a_seed_makes_a_run():
    first, again, other = runs_of([0, 0, 1])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


def test_bits_differ_between_steps_and_variables():
    """As random ones do: two that agree half of the time."""
    exact, ups = np.full((1, 2000), 1 + 2.0**-12, "f4"), []
    opt = rmsjit.RMSprop(0.0, master_weights=True, rounding="stochastic")
    variables = [np.ones((1, 2000), "f2") for _ in range(3)]
    opt.build(variables)
    for _ in range(3):
        for v in variables:
            opt.get_slot(v, "master").array[...] = 1 + 2.0**-11
            v[...] = 1
        opt.apply_gradients([(np.zeros_like(v), v) for v in variables])
        ups += [(v > exact).ravel() for v in variables]
    for k, one in enumerate(ups):
        assert 0.4 < one.mean() < 0.6
        assert all(0.4 < (one == other).mean() < 0.6 for other in ups[:k])


def test_a_variable_that_occurs_twice_gets_other_bits():
    w, opt = np.ones(4000, "f2"), rmsjit.RMSprop(2.0**-12, rho=0.0, rounding="stochastic")
    opt.apply_gradients([(np.full_like(w, -1), w), (np.full_like(w, -1), w)])
    steps = (w.astype("f8") - 1) * 2**10
    assert abs(steps.mean() - 0.5) < 0.05
    assert set(steps.tolist()) == {0, 1, 2}


# --- state ----------------------------------------------------------------------------------


def continued(how, opt, named, folder):
    """An optimizer and its variables that go on where others stopped."""
    if how == "pickle":
        return pickle.loads(pickle.dumps((opt, named)))
    if how == "copy":
        return copy.deepcopy((opt, named))
    path = folder / "run.npz"
    rmsjit.save(path, opt, named)
    return rmsjit.load(path)


@every_half
@every_rounding
@pytest.mark.parametrize("how", ["pickle", "copy", "file"])
def test_a_run_goes_on_bit_for_bit(dtype, rounding, how, tmp_path):
    named = {"w": normal((6, 4), dtype, 0), "b": normal(4, "f4", 1), "v": normal(3, dtype, 2)}
    opt = rmsjit.RMSprop(0.05, momentum=0.9, master_weights=True, rounding=rounding, seed=5)

    def step(opt, named, number):
        pairs = [(normal(v.shape, v.dtype, number), v) for v in named.values()]
        opt.apply_gradients(pairs)

    for number in range(3):
        step(opt, named, number)
    other, theirs = continued(how, opt, named, tmp_path)
    for number in range(3, 6):
        step(opt, named, number)
        step(other, theirs, number)
    for name, variable in named.items():
        np.testing.assert_array_equal(theirs[name], variable)
    for mine, ours in zip(other.weights, opt.weights, strict=True):
        np.testing.assert_array_equal(mine, ours)


def test_a_file_of_the_face_of_tensorflow_1(tmp_path):
    w, step = normal(40, "f2", 0), np.zeros((), np.int64)
    settings = {"master_weights": True, "rounding": "stochastic", "seed": 7}
    opt = rmsjit.train.RMSPropOptimizer(0.05, momentum=0.9, **settings)
    opt.apply_gradients([(normal(40, "f2", 1), w)], global_step=step)
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w, "step": step})
    other, named = rmsjit.load(tmp_path / "run.npz")
    for one, variable, count in ((opt, w, step), (other, named["w"], named["step"])):
        one.apply_gradients([(normal(40, "f2", 2), variable)], global_step=count)
    np.testing.assert_array_equal(named["w"], w)
    np.testing.assert_array_equal(master_of(other, named["w"]), master_of(opt, w))


def test_the_configuration():
    opt = rmsjit.RMSprop(0.1, momentum=0.9, master_weights=True, rounding="stochastic", seed=3)
    config = json.loads(json.dumps(opt.get_config()))
    assert "form" not in config
    again = rmsjit.RMSprop.from_config(config)
    assert (again.form, again.master_weights, again.rounding, again.seed) == (
        *(opt.form, True, "stochastic", 3),
    )
    plain = rmsjit.RMSprop()
    assert (plain.master_weights, plain.rounding, plain.seed) == (False, "nearest", 0)
    assert not {"master_weights", "rounding", "seed"} & plain.get_config().keys()


def test_a_momentum_that_is_set_later_is_as_wide(tmp_path):
    opt, w = rmsjit.RMSprop(0.1, master_weights=True), np.ones(4, "f2")
    train(opt, w, [w])
    opt.momentum = 0.9
    train(opt, w, [w])
    assert opt.get_slot(w, "momentum").dtype == np.float32
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    again, _ = rmsjit.load(tmp_path / "run.npz")
    assert again.form == opt.form


def test_a_checkpoint_without_master_weights_does_not_fit(tmp_path):
    opt, w = rmsjit.RMSprop(0.1), np.ones(4, "f2")
    train(opt, w, [w])
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    with pytest.raises(ValueError, match="slots: saved rms, here master"):
        rmsjit.load(tmp_path / "run.npz", rmsjit.RMSprop(0.1, master_weights=True), {"w": w})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"master_weights": 1}, TypeError, "master_weights must be True or False, got 1"),
        ({"rounding": "down"}, ValueError, "rounding must be"),
        ({"seed": 1.0}, TypeError, "seed must be an integer, got 1.0"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"rounding": "stochastic", "sparse": "exact"}, ValueError, "stochastic rounding depends"),
        ({"track_norms": 1}, TypeError, "track_norms must be True or False, got 1"),
        ({"use_ema": "yes"}, TypeError, "use_ema must be True or False, got 'yes'"),
    ],
)
def test_wrong_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        rmsjit.RMSprop(**settings)


@pytest.mark.parametrize("name", ["use_ema", "maximize", "grad_scale", "master_weights", "seed"])
def test_a_subclass_with_an_attribute_of_our_name_is_told(name):
    class Mine(rmsjit.RMSprop):
        def __init__(self):
            setattr(self, name, "mine")
            super().__init__()

    with pytest.raises(AttributeError, match=f"{name} .*an attribute that a subclass adds needs"):
        Mine()


# --- processors without instructions for float16 -------------------------------------------

CONVERSIONS = """
import numpy as np
from numba import njit
from rmsjit.kernels.scalars import float16_to_float32, float32_to_float16

@njit(error_model="numpy")
def convert(halves, floats, given, rounded):
    for i in range(halves.size):
        floats[i] = float16_to_float32(halves[i])
    for i in range(given.size):
        rounded[i] = float32_to_float16(given[i])

halves = np.arange(65536, dtype=np.uint16)
with np.errstate(all="ignore"):
    exact = halves.view(np.float16).astype(np.float32)
near = exact.view(np.uint32)[:, np.newaxis] + np.arange(-3, 4).astype(np.uint32)
between = near + np.uint32(0x1000)
others = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
given = np.concatenate([near.ravel(), between.ravel(), others]).view(np.float32)
floats, rounded = np.empty(65536, np.float32), np.empty(given.size, np.uint16)
convert(halves, floats, given, rounded)
with np.errstate(all="ignore"):
    nearest = given.astype(np.float16)
np.testing.assert_array_equal(floats, exact)
np.testing.assert_array_equal(rounded.view(np.float16), nearest)
np.testing.assert_array_equal(np.signbit(floats), np.signbit(exact))
"""
RUN = """
import numpy as np
import rmsjit

rng = np.random.default_rng(0)
w = rng.normal(size=1000).astype(np.float16)
optimizer = rmsjit.RMSprop(0.01, momentum=0.9, clipnorm=1.0)
for _ in range(3):
    optimizer.apply_gradients([(rng.normal(size=1000).astype(np.float16), w)])
print(w.tobytes().hex())
"""


@pytest.mark.slow
def test_float16_on_any_processor():
    """LLVM would call functions there that do not exist, and end the process."""
    any_processor = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    run_python(CONVERSIONS, **any_processor)
    assert run_python(RUN, **any_processor) == run_python(RUN)
