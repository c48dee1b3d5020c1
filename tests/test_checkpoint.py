"""Saving and loading: bit for bit or not at all, whatever happens meanwhile."""

import json
import os
import stat
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import rmsjit
from rmsjit.checkpoints import array_file, atomic_file
from rmsjit.checkpoints.save import load, save
from strategies import DTYPES

ENDINGS = [".npz", ".safetensors"]
OPTIMIZERS = {
    "plain": lambda: rmsjit.RMSprop(0.01),
    "centered": lambda: rmsjit.RMSprop(0.01, centered=True),
    "momentum": lambda: rmsjit.RMSprop(0.01, momentum=0.9),
    "both": lambda: rmsjit.RMSprop(0.01, momentum=0.9, centered=True),
    "tf1": lambda: rmsjit.train.RMSPropOptimizer(0.01, momentum=0.5),
    "tf1 centered": lambda: rmsjit.train.RMSPropOptimizer(0.01, 0.8, centered=True),
}
every_ending = pytest.mark.parametrize("ending", ENDINGS)


@pytest.fixture(params=ENDINGS)
def path(request, tmp_path):
    return tmp_path / f"run{request.param}"


def numbers(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def in_every_layout(dtype="float32"):
    """Variables by rows, by columns, strided, reversed, without axes and without elements."""
    by_columns = np.asfortranarray(numbers((3, 5), dtype, 1))
    strided = np.repeat(numbers((4, 6), dtype, 2), 2, axis=1)[:, ::2]
    upside_down = numbers((3, 2), dtype, 3)[::-1]
    transposed = numbers((2, 3, 4), dtype, 4).transpose(1, 2, 0)
    return {
        "rows": numbers((4, 3), dtype, 0),
        "columns": by_columns,
        "strided": strided,
        "upside down": upside_down,
        "transposed": transposed,
        "scalar": numbers((), dtype, 5),
        "empty": np.zeros(0, dtype),
    }


def zeros_of(variables):
    """Other arrays of the same layouts, at which nothing of the values is left."""
    copies = {}
    for name, variable in variables.items():
        base = np.zeros(variable.size * 2, variable.dtype)[: variable.size]
        order = np.argsort([-abs(stride) for stride in variable.strides], kind="stable")
        shape = [variable.shape[axis] for axis in order]
        copies[name] = base.reshape(shape).transpose(np.argsort(order))
    copies["strided"] = np.zeros((4, 12), variables["strided"].dtype)[:, ::2]
    copies["upside down"] = np.zeros((3, 2), variables["upside down"].dtype)[::-1]
    return copies


def train(optimizer, variables, steps):
    for step in steps:
        optimizer.apply_gradients(
            [(numbers(v.shape, v.dtype, [step, k]), v) for k, v in enumerate(variables.values())]
        )


def state_of(optimizer, variables):
    """Every bit of the variables, their slots and the step count."""
    optimizer.sync()
    state = {name: np.asarray(variable).tobytes() for name, variable in variables.items()}
    for name, variable in variables.items():
        for slot in optimizer.get_slot_names():
            entry = optimizer._store.find(variable)
            if entry is not None and slot in entry.slots:
                state[name, slot] = np.asarray(optimizer.get_slot(variable, slot)).tobytes()
    if isinstance(optimizer, rmsjit.RMSprop):
        state["iterations"] = int(optimizer.iterations)
    return state


def assert_resumes(path, make, variables, fresh, steps=train):
    """After `load`, in place and anew, a run goes on as it does without having stopped."""
    optimizer = make()
    steps(optimizer, variables, range(3))
    save(path, optimizer, variables)
    saved = state_of(optimizer, variables)
    resumed, anew = make(), load(path)
    assert load(path, resumed, fresh) == (resumed, fresh)
    assert state_of(resumed, fresh) == saved
    assert state_of(*anew) == saved
    for run in ((optimizer, variables), (resumed, fresh), anew):
        steps(*run, range(3, 6))
    assert state_of(resumed, fresh) == state_of(optimizer, variables)
    assert state_of(*anew) == state_of(optimizer, variables)


# --- resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "float32")) for name in DTYPES],
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_run_continues_bit_for_bit(path, kind, dtype):
    variables = in_every_layout(dtype)
    assert_resumes(path, OPTIMIZERS[kind], variables, zeros_of(variables))


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": rmsjit.schedules.CosineDecay(0.1, 5, warmup_target=0.2, warmup_steps=3)},
        {"learning_rate": rmsjit.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01])},
        {"decay": 0.3, "clipnorm": 0.7},
        {"global_clipnorm": 0.5, "momentum": 0.9},
        {"clipvalue": 0.2, "rho": 0.7, "epsilon": 1e-3, "name": "other"},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_hyperparameters_are_saved(path, arguments):
    variables = in_every_layout()
    assert_resumes(path, lambda: rmsjit.RMSprop(**arguments), variables, zeros_of(variables))
    optimizer, _ = load(path)
    assert optimizer.get_config() == rmsjit.RMSprop(**arguments).get_config()


def with_late_momentum():
    optimizer = rmsjit.RMSprop(0.01)
    optimizer.momentum = 0.9
    return optimizer


