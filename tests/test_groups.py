"""Groups of variables with settings of their own, compared with a NumPy reference."""

import copy
import gc
import json
import pickle
import warnings
import weakref

import numpy as np
import pytest

import rmsjit
from pairs import every_pair
from reference import dense_gradient, initial_slots, reference_sparse_step, reference_step
from rmsjit.checkpoints import save
from rmsjit.optimizers.base import Optimizer
from rmsjit.schedules import ExponentialDecay

STEPS = 20
TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "float16": 4e-3}
SHAPES = [(3, 4), (5,), (7, 2), (), (33,)]
BASE = {"lr": 0.01, "rho": 0.9, "momentum": 0.5, "eps": 1e-7, "weight_decay": 0.1}
WORDS = {
    "learning_rate": "lr",
    "rho": "rho",
    "momentum": "momentum",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
}


def keras(**more):
    numbers = {name: BASE[word] for name, word in WORDS.items()}
    return rmsjit.RMSprop(**{**numbers, **more})


def train(**more):
    numbers = {name: BASE[word] for name, word in WORDS.items()}
    numbers["decay"] = numbers.pop("rho")
    return rmsjit.train.RMSPropOptimizer(**{**numbers, **more})


MAKERS = {"keras": keras, "train": train}
STARTS = {"keras": 0.0, "train": 1.0}


class Twin:
    """The same training in NumPy: each variable has its numbers, None for one that is frozen."""

    def __init__(self, variables, rms_start=0.0, kind="subtracted"):
        self.values = [np.array(v) for v in variables]
        names = ("rms", "momentum")
        self.slots = [initial_slots(v, names, rms_start) for v in self.values]
        self.kind = kind

    def step(self, gradients, settings):
        for k, (gradient, own) in enumerate(zip(gradients, settings, strict=True)):
            if own is None:
                continue
            update, arguments = reference_step, (gradient,)
            if isinstance(gradient, rmsjit.IndexedSlices):
                update, arguments = reference_sparse_step, (gradient.values, gradient.indices)
            dtype = self.values[k].dtype
            self.values[k], self.slots[k] = update(
                self.values[k],
                *arguments,
                self.slots[k],
                **{**BASE, **own},
                eps_inside=True,
                decay_kind=self.kind,
                compute_dtype=np.float32 if dtype == np.float16 else dtype,
            )


def start(dtype="float64", shapes=SHAPES):
    rng = np.random.default_rng(3)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def gradients_of(step, variables):
    rng = np.random.default_rng([step, 7])
    return [np.asarray(rng.standard_normal(v.shape), v.dtype) for v in variables]


def assert_near(variables, twin, rtol=1e-13):
    for got, wanted in zip(variables, twin.values, strict=True):
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=rtol, atol=rtol)


def trained(opt, variables, twin, settings, steps=STEPS, rtol=1e-13):
    for step in range(steps):
        gradients = gradients_of(step, variables)
        opt.apply_gradients(zip(gradients, variables, strict=True))
        twin.step(gradients, settings(step) if callable(settings) else settings)
    assert_near(variables, twin, rtol)


