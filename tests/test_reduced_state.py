"""Slots in bfloat16 beside wider variables, rounded stochastically."""

import copy
import json
import pickle

import numpy as np
import pytest

import rmsjit
from rmsjit import Form, IndexedSlices, RMSprop, Slot
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.train import RMSPropOptimizer

BFLOAT16 = dtype_named("bfloat16")
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"momentum": 0.9, "centered": True},
    "decay": {"weight_decay": 0.1},
    "norm": {"global_clipnorm": 1.0},
    "average": {"use_ema": True},
    "torch": {"form": Form.with_slots("rms", "momentum", learning_rate="outside"), "momentum": 0.9},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def normal(shape, seed, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def reduced(learning_rate=0.1, **settings):
    return RMSprop(learning_rate, **{"state_dtype": "bfloat16", **settings})


def slot(opt, variable, name="rms"):
    return opt.get_slot(variable, name).numpy()


def copied_state(source, variable, target, other):
    """Give an optimizer in float32 the state of a reduced one, which float32 holds exactly."""
    target.build([other])
    target.set_weights([np.asarray(w).astype(t.dtype) for w, t in pairs_of_weights(source, target)])


def pairs_of_weights(source, target):
    return zip(source.get_weights(), target.get_weights(), strict=True)


def is_between(rounded, exact):
    """Whether each bfloat16 number is a neighbour of an exact one, or equal to it."""
    bits = exact.view(np.uint32)
    down = (bits & 0xFFFF0000).view(np.float32)
    up = ((bits & 0xFFFF0000) + np.where(bits & 0xFFFF, 0x10000, 0)).astype(np.uint32)
    value = rounded.astype(np.float32)
    return (value == down) | (value == up.view(np.float32))


@every_setting
def test_a_step_is_that_of_float32_and_its_state_is_rounded(settings):
    wide, narrow = RMSprop(0.1, **settings), reduced(**settings)
    v = normal((9, 5), 0)
    w = v.copy()
    narrow.apply_gradients([(normal((9, 5), 1), v)])
    w[...] = v
    copied_state(narrow, v, wide, w)
    for step in range(3):
        gradient = normal((9, 5), 2 + step)
        narrow.apply_gradients([(gradient, v)])
        wide.apply_gradients([(gradient, w)])
        assert np.array_equal(v, w)
        names = [name for name in narrow.get_slot_names() if name != "average"]
        assert names
        for name in names:
            assert slot(narrow, v, name).dtype == BFLOAT16
            assert is_between(slot(narrow, v, name), slot(wide, w, name)).all()
        copied_state(narrow, v, wide, w)


def test_a_slot_each():
    opt = reduced(momentum=0.9, centered=True, state_dtype={"rms": "bfloat16", "mg": np.float64})
    v = np.ones(3, np.float32)
    opt.apply_gradients([(v.copy(), v)])
    assert [slot(opt, v, name).dtype for name in ("rms", "mg", "momentum")] == [
        BFLOAT16,
        np.float64,
        np.float32,
    ]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_variables_of_other_dtypes(dtype):
    v = np.ones(1000, dtype_named(dtype))
    opt = reduced(0.001)
    for _ in range(3):
        opt.apply_gradients([(np.ones_like(v), v)])
    rms = slot(opt, v)
    assert rms.dtype == BFLOAT16
    assert abs(rms.astype("f8").mean() - 0.271) < 1e-4


def test_beside_master_weights():
    v = np.ones(64, BFLOAT16)
    opt = reduced(0.001, master_weights=True)
    for _ in range(3):
        opt.apply_gradients([(np.ones_like(v), v)])
    assert slot(opt, v).dtype == BFLOAT16
    assert slot(opt, v, "master").dtype == np.float32
    wide, w = RMSprop(0.001), np.ones(64, np.float32)
    wide.apply_gradients([(np.ones_like(w), w)])
    twin, u = reduced(0.001, master_weights=True), np.ones(64, BFLOAT16)
    twin.apply_gradients([(np.ones_like(u), u)])
    assert np.array_equal(slot(twin, u, "master"), w)


# --- chance ---------------------------------------------------------------------------------


def stalled(rounding):
    """The mean of rms after many squares of 1, most steps of which are below half a unit."""
    form = Form((Slot("rms", dtype="bfloat16", zero_gradient="decay", rounding=rounding),))
    opt, v = RMSprop(0.0, rho=0.999, form=form), np.zeros(4096, np.float32)
    for _ in range(3000):
        opt.apply_gradients([(np.ones_like(v), v)])
    return slot(opt, v).astype("f8").mean()


def test_nearest_rounding_stalls_and_stochastic_rounding_does_not():
    exact = 1 - 0.999**3000
    assert stalled("nearest") < 0.6 * exact
    assert stalled("stochastic") == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("names", ["rms", "momentum", "mg"])
def test_the_mean_of_what_is_rounded_is_exact(names):
    size = 200_000
    narrow, wide = (
        RMSprop(0.1, momentum=0.9, centered=True, state_dtype=dtype) for dtype in ("bfloat16", None)
    )
    v, w = np.zeros(size, np.float32), np.zeros(size, np.float32)
    gradient = np.full(size, 0.731, np.float32)
    narrow.apply_gradients([(gradient, v)])
    wide.apply_gradients([(gradient, w)])
    exact = slot(wide, w, names)[0]
    unit = 2.0 ** (np.floor(np.log2(exact)) - 7)
    error = slot(narrow, v, names).astype("f8").mean() - exact
    assert abs(error) < 4 * unit / 2 / np.sqrt(size)


def test_slots_are_rounded_independently():
    """The bits of a slot tell nothing about those of another one, of other elements or steps."""
    size = 100_000
    opt, v = reduced(0.1, momentum=0.9, centered=True), np.zeros(size, np.float32)
    gradient = np.full(size, 0.731, np.float32)
    rounded_up = []
    for step in range(2):
        for name in ("rms", "mg", "momentum"):
            if step:
                opt.get_slot(v, name).array[...] = 0
        opt.apply_gradients([(gradient, v)])
        for name in ("rms", "mg", "momentum"):
            values = slot(opt, v, name).astype("f8")
            rounded_up.append(values > values.min())
    rounded_up.append(np.roll(rounded_up[0], 1))
    correlations = np.corrcoef(np.array(rounded_up, float))
    assert np.abs(correlations - np.eye(len(rounded_up))).max() < 5 / np.sqrt(size)


def run(seed=0, threads=None, steps=3, size=50_000):
    opt, v = reduced(momentum=0.9, seed=seed, num_threads=threads), np.zeros(size, np.float32)
    for step in range(steps):
        opt.apply_gradients([(normal(size, step), v)])
    return v, slot(opt, v), slot(opt, v, "momentum")


def test_bits_depend_on_the_seed_and_not_on_threads():
    one, two, other = run(threads=1, size=200_000), run(threads=2, size=200_000), run(1)
    assert all(map(np.array_equal, one, two))
    assert not np.array_equal(one[1][:50_000], other[1])


# --- tables, groups -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_named_rows(order):
    table, twin = (np.array(normal((6, 4), 0), order=order) for _ in range(2))
    narrow, wide = reduced(momentum=0.9), RMSprop(0.1, momentum=0.9)
    for step in range(2):
        slices = IndexedSlices(normal((3, 4), step), np.array([4, 1, 4]), (6, 4))
        narrow.apply_gradients([(slices, table)])
        wide.apply_gradients([(slices, twin)])
        if step == 0:
            assert np.array_equal(table, twin)
    assert np.array_equal(table[[0, 2, 3, 5]], twin[[0, 2, 3, 5]])
    assert np.allclose(table, twin, atol=1e-2)
    assert not slot(narrow, table)[[0, 2, 3, 5]].any()


def test_groups_share_the_seed_and_keep_their_numbers():
    opt, v, w = reduced(), np.ones(8, np.float32), np.ones(8, np.float32)
    opt.add_group([w], lr_multiplier=0.5)
    opt.apply_gradients([(np.ones(8, "f4"), v), (np.ones(8, "f4"), w)])
    assert np.allclose(1 - w, (1 - v) / 2, rtol=1e-6)


# --- state ----------------------------------------------------------------------------------


def continued(how, opt, variable, folder):
    if how == "pickle":
        return pickle.loads(pickle.dumps((opt, variable)))
    if how == "copy":
        return copy.deepcopy((opt, variable))
    path = folder / "run.npz"
    rmsjit.save(path, opt, {"v": variable})
    new, other = reduced(momentum=0.9, seed=3), np.zeros_like(variable)
    rmsjit.load(path, new, {"v": other})
    return new, other


@pytest.mark.parametrize("how", ["pickle", "copy", "file"])
def test_a_run_goes_on_bit_for_bit(how, tmp_path):
    opt, v = reduced(momentum=0.9, seed=3), normal(999, 0)
    for step in range(3):
        opt.apply_gradients([(normal(999, step), v)])
    other, w = continued(how, opt, v, tmp_path)
    for step in range(3, 6):
        for each, variable in ((opt, v), (other, w)):
            each.apply_gradients([(normal(999, step), variable)])
    assert np.array_equal(v, w)
    assert np.array_equal(slot(opt, v), slot(other, w))


def test_a_checkpoint_holds_the_reduced_state(tmp_path):
    sizes = []
    for dtype in (None, "bfloat16"):
        opt, v = RMSprop(0.1, state_dtype=dtype), np.ones(100_000, np.float32)
        opt.apply_gradients([(v.copy(), v)])
        rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
        sizes.append(sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()))
    assert sizes[0] - sizes[1] == pytest.approx(200_000, abs=200)