def with_momentum_off():
    optimizer = rmsjit.RMSprop(0.01, momentum=0.9, centered=True)
    optimizer.momentum = 0.0
    return optimizer


@pytest.mark.parametrize("make", [with_late_momentum, with_momentum_off])
def test_momentum_that_was_set_later(path, make):
    variables = in_every_layout()
    assert_resumes(path, make, variables, zeros_of(variables))
    optimizer, _ = load(path)
    assert optimizer._store.form == make()._store.form
    assert optimizer.momentum == make().momentum


def test_late_momentum_before_its_slots_are_made(path):
    w = np.ones(3)
    optimizer = rmsjit.RMSprop(0.1)
    optimizer.apply_gradients([(w, w)])
    optimizer.momentum = 0.5
    save(path, optimizer, {"w": w})
    resumed, variables = load(path)
    for run in ((optimizer, {"w": w}), (resumed, variables)):
        train(*run, range(2))
    assert state_of(resumed, variables) == state_of(optimizer, {"w": w})


@pytest.mark.parametrize(
    "make", [rmsjit.RMSprop, lambda **k: rmsjit.train.RMSPropOptimizer(1, **k)]
)
def test_exact_sparse_gradients(path, make):
    def step_rows(optimizer, variables, steps):
        for step in steps:
            rows = np.random.default_rng(step).integers(0, 6, 3)
            gradient = rmsjit.IndexedSlices(numbers((3, 4), "float32", step), rows)
            optimizer.apply_gradients([(gradient, variables["table"])])

    variables = {"table": numbers((6, 4), "float32", 0)}
    fresh = {"table": np.zeros((6, 4), np.float32)}
    assert_resumes(
        path, lambda: make(momentum=0.5, sparse="exact"), variables, fresh, steps=step_rows
    )


def test_loading_drops_the_steps_that_rows_have_missed(path):
    table = np.ones((3, 2))
    optimizer = rmsjit.RMSprop(0.1, momentum=0.5, sparse="exact")
    first = rmsjit.IndexedSlices(np.ones((3, 2)), [0, 1, 2])
    optimizer.apply_gradients([(first, table)])
    save(path, optimizer, {"table": table})
    saved = table.copy()
    optimizer.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 2)), [0]), table)])
    load(path, optimizer, {"table": table})
    optimizer.sync()
    np.testing.assert_array_equal(table, saved)


def test_state_goes_back_to_before_the_first_step(path):
    w, b = np.ones(3), np.ones(2)
    optimizer = rmsjit.train.RMSPropOptimizer(0.1, centered=True)
    save(path, optimizer, {"w": w, "b": b})
    train(optimizer, {"w": w, "b": b}, range(2))
    load(path, optimizer, {"w": w, "b": b})
    assert (w == 1).all()
    assert (optimizer.get_slot(w, "rms").numpy() == 1).all()  # where TensorFlow 1 starts it
    assert (optimizer.get_slot(b, "mg").numpy() == 0).all()


def test_before_any_step(path):
    variables = {"w": np.ones(3), "n": np.array(7)}
    save(path, rmsjit.RMSprop(0.5, rho=0.3), variables)
    optimizer, loaded = load(path)
    assert len(optimizer.weights) == 1
    assert optimizer.rho == 0.3
    assert loaded["n"] == 7
    assert loaded["n"].dtype == np.int64
    resumed = rmsjit.RMSprop(0.5)
    load(path, resumed, variables)
    assert len(resumed.weights) == 1


def test_only_some_variables_have_slots(path):
    w, frozen = np.ones(3), np.arange(4)
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, {"w": w}, range(2))
    save(path, optimizer, {"frozen": frozen, "w": w})
    resumed, variables = load(path)
    assert state_of(resumed, {"w": variables["w"]}) == state_of(optimizer, {"w": w})
    assert len(resumed.weights) == 2
    np.testing.assert_array_equal(variables["frozen"], frozen)


def test_order_of_weights_is_kept(path):
    first, second = np.ones(2), np.ones(3)
    optimizer = rmsjit.RMSprop(0.1, momentum=0.5)
    optimizer.build([second, first])
    save(path, optimizer, {"first": first, "second": second})
    resumed, _ = load(path)
    assert [w.shape for w in resumed.get_weights()] == [(), (3,), (2,), (3,), (2,)]


def test_hyperparameters_of_a_given_optimizer_stay(path):
    w = np.ones(3)
    save(path, rmsjit.RMSprop(0.1, rho=0.5), {"w": w})
    optimizer = rmsjit.RMSprop(lambda: 0.7, rho=0.9, name="mine")
    load(path, optimizer, {"w": w})
    assert optimizer.learning_rate() == 0.7
    assert optimizer.rho == 0.9


def test_callable_hyperparameters_are_saved_as_their_values(path):
    w = np.ones(3)
    save(path, rmsjit.train.RMSPropOptimizer(lambda: 0.7, lambda: 0.6), {"w": w})
    with pytest.warns(RuntimeWarning, match="saved with functions, .*: learning_rate, decay. The"):
        optimizer, _ = load(path)
    assert "learning_rate=0.7, decay=0.6" in repr(optimizer)