@every_pair(
    given=[
        {"learning_rate": 0.1},
        {"weight_decay": 0.0},
        {"weight_decay": 0.5, "learning_rate": 0.002},
        {"rho": 0.5},
        {"momentum": 0.0},
        {"momentum": 0.9, "rho": 0.99},
        {"epsilon": 1e-2},
    ],
    dtype=TOLERANCE,
    name=MAKERS,
)
def test_a_group_has_its_own_numbers(name, dtype, given):
    variables = start(dtype)
    opt, twin = MAKERS[name](), Twin(variables, STARTS[name])
    opt.add_group([variables[1], variables[3]], **given)
    own = {WORDS[setting]: value for setting, value in given.items()}
    trained(opt, variables, twin, [{}, own, {}, own, {}], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", MAKERS)
def test_many_groups_are_one_call_of_a_kernel(name, loaded):
    variables = start()
    opt, twin = MAKERS[name](), Twin(variables, STARTS[name])
    rates = [0.1 / (k + 1) for k in range(4)]
    for variable, rate in zip(variables, rates, strict=False):
        opt.add_group([variable], learning_rate=rate)
    trained(opt, variables, twin, [*({"lr": rate} for rate in rates), {}])
    assert len(loaded) == 1


@pytest.mark.parametrize("given", [0.25, lambda: 0.25], ids=["number", "function"])
@pytest.mark.parametrize("own", [None, 0.4], ids=["optimizer's rate", "own rate"])
def test_a_multiplier_scales_the_rate(given, own):
    variables = start()
    opt, twin = keras(), Twin(variables)
    opt.add_group([variables[0]], lr_multiplier=given, learning_rate=own)
    trained(opt, variables, twin, [{"lr": 0.25 * (own or 0.01)}, {}, {}, {}, {}])


def test_rates_of_groups_are_schedules_and_functions():
    variables, calls = start(), []
    opt, twin = keras(decay=0.5), Twin(variables)

    def rate():
        calls.append(len(calls))
        return 0.01 * len(calls)

    opt.add_group([variables[0]], learning_rate=ExponentialDecay(0.1, 3, 0.5))
    opt.add_group([variables[1]], learning_rate=rate, momentum=lambda: 0.25)

    def settings(step):
        damped = 1 + 0.5 * step
        return [
            {"lr": 0.1 * 0.5 ** (step / 3) / damped},
            {"lr": 0.01 * (step + 1) / damped, "momentum": 0.25},
            *[{"lr": 0.01 / damped}] * 3,
        ]

    trained(opt, variables, twin, settings)
    assert calls == list(range(STEPS))


def test_a_function_of_the_optimizer_is_called_once_for_all_groups():
    variables, calls = start(), []
    opt = keras(learning_rate=lambda: calls.append(1) or 0.1)
    for variable in variables[:3]:
        opt.add_group([variable], momentum=0.0)
    opt.apply_gradients(zip(variables, variables, strict=True))
    assert len(calls) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_a_frozen_variable_keeps_its_slots_and_goes_on(name):
    variables = start()
    opt, twin = MAKERS[name](), Twin(variables, STARTS[name])
    group = opt.add_group([variables[0], variables[4]])
    for step in range(STEPS):
        group.frozen = step % 5 in (2, 3)
        gradients = gradients_of(step, variables)
        opt.apply_gradients(zip(gradients, variables, strict=True))
        own = None if group.frozen else {}
        twin.step(gradients, [own, {}, {}, {}, own])
        assert_near(variables, twin)
    for variable, slots in zip(variables, twin.slots, strict=True):
        np.testing.assert_allclose(opt.get_slot(variable, "rms").numpy(), slots["rms"], rtol=1e-12)


def test_a_frozen_variable_does_not_count_for_a_global_norm():
    w, frozen = np.zeros(2), np.zeros(2)
    opt = rmsjit.RMSprop(0.1, momentum=0.5, global_clipnorm=1.0)
    opt.add_group([frozen], frozen=True)
    opt.apply_gradients([(np.array([0.6, 0.0]), w), (np.array([1e6, np.nan]), frozen)])
    wanted, _ = reference_step(
        np.zeros(2),
        np.array([0.6, 0.0]),
        initial_slots(np.zeros(2), ("rms", "momentum")),
        lr=0.1,
        rho=0.9,
        momentum=0.5,
        eps=1e-7,
        eps_inside=True,
        compute_dtype=np.float64,
    )
    np.testing.assert_allclose(w, wanted, rtol=1e-14)
    assert not frozen.any()


def test_a_frozen_variable_needs_no_gradient():
    w, frozen = np.ones(2), np.ones(2)
    opt = keras()
    opt.add_group([frozen], frozen=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            opt.apply_gradients([(w, w), (None, frozen)])


def test_a_step_of_frozen_variables_alone_counts():
    w = np.ones(2)
    opt = keras()
    opt.add_group([w], frozen=True)
    assert opt.apply_gradients([(w, w)]).numpy() == 1
    assert (w == 1).all()


# --- which variables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*/bias", [1, 3]),
        ("encoder/*", [0, 1]),
        ("*", [0, 1, 2, 3]),
        ("encoder/bias", [1]),
        (["*r/kernel"], [0, 2]),
        (["encoder/kernel", "*/bias"], [0, 1, 3]),
        ("Encoder/*", []),
        ("bias", []),
    ],
)
def test_a_pattern_matches_names(pattern, matched):
    names = ["encoder/kernel", "encoder/bias", "decoder/kernel", "decoder/bias"]
    variables = [rmsjit.Variable(np.ones(2), name=name) for name in names]
    plain = np.ones(2)
    opt = keras()
    opt.add_group(pattern, frozen=True)
    opt.apply_gradients([(np.ones(2), v) for v in [*variables, plain]])
    assert [k for k, v in enumerate(variables) if (v.numpy() == 1).all()] == matched
    assert (plain != 1).all()