def test_other_state_dtypes_do_not_fit(tmp_path):
    opt, v = reduced(), np.ones(4, np.float32)
    opt.apply_gradients([(v.copy(), v)])
    rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
    with pytest.raises(ValueError, match="bfloat16"):
        rmsjit.load(tmp_path / "run.npz", RMSprop(0.1), {"v": v})


STATES = ["bfloat16", {"rms": "bfloat16"}, {"rms": "float64"}]


@pytest.mark.parametrize("state", STATES, ids=["all", "one", "wide"])
def test_the_configuration(state):
    opt = reduced(state_dtype=state, momentum=0.9)
    config = json.loads(json.dumps(opt.get_config()))
    assert RMSprop.from_config(config).form == opt.form


@pytest.mark.parametrize("state", STATES, ids=["all", "one", "wide"])
@pytest.mark.parametrize("make", [RMSprop, RMSPropOptimizer])
def test_a_checkpoint_makes_the_optimizer(make, state, tmp_path):
    opt, v = make(0.1, state_dtype=state, momentum=0.9), np.ones(4, np.float32)
    arguments = {} if make is RMSprop else {"global_step": np.zeros((), np.int64)}
    opt.apply_gradients([(v.copy(), v)], **arguments)
    rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
    loaded, variables = rmsjit.load(tmp_path / "run.npz")
    assert loaded.state_dtype == opt.state_dtype
    assert slot(loaded, variables["v"]).dtype == slot(opt, v).dtype
    assert np.array_equal(slot(loaded, variables["v"]), slot(opt, v))