def test_functions_that_are_not_saved_are_named(path):
    w = np.ones(3)
    given = {"gradient_transformers": [lambda pairs: pairs], "momentum": lambda: 0.5}
    optimizer = rmsjit.RMSprop(Halving(0.5), **given)
    optimizer.add_group([w], lr_multiplier=lambda step: 1.0)
    optimizer.apply_gradients([(w, w)])
    save(path, optimizer, {"w": w})
    names = "momentum, lr_multiplier of group 0, gradient_transformers. The new"
    with pytest.warns(RuntimeWarning, match=names):
        load(path, custom_objects={"Halving": Halving})
    load(path, optimizer, {"w": w})  # without a warning, as it has them
    save(path, rmsjit.RMSprop(Halving(0.5)), {"w": w})
    load(path, custom_objects={"Halving": Halving})


def test_all_settings_of_the_first_optimizer_are_saved(path):
    optimizer = rmsjit.train.RMSPropOptimizer(0.3, 0.8, 0.7, 1e-5, True, True, "mine")
    save(path, optimizer, {})
    loaded, variables = load(path)
    assert repr(loaded) == repr(optimizer)
    assert loaded._use_locking is True
    assert variables == {}


class Halving(rmsjit.schedules.LearningRateSchedule):
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate / (step + 1)

    def get_config(self):
        return {"rate": self.rate}


class Mine(rmsjit.RMSprop):
    pass


def test_custom_classes(path):
    variables = {"w": np.ones(3)}
    save(path, Mine(Halving(0.5)), variables)
    optimizer, _ = load(path, custom_objects={"Halving": Halving, "Mine": Mine})
    assert type(optimizer) is Mine
    assert optimizer.learning_rate.rate == 0.5
    load(path, rmsjit.RMSprop(), variables)  # the state is that of the class it derives from
    with pytest.raises(ValueError, match="'Mine' must be in custom_objects"):
        load(path)
    with pytest.raises(ValueError, match=r"can't be made from its configuration.*'Halving'"):
        load(path, custom_objects={"Mine": Mine})


class Counting(rmsjit.RMSprop):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.counts = self.add_weight("counts", [2], np.int32)


def test_weights_that_a_subclass_adds(path):
    variables = {"w": np.ones(3)}
    optimizer = Counting(0.1)
    optimizer.counts.assign([3, 4])
    save(path, optimizer, variables)
    loaded, _ = load(path, custom_objects={"Counting": Counting})
    assert loaded.counts.tolist() == [3, 4]


def with_additions(w, b):
    """An optimizer whose weights are of every kind, in a mixed order."""
    optimizer = rmsjit.RMSprop(0.1, momentum=0.5)
    optimizer.add_weight("first", [2])
    optimizer.add_slot(b, "mean", shape=[2, 2], initializer="ones")
    train(optimizer, {"w": w}, range(1))
    optimizer.add_weight("first", [], np.int64, initializer=7)
    train(optimizer, {"w": w, "b": b}, range(1))
    return optimizer


def test_added_slots_and_weights(path):
    w, b = np.ones(3), np.ones(2)
    optimizer = with_additions(w, b)
    save(path, optimizer, {"w": w, "b": b})
    loaded, variables = load(path)
    assert_same_weights(loaded, optimizer)
    assert loaded.get_slot(variables["b"], "mean").shape == (2, 2)
    assert loaded.get_slot_names() == optimizer.get_slot_names()
    for weight in optimizer.weights[1:]:
        weight.array[...] = 9
    load(path, optimizer, {"w": w, "b": b})
    assert_same_weights(optimizer, loaded)


def assert_same_weights(one, other):
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_added_weights_that_differ_are_refused(path):
    w, b = np.ones(3), np.ones(2)
    optimizer = with_additions(w, b)
    save(path, optimizer, {"w": w, "b": b})
    bare = rmsjit.RMSprop(0.1, momentum=0.5)
    match = r"saved 'first' float32 \(2,\), 'first' int64 \(\), here none"
    assert_refused(path, bare, {"w": w, "b": b}, match)
    bare.add_weight("first", [2])
    bare.add_weight("first", [], np.int64)
    load(path, bare, {"w": w, "b": b})
    assert_same_weights(bare, optimizer)
    bare.add_slot(w, "another")
    assert_refused(path, bare, {"w": w, "b": b}, "slot 'another' of Variable was not saved")


def test_slot_of_another_shape_is_refused(path):
    w = np.ones(3)
    optimizers = [rmsjit.RMSprop(), rmsjit.RMSprop()]
    for optimizer, shape in zip(optimizers, [[2], [4]], strict=True):
        optimizer.add_slot(w, "mine", shape=shape)
    save(path, optimizers[0], {"w": w})
    match = r"shape of slot 'mine' of 'w': saved \(2,\), here \(4,\)"
    assert_refused(path, optimizers[1], {"w": w}, match)