def test_the_last_group_counts():
    w = rmsjit.Variable(np.ones(2), name="w")
    opt, twin = keras(), Twin([w.numpy()])
    opt.add_group([w], learning_rate=0.5)
    opt.add_group("w", learning_rate=0.25)
    trained(opt, [w], twin, [{"lr": 0.25}])
    opt.add_group([w.array], momentum=0.0)
    trained(opt, [w], twin, [{"momentum": 0.0}])


@pytest.mark.parametrize("view", [lambda w: w, lambda w: w[...], lambda w: w.reshape(-1)])
def test_a_variable_is_its_memory(view):
    w = start(shapes=[(3, 4)])[0]
    opt, twin = keras(), Twin([w])
    opt.add_group([view(w)], learning_rate=0.5)
    for step in range(3):
        gradients = gradients_of(step, [w])
        opt.apply_gradients([(gradients[0].reshape(-1), w.reshape(-1))])
        twin.step(gradients, [{"lr": 0.5}])
        assert_near([w], twin)


def test_a_known_variable_can_be_given_later_and_by_number():
    variables = start()
    opt, twin = keras(), Twin(variables)
    trained(opt, variables, twin, [{}] * 5, steps=3)
    opt.add_group([variables[2]], rho=0.5)
    opt.add_group([4, 0], rho=0.25)
    trained(opt, variables, twin, [{"rho": 0.25}, {}, {"rho": 0.5}, {}, {"rho": 0.25}], steps=3)


@pytest.mark.parametrize("sort", ["strided", "fortran", "twice"])
def test_memory_of_any_kind(sort):
    base = np.ones((6, 6))
    w = {"strided": base[::2, ::3], "fortran": base.T, "twice": base}[sort]
    opt, twin = keras(), Twin([w])
    opt.add_group([w], learning_rate=0.5, weight_decay=0.0)
    own = {"lr": 0.5, "weight_decay": 0.0}
    for step in range(5):
        for_twin = gradients_of(step, [w])
        pairs = [(for_twin[0], w)] * (2 if sort == "twice" else 1)
        opt.apply_gradients(pairs)
        for _ in pairs:
            twin.step(for_twin, [own])
    assert_near([w], twin)


def test_many_threads_give_the_same_bits(always_parallel):
    shapes = [(5000,), (70, 900), (3,)]
    ones = []
    for threads in (1, 4):
        variables = start("float32", shapes)
        opt = keras(num_threads=threads)
        opt.add_group([variables[1]], learning_rate=0.5, weight_decay=0.0)
        for step in range(3):
            opt.apply_gradients(zip(gradients_of(step, variables), variables, strict=True))
        ones.append([v.tobytes() for v in variables])
    assert ones[0] == ones[1]


def test_state_follows_to_other_memory():
    w = start()[0]
    opt, twin = keras(), Twin([w])
    opt.add_group([w], learning_rate=0.5)
    trained(opt, [w], twin, [{"lr": 0.5}], steps=2)
    moved = w.copy()
    opt.rebind(w, moved)
    trained(opt, [moved], twin, [{"lr": 0.5}], steps=2)
    longer = np.concatenate([moved, np.ones((1, 4))])
    opt.resize_rows(moved, longer)
    opt.apply_gradients([(np.zeros_like(longer), longer)])
    assert opt.groups[0].learning_rate == 0.5
    assert opt._store.grouping.row_of(opt._store.find(longer)) == 1


# --- tables ---------------------------------------------------------------------------------


def rows_of(step, table):
    rng = np.random.default_rng([step, 11])
    indices = rng.integers(0, len(table), 4)
    return rmsjit.IndexedSlices(rng.standard_normal((4, table.shape[1])), indices)