def test_the_face_of_tensorflow_1():
    opt, v = RMSPropOptimizer(0.1, state_dtype="bfloat16", momentum=0.9), np.ones(5, np.float32)
    step = np.zeros((), np.int64)
    opt.apply_gradients([(np.ones_like(v), v)], global_step=step)
    assert slot(opt, v).dtype == slot(opt, v, "momentum").dtype == BFLOAT16
    assert opt.state_dtype == {"rms": "bfloat16", "momentum": "bfloat16"}
    with pytest.raises(ValueError, match="stochastic rounding needs the count of steps"):
        opt.apply_gradients([(np.ones_like(v), v)])


def test_a_momentum_that_is_set_later_is_reduced_too(tmp_path):
    opt, v = reduced(), np.ones(5, np.float32)
    opt.apply_gradients([(np.ones_like(v), v)])
    opt.momentum = 0.9
    opt.apply_gradients([(np.ones_like(v), v)])
    assert slot(opt, v, "momentum").dtype == BFLOAT16
    rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
    new, w = reduced(), np.ones(5, np.float32)
    new.momentum = 0.9
    rmsjit.load(tmp_path / "run.npz", new, {"v": w})
    assert np.array_equal(slot(new, w, "momentum"), slot(opt, v, "momentum"))


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"state_dtype": "float16"}, ValueError, "state_dtype must be one of bfloat16, 8bit, f"),
        ({"state_dtype": "half"}, ValueError, "got 'half'"),
        ({"state_dtype": 3}, TypeError, "state_dtype must be a dtype, got 3"),
        ({"state_dtype": {"mg": "bfloat16"}}, ValueError, "among momentum, rms, got 'mg'"),
        ({"state_dtype": {"rms": "int8"}}, ValueError, r"state_dtype\['rms'\] must be one of"),
        ({"sparse": "exact"}, ValueError, "stochastic rounding depends on every step"),
    ],
)
def test_wrong_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        reduced(**settings)


def test_complex_variables_are_refused():
    v = np.ones(3, np.complex64)
    with pytest.raises(
        TypeError, match="variable 0 must be real, since the slot 'rms' has the dtype bfloat16"
    ):
        reduced().apply_gradients([(v.copy(), v)])


def test_the_state_dtype_is_fixed():
    with pytest.raises(AttributeError):
        reduced().state_dtype = "float32"


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize(
    "state",
    [
        "bfloat16",
        "float64",
        {"momentum": "float64"},
        {"rms": "bfloat16"},
        {"rms": "float64"},
        {"rms": "8bit", "momentum": "bfloat16"},
    ],
)
def test_momentum_that_comes_later_has_the_dtype_that_was_asked_for(state, master, tmp_path):
    settings = {"state_dtype": state, "master_weights": master}
    late, early = RMSprop(0.1, **settings), RMSprop(0.1, momentum=0.9, **settings)
    late.momentum = 0.9
    assert {*late.form.slots} == {*early.form.slots}
    v = np.ones(4, np.float32)
    late.build([v])
    assert late.state_dtype == early.state_dtype
    rmsjit.save(tmp_path / "run.npz", late, {"v": v})
    loaded, _ = rmsjit.load(tmp_path / "run.npz")
    assert loaded.form == late.form
    assert type(late).from_config(late.get_config()).state_dtype == late.state_dtype