def test_handling_of_nonfinite_gradients(path):
    w = np.ones(3)
    optimizer = rmsjit.RMSprop(0.1, nonfinite="skip")
    optimizer.apply_gradients([(np.full(3, np.nan), w)])
    save(path, optimizer, {"w": w})
    loaded, variables = load(path)
    assert loaded.skipped_steps == 1
    loaded.apply_gradients([(np.full(3, np.nan), variables["w"])])
    assert loaded.skipped_steps == 2
    np.testing.assert_array_equal(variables["w"], w)


# --- variables ------------------------------------------------------------------------------

NAMES = ["", "a/b", "a", "/", "..", "../../up", "naïve ß", "日本", "a.npy", "a%2Fb", "a\\b", "\0"]
NAMES += ["\ud800", "x" * 300, "file", "rmsjit", "__metadata__", "A", " ", "a\nb", "variables/a"]


def test_any_name(path):
    variables = {name: np.full(2, k, np.float32) for k, name in enumerate(NAMES)}
    optimizer = rmsjit.RMSprop(0.01)
    train(optimizer, variables, range(1))
    save(path, optimizer, variables)
    resumed, loaded = load(path)
    assert list(loaded) == NAMES
    assert state_of(resumed, loaded) == state_of(optimizer, variables)


def test_variables_of_equal_names(path):
    variables = {str(k): rmsjit.Variable([k, 2.0], name="same") for k in range(3)}
    optimizer = rmsjit.RMSprop(0.01)
    train(optimizer, variables, range(2))
    save(path, optimizer, variables)
    fresh = {str(k): rmsjit.Variable([0.0, 0.0], name="same") for k in range(3)}
    resumed = rmsjit.RMSprop(0.01)
    load(path, resumed, fresh)
    assert state_of(resumed, fresh) == state_of(optimizer, variables)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "uint64", ">f4"])
def test_variables_that_are_not_trained(path, dtype):
    variable = np.array([[0, 1], [1, 0]]).astype(dtype)
    save(path, rmsjit.RMSprop(), {"v": variable})
    _, loaded = load(path)
    assert loaded["v"].dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(loaded["v"], variable)
    target = np.zeros((2, 2), dtype)
    load(path, rmsjit.RMSprop(), {"v": target})
    np.testing.assert_array_equal(target, variable)


def test_special_values(path):
    values = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 3e38], np.float32)
    save(path, rmsjit.RMSprop(), {"v": values})
    assert load(path)[1]["v"].tobytes() == values.tobytes()


def test_names_of_one_memory(path):
    table = numbers((3, 4), "float32", 0)
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, {"out": table.T}, range(2))
    save(path, optimizer, {"in": table, "out": table.T, "flat": table.reshape(-1)})
    resumed, loaded = load(path)
    assert np.shares_memory(loaded["in"], loaded["out"])
    np.testing.assert_array_equal(loaded["out"], table.T)
    np.testing.assert_array_equal(loaded["flat"], table.reshape(-1))
    assert state_of(resumed, {"in": loaded["in"]}) == state_of(optimizer, {"in": table})
    apart = {"in": table, "out": np.zeros((4, 3), np.float32), "flat": table.reshape(-1)}
    with pytest.raises(ValueError, match="memory of 'out': saved as shared with 'in', here with n"):
        load(path, optimizer, apart)


def test_views_are_found_by_their_memory(path):
    w = numbers((3, 4), "float64", 0)
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, {"flat": w.reshape(-1)}, range(2))
    save(path, optimizer, {"w": w})
    state = state_of(optimizer, {"w": w})
    train(optimizer, {"flat": w.reshape(-1)}, range(2))
    load(path, optimizer, {"w": w[...]})
    assert state_of(optimizer, {"w": w}) == state


def test_slots_of_an_allocator(path):
    shapes = []

    def allocator(shape, dtype):
        shapes.append(shape)
        return np.zeros(shape, dtype)

    variables = {"w": np.ones((3, 2))}
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, variables, range(1))
    save(path, optimizer, variables)
    load(path, rmsjit.RMSprop(0.1, slot_allocator=allocator), variables)
    assert shapes == [(6,)]


def test_file_can_be_read_without_rmsjit(tmp_path):
    variables = {"layer/w": np.asfortranarray(numbers((2, 3), "float32", 0))}
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, variables, range(2))
    for ending in ENDINGS:
        save(tmp_path / f"run{ending}", optimizer, variables)
    from safetensors.numpy import load_file

    held = load_file(tmp_path / "run.safetensors")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        assert json.loads(file["rmsjit"].item())["optimizer"]["iterations"] == 2
        for arrays in (file, held):
            np.testing.assert_array_equal(arrays["variables/layer/w"], variables["layer/w"])
            np.testing.assert_array_equal(
                arrays["slots/rms/layer/w"], optimizer.get_slot(variables["layer/w"], "rms")
            )


# --- refusals -------------------------------------------------------------------------------


@pytest.fixture
def run():
    variables = {"w": np.ones((2, 3)), "b": np.ones(3)}
    optimizer = rmsjit.RMSprop(0.1)
    train(optimizer, variables, range(2))
    return optimizer, variables