def test_named_rows_of_a_table_have_the_numbers_of_its_group():
    tables = start(shapes=[(9, 3), (9, 3)])
    opt, twin = keras(), Twin(tables)
    opt.add_group([tables[1]], lr_multiplier=2.0, weight_decay=0.0)
    for step in range(STEPS):
        gradients = [rows_of(step, table) for table in tables]
        opt.apply_gradients(zip(gradients, tables, strict=True))
        twin.step(gradients, [{}, {"lr": 0.02, "weight_decay": 0.0}])
    assert_near(tables, twin)


def test_rows_that_catch_up_have_the_numbers_of_their_group():
    """Each step is one with a dense gradient of zeros, whatever the group was at that time."""
    tables = start(shapes=[(9, 3), (9, 3)])
    opt, twin = keras(sparse="exact"), Twin(tables)
    group = opt.add_group([tables[1]], lr_multiplier=2.0)
    for step in range(STEPS):
        group.weight_decay = 0.5 if step % 3 else 0.0
        group.momentum = 0.25 if step % 2 else None
        group.frozen = step in (7, 8)
        gradients = [rows_of(step, table) for table in tables]
        opt.apply_gradients(zip(gradients, tables, strict=True))
        whole = [dense_gradient(g.values, g.indices, (9, 3), np.float64) for g in gradients]
        own = {"lr": 0.02, "weight_decay": group.weight_decay, "momentum": group.momentum or 0.5}
        twin.step(whole, [{}, None if group.frozen else own])
    opt.sync()
    assert_near(tables, twin, 1e-12)


# --- settings of the whole optimizer --------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("decoupled", [True, False])
def test_weight_decay(name, decoupled):
    variables = start()
    opt = MAKERS[name](decoupled_weight_decay=decoupled)
    twin = Twin(variables, STARTS[name], "subtracted" if decoupled else "coupled")
    opt.add_group([variables[1]], weight_decay=0.0)
    trained(opt, variables, twin, [{}, {"weight_decay": 0.0}, {}, {}, {}])


@pytest.mark.parametrize("name", MAKERS)
def test_weights_are_clipped(name):
    variables = start()
    opt, twin = MAKERS[name](clip_weights=0.5), Twin(variables, STARTS[name])
    trained(opt, variables, twin, [{"clip_weights": 0.5}] * 5)


@pytest.mark.parametrize("bounds", [{}, {"clipvalue": 0.5}, {"clipnorm": 0.5}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.125, 4.0])
def test_maximize_and_grad_scale_change_gradients_first(bounds, scale):
    ours, theirs = start(), start()
    opt = keras(maximize=True, grad_scale=scale, **bounds)
    plain = keras(**bounds)
    for step in range(STEPS):
        gradients = gradients_of(step, ours)
        opt.apply_gradients(zip(gradients, ours, strict=True))
        plain.apply_gradients([(-scale * g, v) for g, v in zip(gradients, theirs, strict=True)])
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


@pytest.mark.parametrize("name", MAKERS)
def test_ascent_is_descent_of_the_negative(name):
    ours, theirs = start(), start()
    ascending, descending = MAKERS[name](maximize=True), MAKERS[name]()
    for step in range(5):
        gradients = gradients_of(step, ours)
        ascending.apply_gradients(zip(gradients, ours, strict=True))
        descending.apply_gradients([(-g, v) for g, v in zip(gradients, theirs, strict=True)])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


def test_a_transformer_sees_scaled_gradients():
    seen, w = [], np.ones(2)
    opt = keras(grad_scale=0.5, clipvalue=1.0)
    opt.gradient_transformers = [lambda pairs: seen.extend(g.copy() for g, _ in pairs) or pairs]
    opt.apply_gradients([(np.array([1.0, 8.0]), w)])
    np.testing.assert_array_equal(seen, [[0.5, 1.0]])


def test_the_scale_of_gradients_can_be_set():
    ours, theirs = np.ones(3), np.ones(3)
    opt, plain = keras(maximize=True), keras()
    for scale in (1.0, 0.5, 0.25):
        opt.grad_scale = scale
        assert (opt.grad_scale, opt.maximize) == (scale, True)
        opt.apply_gradients([(np.arange(3.0), ours)])
        plain.apply_gradients([(-scale * np.arange(3.0), theirs)])
    assert ours.tobytes() == theirs.tobytes()


# --- configurations and copies --------------------------------------------------------------


def copied(opt, variables):
    return copy.deepcopy((opt, variables))


def pickled(opt, variables):
    return pickle.loads(pickle.dumps((opt, variables)))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("copied", [copied, pickled])
def test_copies_have_groups_of_their_own(name, copied):
    variables = start()
    opt = MAKERS[name]()
    opt.add_group([variables[0]], learning_rate=0.5)
    opt.apply_gradients(zip(gradients_of(0, variables), variables, strict=True))
    other, theirs = copied(opt, variables)
    other.apply_gradients(zip(gradients_of(1, theirs), theirs, strict=True))
    opt.apply_gradients(zip(gradients_of(1, variables), variables, strict=True))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(variables, theirs, strict=True))
    other.groups[0].frozen = True
    other.groups[0].learning_rate = 0.25
    before = theirs[0].copy()
    other.apply_gradients(zip(gradients_of(2, theirs), theirs, strict=True))
    assert (before == theirs[0]).all()
    assert (opt.groups[0].frozen, opt.groups[0].learning_rate) == (False, 0.5)


@pytest.mark.parametrize("copied", [copied, pickled])
@pytest.mark.parametrize("steps", [0, 1])
def test_copies_do_not_warn_of_groups_that_they_use(copied, steps):
    w, v = np.ones(3), np.ones(2)
    opt = rmsjit.RMSprop(0.1)
    opt.add_group([w], lr_multiplier=0.1)
    for _ in range(steps):
        opt.apply_gradients([(np.ones(3), w), (np.ones(2), v)])
    other, (w, v) = copied(opt, [w, v])
    for _ in range(3):
        other.apply_gradients([(np.ones(3), w), (np.ones(2), v)])


def test_a_configuration_has_groups_by_pattern_and_number():
    variables = start()
    opt = keras(maximize=True, grad_scale=0.5)
    assert "groups" not in opt.get_config()
    opt.build(variables)
    opt.add_group([variables[3], "*/bias", variables[1]], lr_multiplier=0.5, frozen=True)
    opt.add_group([variables[0]], learning_rate=ExponentialDecay(0.1, 3, 0.5))
    config = opt.get_config()
    assert config["groups"][0] == {
        "variables": ["*/bias", 1, 3],
        "lr_multiplier": 0.5,
        "frozen": True,
    }
    other, theirs = rmsjit.RMSprop.from_config(config), start()
    assert other.get_config() == config
    for step in range(3):
        for one, own in ((opt, variables), (other, theirs)):
            one.apply_gradients(zip(gradients_of(step, own), own, strict=True))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(variables, theirs, strict=True))
    assert other.get_config() == config


def test_a_configuration_needs_numbers_of_variables():
    w = np.ones(2)
    opt = keras()
    opt.add_group([w], frozen=True)
    with pytest.raises(TypeError, match="needs slots of Variable"):
        opt.get_config()
    opt.build([w])
    assert opt.get_config()["groups"] == [{"variables": [0], "frozen": True}]


@pytest.mark.parametrize("name", MAKERS)
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    variables = [*start(), rmsjit.Variable(np.ones(2), name="head/bias")]
    named = {f"v{k}": v for k, v in enumerate(variables)}
    opt = MAKERS[name](maximize=True, clip_weights=2.0)
    opt.add_group([variables[0]], learning_rate=0.5, weight_decay=0.0)
    opt.add_group("*/bias", momentum=0.0)
    opt.add_group([variables[2]], frozen=True)
    opt.apply_gradients(zip(gradients_of(0, variables), variables, strict=True))
    path = tmp_path / "run.npz"
    rmsjit.save(path, opt, named)
    made, theirs = rmsjit.load(path)
    again = MAKERS[name](maximize=True, clip_weights=2.0)
    own = {k: np.zeros_like(v) for k, v in theirs.items()}
    again.add_group([own["v0"]], learning_rate=0.5, weight_decay=0.0)
    again.add_group([own["v5"]], momentum=0.0)
    again.add_group([own["v2"]], frozen=True)
    rmsjit.load(path, again, own)
    for step in (1, 2):
        for one, held in ((opt, variables), (made, theirs.values()), (again, own.values())):
            held = list(held)
            one.apply_gradients(zip(gradients_of(step, held), held, strict=True))
    for wanted, one, other in zip(variables, theirs.values(), own.values(), strict=True):
        assert np.asarray(wanted).tobytes() == one.tobytes() == other.tobytes()
    assert made.groups[2].frozen