def assert_refused(path, optimizer, variables, match):
    before = state_of(optimizer, variables)
    order = list(optimizer._store.created)
    with pytest.raises(ValueError, match=match):
        load(path, optimizer, variables)
    assert state_of(optimizer, variables) == before
    assert list(optimizer._store.created) == order


def changed(variables, **others):
    merged = {**variables, **others}
    return {name: variable for name, variable in merged.items() if variable is not None}


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ({"b": None}, "variable 'b' was saved, but is not here"),
        ({"c": np.ones(3)}, "variable 'c' was not saved"),
        ({"b": np.ones(4)}, r"shape of 'b': saved \(3,\), here \(4,\)$"),
        ({"b": np.ones(3, np.float32)}, "dtype of 'b': saved float64, here float32$"),
        ({"b": np.ones((1, 3))}, r"shape of 'b': saved \(3,\), here \(1, 3\)$"),
        ({"b": read_only(np.ones(3))}, "variable 'b' is read-only here"),
        ({"b": np.ones(3, ">f8")}, "slot 'rms' of 'b': a variable of dtype.*can't be trained"),
    ],
)
def test_other_variables_are_refused(path, run, others, match):
    save(path, *run)
    fresh = changed({"w": np.zeros((2, 3)), "b": np.zeros(3)}, **others)
    assert_refused(path, rmsjit.RMSprop(0.1), fresh, match)


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (rmsjit.RMSprop(centered=True), "slots: saved rms, here mg, rms"),
        (
            rmsjit.RMSprop(momentum=0.9),
            "slots: saved rms, here momentum, rms\n- place of epsilon: saved outside, here inside",
        ),
        (with_late_momentum(), "slots: saved rms, here momentum, rms"),
        (
            rmsjit.train.RMSPropOptimizer(0.1),
            "class of the optimizer: saved RMSprop, here RMSPropOptimizer",
        ),
    ],
)
def test_other_optimizers_are_refused(path, run, optimizer, match):
    save(path, *run)
    assert_refused(path, optimizer, {"w": np.zeros((2, 3)), "b": np.zeros(3)}, match)


def test_optimizer_with_other_variables_is_refused(path, run):
    save(path, *run)
    optimizer, other = rmsjit.RMSprop(0.1), np.ones(5, np.float32)
    train(optimizer, {"other": other}, range(1))
    fresh = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
    match = r"slots of Variable \(number 0 of the optimizer, float32 \(5,\)\), which is not in"
    assert_refused(path, optimizer, fresh, match)


def test_step_count_that_can_not_hold_the_saved_one_is_refused(path, run):
    optimizer, variables = run
    optimizer.iterations = 300
    save(path, optimizer, variables)
    resumed = rmsjit.RMSprop()
    resumed.iterations = rmsjit.Variable(np.zeros((), np.int8))
    fresh = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
    assert_refused(path, resumed, fresh, "iterations: saved 300, which the int8 here can't hold")


def test_all_differences_are_named_up_to_ten(path):
    save(path, rmsjit.RMSprop(), {f"v{k:02}": np.ones(1) for k in range(12)})
    with pytest.raises(ValueError, match="v00") as error:
        load(path, rmsjit.RMSprop(), {})
    assert str(error.value).count("\n- ") == 11
    assert "'v09' was saved, but is not here\n- and 2 more" in str(error.value)


def test_failing_allocator_changes_nothing(path, run):
    def allocator(shape, dtype):
        if shape == (3,):
            raise MemoryError
        return np.zeros(shape, dtype)

    save(path, *run)
    fresh = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
    resumed = rmsjit.RMSprop(0.1, slot_allocator=allocator)
    with pytest.raises(MemoryError):
        load(path, resumed, fresh)
    assert not fresh["w"].any()
    assert len(resumed.weights) == 1


@pytest.mark.parametrize("name", ["run", "run.pt", "run.NPZ", ".npz"])
def test_other_endings_are_refused(tmp_path, name):
    for call in (lambda p: save(p, rmsjit.RMSprop(), {}), load):
        with pytest.raises(TypeError, match="path must be a str or path_like, got RMSprop"):
            call(rmsjit.RMSprop())
    for call in (lambda p: save(p, rmsjit.RMSprop(), {}), load):
        with pytest.raises(ValueError, match=r"path must end in \.npz or \.safetensors, got"):
            call(tmp_path / name)


@pytest.mark.parametrize(
    ("variables", "error", "match"),
    [
        ([np.ones(3)], TypeError, "variables must be a dict of arrays, got list"),
        ({1: np.ones(3)}, TypeError, "variables must have strings as names, got 1"),
        ({"a": [1.0]}, TypeError, r"variables\['a'\] must be a NumPy array .* got list"),
        ({"a": np.array(["x"])}, TypeError, r"variables\['a'\] must hold numbers, got dtype <U1"),
        ({"a": np.array([None])}, TypeError, "must hold numbers, got dtype object"),
    ],
)
def test_bad_variables(path, variables, error, match):
    with pytest.raises(error, match=match):
        save(path, rmsjit.RMSprop(), variables)
    assert not path.exists()
    save(path, rmsjit.RMSprop(), {})
    with pytest.raises(error, match=match):
        load(path, rmsjit.RMSprop(), variables)