@pytest.mark.parametrize("members", [None, ["b"], ["a", "b"]])
def test_a_checkpoint_of_other_groups_is_refused(members, tmp_path):
    variables = {"a": np.ones(2), "b": np.ones(2)}
    opt, other = keras(), keras()
    opt.add_group([variables["a"]], frozen=True)
    opt.build(list(variables.values()))
    rmsjit.save(tmp_path / "run.npz", opt, variables)
    theirs = {name: np.zeros(2) for name in variables}
    if members is not None:
        other.add_group([theirs[name] for name in members])
    with pytest.raises(ValueError, match=r"groups of variables: saved \('a'\), here"):
        rmsjit.load(tmp_path / "run.npz", other, theirs)
    assert not theirs["a"].any()


@pytest.mark.parametrize(
    "change",
    [
        {"patterns": "*/bias"},
        {"variables": ["a", "a"]},
        {"variables": ["stranger"]},
        {"variables": [0]},
        {"settings": {"rho": "x"}},
        {"settings": {"frozen": 1}},
        {"settings": {"nesterov": 1.0}},
        {"more": 1},
    ],
    ids=str,
)
def test_damaged_groups_are_refused(change, monkeypatch, tmp_path):
    variables, opt = {"a": np.ones(2)}, keras()
    opt.add_group([variables["a"]], rho=0.5)
    opt.build([variables["a"]])
    encode = save.encoded

    def damaged(checkpoint):
        text, arrays = encode(checkpoint)
        content = json.loads(text)
        content["optimizer"]["groups"][0].update(change)
        return json.dumps(content), arrays

    monkeypatch.setattr(save, "encoded", damaged)
    rmsjit.save(tmp_path / "run.npz", opt, variables)
    with pytest.raises(ValueError, match="it is damaged"):
        rmsjit.load(tmp_path / "run.npz")


def test_what_a_repr_shows():
    opt = train(maximize=True, grad_scale=0.5, clip_weights=3.0, decoupled_weight_decay=False)
    group = opt.add_group(["*/bias", np.ones(2), np.ones(2)], rho=0.5, frozen=True)
    assert repr(group) == "ParameterGroup('*/bias', 2 variables, rho=0.5, frozen=True)"
    for part in (
        "weight_decay=0.1, decoupled_weight_decay=False, clip_weights=3.0, maximize=True, "
        "grad_scale=0.5",
        f"groups=[{group!r}]",
    ):
        assert part in repr(opt)
    assert repr(group) in repr(keras_with_group())


def keras_with_group():
    opt = keras()
    opt.add_group(["*/bias", np.ones(2), np.ones(2)], rho=0.5, frozen=True)
    return opt


# --- warnings and errors --------------------------------------------------------------------