def test_overlapping_variables(path):
    w = np.ones(5)
    with pytest.raises(
        ValueError, match=r"'head' of shape \(3,\) and 'tail' of shape .* share memory"
    ):
        save(path, rmsjit.RMSprop(), {"head": w[:3], "other": np.ones(2), "tail": w[2:]})


def test_missing_variable_of_the_optimizer(path, run):
    optimizer, variables = run
    save(path, optimizer, variables)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"but lacks Variable_1 \(number 1 .* float64 \(3,\)\)"):
        save(path, optimizer, {"w": variables["w"]})
    assert path.read_bytes() == before


def test_bad_optimizer(path):
    with pytest.raises(TypeError, match="optimizer must be one of rmsjit's, got str"):
        save(path, "RMSprop", {})
    with pytest.raises(TypeError, match="optimizer must be one of rmsjit's, got dict"):
        load(path, {}, rmsjit.RMSprop())


def test_config_that_json_can_not_hold(path):
    with pytest.raises(TypeError, match=r"JSON can't hold the configuration of .*: .* complex"):
        save(path, rmsjit.RMSprop(Halving(1j)), {})


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.delattr("safetensors.numpy", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "run.safetensors"
    with pytest.raises(ImportError, match="pip install safetensors"):
        save(path, rmsjit.RMSprop(), {})
    assert os.listdir(tmp_path) == []
    save(tmp_path / "run.npz", rmsjit.RMSprop(), {})


# --- damaged and foreign files --------------------------------------------------------------


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def test_truncated_file(path, run):
    save(path, *run)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert_refused(path, *run, "damaged or of another format")


def test_file_with_something_after_its_end(path, run):
    save(path, *run)
    path.write_bytes(path.read_bytes() + b"x")
    if path.suffix == ".safetensors":
        assert_refused(path, *run, "damaged or of another format")


@pytest.mark.slow
def test_flipped_bits_are_refused_or_harmless(tmp_path, run):
    path = tmp_path / "run.npz"
    save(path, *run)
    whole = path.read_bytes()
    expected = state_of(*run)
    refused = 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            load(path, *run)
        except ValueError:
            refused += 1
        assert state_of(*run) == expected
    assert refused > len(whole) / 5 / 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", bytes(100)])
def test_foreign_file(path, run, content):
    path.write_bytes(content)
    assert_refused(path, *run, "damaged or of another format")


def test_file_of_another_program(tmp_path, run):
    from safetensors.numpy import save_file

    np.savez(tmp_path / "run.npz", w=np.ones(3))
    save_file({"w": np.ones(3)}, tmp_path / "run.safetensors")
    for ending in ENDINGS:
        assert_refused(tmp_path / f"run{ending}", *run, "was not written by rmsjit.save")


def test_pickled_objects_are_not_read(tmp_path, run):
    path = tmp_path / "run.npz"
    np.savez(path, rmsjit=np.array(b"{}"), w=np.array([print], dtype=object))
    assert_refused(path, *run, "holds Python objects")


def rewritten(path, change):
    """The file again, with `change(content)` applied to its text."""
    text, arrays = array_file.read_arrays(path)
    content = json.loads(text)
    change(content)
    path.unlink()
    array_file.write_arrays(path, json.dumps(content), arrays)


def test_newer_format_is_refused(path, run):
    save(path, *run)
    rewritten(path, lambda content: content.update(version=3, rmsjit="9.0"))
    match = r"its format version is 3 \(of rmsjit 9.0\), and this rmsjit reads versions 1 and 2"
    assert_refused(path, *run, match)
    with pytest.raises(ValueError, match=match):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format="other"),
        lambda content: content.pop("version"),
        lambda content: content.pop("variables"),
        lambda content: content["variables"][0].update(array="nothing"),
        lambda content: content["variables"][0].update(shape=[3, 2]),
        lambda content: content["variables"][0].update(shape=None),
        lambda content: content["variables"][0].update(dtype="float32"),
        lambda content: content["variables"][0].update(dtype="no such"),
        lambda content: content["variables"][0].update(axes=[0]),
        lambda content: content["variables"][0].update(axes=[0, 0]),
        lambda content: content["variables"][0].update(flipped=1),
        lambda content: content["variables"][0].update(same_memory_as="nothing"),
        lambda content: content["optimizer"].pop("weights"),
        lambda content: content["optimizer"]["weights"][0].update(variable="nothing"),
        lambda content: content["optimizer"]["weights"][0].update(name=3),
        lambda content: content["optimizer"].update(iterations=None),
        lambda content: content["optimizer"].update(iterations=-1),
        lambda content: content["optimizer"].update(more=1),
        lambda content: content["optimizer"]["form"].update(slots=["momentum"]),
        lambda content: content["optimizer"]["form"].update(more=1),
        lambda content: content["optimizer"]["form"].update(epsilon="beside"),
        lambda content: content["optimizer"]["form"].update(slots=["rms", "no such"]),
        lambda content: content["optimizer"]["form"].update(slots=[{"name": "rms", "more": 1}]),
        lambda content: content.update(version=1),
        lambda content: content["optimizer"].update(form=None),
        lambda content: content.clear(),
    ],
)
def test_forged_content_is_refused(path, run, change):
    save(path, *run)
    rewritten(path, change)
    assert_refused(path, *run, "can't be loaded")


# --- version 1 ------------------------------------------------------------------------------


def as_version_1(content):
    """The text as version 1 had it: a form was four settings, of which each had to be there."""
    form = rmsjit.Form.from_dict(content["optimizer"]["form"])
    content["version"] = 1
    content["optimizer"]["form"] = {
        "epsilon_inside": form.epsilon == "inside",
        "rms_start": float(form.slot("rms").start),
        "slots": list(form.slot_names),
        "by_variable": form.creation == "by_variable",
    }


@pytest.mark.parametrize(
    "make",
    [*OPTIMIZERS.values(), with_late_momentum],
    ids=[*OPTIMIZERS, "late momentum"],
)
def test_files_of_version_1_load_to_the_same_state(path, make):
    variables = in_every_layout()
    optimizer, fresh = make(), zeros_of(variables)
    train(optimizer, variables, range(3))
    save(path, optimizer, variables)
    rewritten(path, as_version_1)
    resumed, anew = make(), load(path)
    load(path, resumed, fresh)
    assert anew[0]._store.form == optimizer._store.form
    for run in ((optimizer, variables), (resumed, fresh), anew):
        assert state_of(*run) == state_of(optimizer, variables)
    for run in ((optimizer, variables), (resumed, fresh), anew):
        train(*run, range(3, 5))
    assert state_of(resumed, fresh) == state_of(*anew) == state_of(optimizer, variables)


def test_form_of_version_1_that_differs_is_refused(path, run):
    save(path, *run)
    rewritten(path, as_version_1)
    fresh = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
    match = "slots: saved rms, here momentum, rms\n- place of epsilon: saved outside, here inside"
    assert_refused(path, rmsjit.RMSprop(momentum=0.9), fresh, match)


@pytest.mark.parametrize("name", ["epsilon_inside", "rms_start", "slots", "by_variable"])
def test_incomplete_form_of_version_1_is_refused(path, run, name):
    save(path, *run)
    rewritten(path, as_version_1)
    rewritten(path, lambda content: content["optimizer"]["form"].pop(name))
    assert_refused(path, *run, "can't be loaded: it is damaged")


def test_form_is_written_as_its_dictionary(tmp_path, run):
    save(tmp_path / "run.npz", *run)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        content = json.loads(file["rmsjit"].item())
    assert content["version"] == 2
    assert content["optimizer"]["form"] == run[0].form.to_dict()


# --- writing --------------------------------------------------------------------------------