def warned(opt, variables, steps=4):
    """The warnings of some steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            opt.apply_gradients(zip(gradients_of(step, variables), variables, strict=True))
    return [str(warning.message) for warning in caught]


def test_a_pattern_without_a_match_is_warned_of_once():
    variables = [rmsjit.Variable(np.ones(2), name="a/kernel"), np.ones(2)]
    opt = keras()
    opt.add_group("*/kernel", rho=0.5)
    opt.add_group("*/bias", rho=0.5)
    (message,) = warned(opt, variables)
    assert message.startswith("ParameterGroup('*/bias', rho=0.5) has no effect")
    assert warned(opt, variables) == []


def test_a_variable_without_a_gradient_is_warned_of_once():
    variables, stranger = start(), np.ones(3)
    opt = keras()
    opt.add_group([*variables[:2], stranger], rho=0.5)
    (message,) = warned(opt, variables)
    assert "no effect on Variable_2: no gradient in any step" in message
    assert warned(opt, variables) == []


def test_alternating_lists_are_no_reason_to_warn():
    first, second = start(), start()
    opt = keras()
    opt.add_group([first[0], second[0]], rho=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            for variables in (first, second):
                pairs = zip(gradients_of(step, variables), variables, strict=True)
                opt.apply_gradients(pairs)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number"),
        ({"learning_rate": np.nan}, ValueError, "learning_rate must be finite"),
        ({"lr_multiplier": -1.0}, ValueError, "lr_multiplier must not be negative"),
        ({"rho": 1.5}, ValueError, "rho must be between 0 and 1"),
        ({"momentum": -0.1}, ValueError, "momentum must be between 0 and 1"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be positive"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must not be negative"),
        ({"frozen": 1}, TypeError, "frozen must be True or False"),
        ({"nesterov": True}, TypeError, "nesterov"),
    ],
    ids=str,
)
def test_wrong_settings_change_nothing(name, given, error, message):
    opt, w = MAKERS[name](), np.ones(2)
    with pytest.raises(error, match=message):
        opt.add_group([w], **given)
    assert opt.groups == ()
    assert opt.variables_seen == []
    group = opt.add_group([w])
    (setting, value), *_ = given.items()
    if setting != "nesterov":
        with pytest.raises(error, match=message):
            setattr(group, setting, value)
    assert repr(group) == "ParameterGroup(1 variable)"


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ([], ValueError, "at least one"),
        (3.5, TypeError, "variables must be variables or patterns, got 3.5"),
        (True, TypeError, "got True"),
        ([None], TypeError, "got None"),
        ([-1], TypeError, "got -1"),
        ([True], TypeError, "got True"),
        ([np.ones(2, int)], TypeError, "int64"),
    ],
    ids=str,
)
def test_what_is_no_variable_is_refused(variables, error, message):
    opt = keras()
    with pytest.raises(error, match=message):
        opt.add_group(variables)
    assert opt.groups == ()


def test_settings_that_the_form_lacks_are_refused():
    w = np.ones(2)
    with pytest.raises(ValueError, match="weight_decay of a group needs an optimizer"):
        rmsjit.RMSprop().add_group([w], weight_decay=0.1)
    with pytest.raises(ValueError, match="momentum of a group needs an optimizer"):
        rmsjit.RMSprop().add_group([w], momentum=0.1)
    with pytest.raises(TypeError, match="got a schedule"):
        train().add_group([w], learning_rate=ExponentialDecay(0.1, 3, 0.5))
    form = rmsjit.Form.with_slots("rms", rms_start="epsilon")
    with pytest.raises(ValueError, match="epsilon can't differ"):
        rmsjit.RMSprop(form=form).add_group([w], epsilon=0.1)


def test_a_function_that_returns_nonsense_changes_nothing():
    w = np.ones(2)
    opt = keras()
    opt.add_group([w], rho=lambda: 2.0)
    with pytest.raises(ValueError, match="rho must be between 0 and 1"):
        opt.apply_gradients([(w, w)])
    assert (w == 1).all()
    assert opt.iterations.numpy() == 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"maximize": 1}, TypeError, "maximize must be True or False"),
        ({"grad_scale": 0.0}, ValueError, "grad_scale must be positive"),
        ({"grad_scale": "x"}, TypeError, "grad_scale must be a number"),
        ({"decoupled_weight_decay": None}, TypeError, "decoupled_weight_decay must be True or"),
        ({"clip_weights": -1.0}, ValueError, "clip_weights must be positive"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MAKERS)
def test_wrong_arguments_are_refused(name, given, error, message):
    with pytest.raises(error, match=message):
        MAKERS[name](**given)


def test_coupled_decay_has_no_closed_form():
    with pytest.raises(ValueError, match="coupled weight decay"):
        keras(decoupled_weight_decay=False, sparse="exact")


def test_an_optimizer_with_groups_frees_its_slots_at_once():
    opt, w = keras(), np.ones(1000)
    opt.add_group([w], rho=0.5)
    opt.apply_gradients([(w, w)])
    slot = weakref.ref(opt._store.find(w).slots["rms"])
    gc.disable()
    try:
        del opt
        assert slot() is None
    finally:
        gc.enable()


def test_groups_are_part_of_the_common_base():
    assert rmsjit.RMSprop.add_group is Optimizer.add_group
    assert rmsjit.train.RMSPropOptimizer.add_group is Optimizer.add_group


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_hooks_do_not_meet_what_is_frozen(nonfinite):
    seen = []
    hooks = [lambda pairs: seen.append(len(pairs)) or pairs]
    settings = {"global_clipnorm": 1.0, "nonfinite": nonfinite}
    opt = rmsjit.RMSprop(0.1, gradient_transformers=hooks, **settings)
    w, still = np.ones(2), np.ones(2)
    opt.add_group([still], frozen=True)
    opt.apply_gradients([(np.full(2, 0.1), w), (np.full(2, np.nan), still)])
    assert (w < 1).all()
    assert (still == 1).all()
    assert seen == [1]


def test_hooks_where_all_is_frozen():
    opt, w = rmsjit.RMSprop(0.1, gradient_transformers=[list]), np.ones(2)
    opt.add_group([w], frozen=True)
    assert opt.apply_gradients([(np.ones(2), w)]).numpy() == 1
    assert (w == 1).all()


def test_a_group_gets_momentum_that_came_later():
    v, optimizer = np.ones(2), rmsjit.RMSprop(0.1)
    group = optimizer.add_group(v, momentum=0.0)
    optimizer.momentum = 0.9
    group.momentum = 0.5
    twin, other = np.ones(2), rmsjit.RMSprop(0.1)
    other.momentum = 0.5
    for one, x in ((optimizer, v), (other, twin)):
        for _ in range(3):
            one.apply_gradients([(np.full(2, 0.3), x)])
    np.testing.assert_array_equal(v, twin)


def test_functions_of_the_step_get_the_step():
    w, opt = np.zeros(2), rmsjit.RMSprop(0.1, rho=0.0, epsilon=1e-30)
    opt.add_group([w], lr_multiplier=lambda step: float(step))
    moves = []
    for _ in range(3):
        opt.apply_gradients([(np.ones(2), w)])
        moves.append(w[0])
    np.testing.assert_allclose(moves, [0.0, -0.1, -0.3])
    assert opt.get_config()["groups"][0]["lr_multiplier"] == 2.0


def test_a_multiplier_counts_calls_as_the_learning_rate_does():
    seen = []
    w, opt = np.zeros(2), rmsjit.RMSprop(lambda step: seen.append(step) or 0.1,
                                         gradient_accumulation_steps=3)  # fmt: skip
    opt.add_group([w], lr_multiplier=lambda step: seen.append(step) or 1.0)
    for _ in range(6):
        opt.apply_gradients([(np.ones(2), w)])
    assert seen == [2, 2, 5, 5]


@pytest.mark.parametrize("name", ["learning_rate", "lr_multiplier", "rho", "momentum"])
def test_functions_of_the_step_need_a_count_of_steps(name):
    w, opt = np.zeros(2), rmsjit.train.RMSPropOptimizer(0.1, momentum=0.5)
    opt.add_group([w], **{name: lambda step: 1 / (step + 2.0)})
    with pytest.raises(ValueError, match=f"{name} of a group must not be a function of the step"):
        opt.apply_gradients([(np.ones(2), w)])
    assert not w.any()
    opt.apply_gradients([(np.ones(2), w)], global_step=np.array(0))
    assert w.all()


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("gradient", [4.0, np.nan])
def test_hooks_do_not_meet_what_is_not_trainable(nonfinite, gradient):
    results = []
    for transformers in ([], [lambda pairs: pairs]):
        w = rmsjit.Variable(np.zeros(1), name="w")
        fixed = rmsjit.Variable(np.zeros(1), name="fixed", trainable=False)
        opt = rmsjit.RMSprop(
            0.1, epsilon=1.0, global_clipnorm=1.0, gradient_transformers=transformers,
            nonfinite=nonfinite,
        )  # fmt: skip
        opt.apply_gradients([(np.array([3.0]), w), (np.array([gradient]), fixed)])
        results.append((w.numpy().item(), opt.last_gradient_norm, opt.skipped_steps))
    assert results[0] == results[1]
    assert results[0][1:] == (3.0, 0)