def test_file_is_replaced_and_nothing_else_is_left(path, run):
    optimizer, variables = run
    for _ in range(2):
        save(path, optimizer, variables)
        assert os.listdir(path.parent) == [path.name]
        train(optimizer, variables, range(1))
    assert int(load(path)[0].iterations) == 3


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(path, run, monkeypatch, call):
    save(path, *run)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space left"):
            save(path, rmsjit.RMSprop(), {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_file_is_synced_before_it_is_renamed_and_the_folder_after(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def watched_replace(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save(path, rmsjit.RMSprop(), {})
    assert calls == ["file", "rename", "folder"]


def test_permissions(path):
    old = os.umask(0o027)
    try:
        save(path, rmsjit.RMSprop(), {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save(path, rmsjit.RMSprop(), {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_link_is_followed(path):
    folder = path.parent / "elsewhere"
    folder.mkdir()
    path.symlink_to(folder / path.name)
    save(path, rmsjit.RMSprop(), {})
    assert path.is_symlink()
    assert (folder / path.name).is_file()


def test_bad_places(path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        save(path.parent / "nowhere" / path.name, rmsjit.RMSprop(), {})
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="there is a folder instead of a file"):
        save(path, rmsjit.RMSprop(), {})
    assert os.listdir(path.parent) == [path.name]


def test_only_what_dead_writers_of_this_path_left_is_removed(path):
    others = [".other.npz.01234567.saving", f".{path.name}.0123.saving", f"{path.name}.saving"]
    for name in (*others, f".{path.name}.01234567.saving"):
        (path.parent / name).mkdir()
        (path.parent / name / f"new{path.suffix}").write_bytes(b"half a file")
    save(path, rmsjit.RMSprop(), {})
    assert set(os.listdir(path.parent)) == {path.name, *others}


def test_folder_of_a_living_writer_is_left_alone(path):
    with atomic_file.replacing(path) as draft:
        save(path, rmsjit.RMSprop(0.5), {})
        draft.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert os.listdir(path.parent) == [path.name]


def test_folder_that_another_writer_takes_for_abandoned(path, monkeypatch):
    locked, calls = atomic_file._locked, []

    def locked_at_the_second_try(file):
        calls.append(file.parent)
        if len(calls) == 1:
            file.parent.rmdir()
        return locked(file)

    monkeypatch.setattr(atomic_file, "_locked", locked_at_the_second_try)
    save(path, rmsjit.RMSprop(), {})
    assert len(set(calls)) == 2
    assert os.listdir(path.parent) == [path.name]


def test_file_system_without_locks(path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (path.parent / f".{path.name}.01234567.saving").mkdir()  # of the living or the dead: who knows
    save(path, rmsjit.RMSprop(), {})
    assert len(os.listdir(path.parent)) == 2
    load(path)


def test_a_lock_that_was_made_again_is_not_ours(tmp_path, monkeypatch):
    """Two other writers are removing the folder, and the second one holds the new lock."""
    lock = tmp_path / "lock"

    def wait(file, *, wait):
        lock.unlink()
        lock.touch()
        return True

    monkeypatch.setattr(atomic_file, "_lock", wait)
    assert atomic_file._locked(lock) is None
    monkeypatch.setattr(atomic_file, "_lock", lambda file, *, wait: lock.unlink() or True)
    assert atomic_file._locked(lock) is None
    monkeypatch.setattr(atomic_file, "_lock", lambda file, *, wait: True)
    with atomic_file._locked(lock) as held:
        assert not held.closed


def test_threads_that_save_to_one_path(path):
    variables = [{"w": np.full(1000, k)} for k in range(4)]

    def save_often(mine):
        for _ in range(10):
            save(path, rmsjit.RMSprop(), mine)

    threads = [threading.Thread(target=save_often, args=(mine,)) for mine in variables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(load(path)[1]["w"].tolist())) == 1
    assert os.listdir(path.parent) == [path.name]


KILLS = """
    import os, pathlib, random, signal, sys, time
    import numpy as np
    import rmsjit
    from rmsjit.checkpoints.save import load, save

    path = pathlib.Path(sys.argv[1])
    variables = {"w": np.zeros(100_000), "b": np.zeros(7, np.float32)}
    optimizer = rmsjit.RMSprop(0.1, momentum=0.9)
    optimizer.build(list(variables.values()))

    def save_number(number):
        optimizer.set_weights([np.full(w.shape, number, w.dtype) for w in optimizer.weights])
        for variable in variables.values():
            variable[...] = number
        save(path, optimizer, variables)

    def saved_number():
        loaded, arrays = load(path)
        values = [*loaded.get_weights(), *arrays.values()]
        numbers = {float(number) for value in values for number in np.unique(value)}
        assert len(numbers) == 1, numbers
        return int(numbers.pop())

    save_number(0)
    start = time.perf_counter()
    save_number(1)
    duration = time.perf_counter() - start
    pause = random.Random(0)
    least, abandoned = 1, 0
    for _ in range(50):
        child = os.fork()
        if not child:
            for number in range(least + 1, least + 10_000):
                save_number(number)
            os._exit(1)
        time.sleep(pause.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = saved_number()
        assert found >= least
        least = found
        left = [name for name in os.listdir(path.parent) if name != path.name]
        assert len(left) <= 1, left
        abandoned += len(left)
    assert least > 1 and abandoned > 0, (least, abandoned)  # kills met both, idle machine or not
    save_number(1)
    assert os.listdir(path.parent) == [path.name]
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_killed_writer_leaves_the_old_file_or_the_new(path):
    script = [sys.executable, "-W", "error", "-c", textwrap.dedent(KILLS), str(path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_plateau_of_a_group_is_restored(tmp_path):
    def made():
        w, b, opt = np.ones(3), np.ones(2), rmsjit.RMSprop(0.1)
        plateau = rmsjit.schedules.ReduceOnPlateau(0.1, factor=0.5, patience=0)
        opt.add_group([b], learning_rate=plateau)
        opt.apply_gradients([(w, w), (b, b)])
        return opt, plateau, {"w": w, "b": b}

    opt, plateau, variables = made()
    for metric in (1.0, 2.0, 3.0):
        plateau.update(metric)
    rmsjit.save(tmp_path / "run.npz", opt, variables)
    other, restored, others = made()
    rmsjit.load(tmp_path / "run.npz", other, others)
    assert restored.state == plateau.state
    assert restored.state.reductions == 2


def test_a_negative_count_of_steps_is_not_saved(tmp_path):
    opt, w = rmsjit.RMSprop(0.1), np.ones(2)
    opt.iterations = -1
    with pytest.raises(ValueError, match="iterations must not be negative, got -1"):
        rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    assert not (tmp_path / "run.npz").exists()


def test_what_shares_memory_with_itself_is_saved_and_not_restored_in_place(path):
    w, constant = np.ones(2), np.broadcast_to(np.full(1, 3.0), 3)
    optimizer = rmsjit.RMSprop(0.1)
    optimizer.apply_gradients([(np.ones(2), w)])
    save(path, optimizer, {"w": w, "scale": constant})
    _, variables = load(path)
    assert variables["scale"].tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match=r"'scale' is (read-only|a view)"):
        load(path, optimizer, {"w": w, "scale": constant})


def test_masked_arrays_are_not_saved(path):
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match=r"variables\['m'\] must not be a masked array"):
        save(path, rmsjit.RMSprop(0.1), {"m": masked})
