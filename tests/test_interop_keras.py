"""State to and from Keras 3 and tf-keras, by names and in files; live where these are installed."""

import io
import json
import re
import shutil
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit.checkpoints.save import load, save
from rmsjit.interop import (
    from_keras_file,
    from_keras_optimizer,
    to_keras_file,
    to_keras_optimizer,
)
from runs import (
    GOLDEN,
    LEARNING_RATE,
    MORE,
    STEPS,
    assert_close,
    golden,
    gradients_of,
    new_variables,
    slots_of,
    train,
)

STEPS_OF = "gradient_accumulation_steps"
LIBRARIES = ["keras", "tf_keras", "tf_keras_legacy"]
SETTINGS = [
    pytest.param({"momentum": momentum, "centered": centered}, id=f"{momentum}-{centered}")
    for momentum in (0.0, 0.9)
    for centered in (False, True)
]


def like_keras(library, momentum=0.9, centered=True, weight_decay=0.0, **form):
    """An optimizer of the library's form, written down apart from what is tested."""
    numbers = {"momentum": momentum, "centered": centered}
    if library == "tf_keras_legacy":
        return rmsjit.RMSprop(LEARNING_RATE, **numbers)
    slots = ["rms", *["momentum"] * (momentum > 0), *["mg"] * centered]
    settings = {
        "epsilon": "inside",
        "weight_decay": "subtracted",
        "one_minus_rho": "exact",
        "square": "first",
        "quotient": "rate_first",
    }
    form = rmsjit.Form.with_slots(*slots, **settings | form)
    return rmsjit.RMSprop(LEARNING_RATE, form=form, weight_decay=weight_decay, **numbers)


class TensorFlowVariable:
    """What tests need of a variable of TensorFlow."""

    def __init__(self, name, value):
        self.name, self.value = name, np.array(value)
        self.shape, self.dtype = self.value.shape, self.value.dtype

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value[...] = value


class KerasVariable(TensorFlowVariable):
    """The same of Keras 3, where a variable has a path besides, and its dtype is a name."""

    def __init__(self, path, value):
        super().__init__(path.split("/")[-1], value)
        self.path, self.dtype = path, self.dtype.name


class KerasOptimizer:
    """What tests need of an optimizer of Keras, with variables by their names."""

    def __init__(self, library, config, arrays):
        kind = KerasVariable if library == "keras" else TensorFlowVariable
        held = [kind(name, value) for name, value in arrays.items()]
        self.config, self.held = config, held
        self.variables = (lambda: held) if library == "tf_keras_legacy" else held

    def get_config(self):
        return self.config

    def values(self):
        return {getattr(v, "path", v.name): v.value for v in self.held}


def recorded(library):
    """The optimizer of a recorded run, the variables then, and those five steps later."""
    settings, arrays = golden(library)
    parts = {"state": {}, "before": {}, "after": {}}
    for key, array in arrays.items():
        part, name = key.split("/", 1)
        parts[part][name] = array
    optimizer = KerasOptimizer(library, settings["config"], parts["state"])
    return optimizer, parts["before"], parts["after"]


def of_record(library):
    return like_keras(library, weight_decay=0.1 if library == "keras" else 0.0)


# --- by names, without Keras ----------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_recorded_run_goes_on(library):
    theirs, variables, after = recorded(library)
    optimizer = of_record(library)
    backwards = dict(reversed(variables.items()))  # names decide
    assert from_keras_optimizer(theirs, backwards, optimizer) is optimizer
    assert int(optimizer.iterations) == 5
    train(optimizer, variables, MORE)
    assert_close(after.values(), variables)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_recorded_state_comes_back(library):
    theirs, variables, _ = recorded(library)
    optimizer = from_keras_optimizer(theirs, variables, of_record(library))
    again, _, _ = recorded(library)
    for variable in again.held:
        if variable.name != "learning_rate":  # which stays
            variable.value[...] = 0
    to_keras_optimizer(optimizer, variables, again)
    np.testing.assert_equal(again.values(), theirs.values())


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_number_of_variables_is_refused(library):
    """Which Keras would skip with a warning."""
    theirs, variables, _ = recorded(library)
    optimizer = of_record(library)
    first, *others = variables
    fewer = {name: variables[name] for name in others}
    with pytest.raises(ValueError, match=r"only here: none; only there: .*kernel|/w/"):
        from_keras_optimizer(theirs, fewer, optimizer)
    more = {**variables, "another": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match=r"only here: .*another.*; only there: none"):
        from_keras_optimizer(theirs, more, optimizer)
    renamed = {"other": variables[first], **fewer}
    with pytest.raises(ValueError, match=r"only here: .*other.*; only there: .*(kernel|/w/)"):
        from_keras_optimizer(theirs, renamed, optimizer)
    assert not optimizer.variables_seen


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"momentum": 0.0}, "the momentum, which is there only"),
        ({"centered": False}, "by which the form there is centered"),
        ({"epsilon": "outside"}, "the place of epsilon: outside of the root here, inside there"),
        ({"learning_rate": "outside"}, "the learning rate of each past step: it is outside"),
        ({"nesterov": True}, "nesterov: True here, False there"),
        ({"weight_decay": 0.1, "form": "coupled"}, "weight decay of 0.1: coupled here, decoupled"),
    ],
)
def test_what_would_be_lost_is_named(library, changes, lost):
    theirs, variables, _ = recorded(library)
    changes = dict(changes)
    if "form" in changes:
        form = rmsjit.Form.with_slots(
            "rms", "momentum", "mg", epsilon="inside", weight_decay=changes.pop("form")
        )
        optimizer = rmsjit.RMSprop(momentum=0.9, form=form, **changes)
    else:
        optimizer = like_keras(library, **changes)
    optimizer.build(list(variables.values()))
    for act in (
        lambda: from_keras_optimizer(theirs, variables, optimizer),
        lambda: to_keras_optimizer(optimizer, variables, theirs),
    ):
        with pytest.raises(ValueError, match=re.escape(lost)):
            act()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"use_ema": True}, "the slot 'average', which is there only"),
        ({"gradient_accumulation_steps": 2}, "must be the same, got 1 here and 2 in keras"),
        ({"use_ema": True, "jit_compile": True}, "averages start differently here"),
    ],
)
def test_what_is_there_only_is_refused(config, match):
    theirs, variables, _ = recorded("keras")
    theirs.config |= config
    with pytest.raises(ValueError, match=match):
        from_keras_optimizer(theirs, variables, of_record("keras"))


def test_another_optimizer_of_keras():
    theirs, variables, _ = recorded("keras")
    del theirs.config["rho"]  # as of Adam, whose variables have the same names
    with pytest.raises(TypeError, match="the optimizer of Keras must be an RMSprop, got one with"):
        from_keras_optimizer(theirs, variables, of_record("keras"))
    with pytest.raises(TypeError, match="keras_optimizer must be an optimizer of Keras, got str"):
        from_keras_optimizer("adam", variables, of_record("keras"))


def test_names_that_are_not_unique():
    theirs, variables, _ = recorded("tf_keras")
    theirs.held.append(theirs.held[-1])
    with pytest.raises(ValueError, match="average_gradient/dense/bias twice"):
        from_keras_optimizer(theirs, variables, of_record("tf_keras"))


def test_nothing_is_assigned_before_all_fits():
    theirs, variables, _ = recorded("keras")
    optimizer = from_keras_optimizer(theirs, variables, of_record("keras"))
    train(optimizer, variables, MORE)
    theirs.held[-1] = KerasVariable(theirs.held[-1].path, np.ones(3, np.float32))
    before = {name: value.copy() for name, value in theirs.values().items()}
    with pytest.raises(ValueError, match=r"average_gradient must be float32 of shape \(3,\), got"):
        to_keras_optimizer(optimizer, variables, theirs)
    np.testing.assert_equal(theirs.values(), before)
    fresh = of_record("keras")
    with pytest.raises(ValueError, match=r"lacking slots: .*'model/dense/bias'; optimizer.build"):
        to_keras_optimizer(fresh, variables, theirs)
    wrong = {name: v.astype(np.float64) for name, v in variables.items()}
    with pytest.raises(ValueError, match="dtype of slot 'rms' of 'model/dense/kernel': saved"):
        from_keras_optimizer(recorded("keras")[0], wrong, fresh)


# --- averages and rounds, without Keras -----------------------------------------------------


def in_keras(variables, config, count):
    """An optimizer of Keras 3 with averages and sums as these settings make them, all zeros."""
    titles = ["average"] * config["use_ema"]
    titles += ["gradient_accumulator"] * bool(config["gradient_accumulation_steps"])
    titles += ["velocity", "momentum"]
    arrays = {"r/iteration": np.array(count), "r/learning_rate": np.array(0.0, "f4")}
    arrays |= {
        f"r/{name}_{title}": np.zeros_like(v) for title in titles for name, v in variables.items()
    }
    numbers = {"name": "r", "rho": 0.9, "momentum": 0.9, "epsilon": 1e-7, "centered": False}
    return KerasOptimizer("keras", {**numbers, **config}, arrays)


def with_rounds(steps=None, **settings):
    optimizer = like_keras("keras", centered=False)
    config = optimizer.get_config() | settings | {"gradient_accumulation_steps": steps}
    return rmsjit.RMSprop.from_config(config)


def test_averages_travel():
    optimizer, variables = with_rounds(use_ema=True), new_variables("float32")
    train(optimizer, variables, STEPS)
    theirs = in_keras(variables, {"use_ema": True, "gradient_accumulation_steps": None}, 0)
    to_keras_optimizer(optimizer, variables, theirs)
    again = from_keras_optimizer(theirs, variables, with_rounds(use_ema=True))
    np.testing.assert_equal(slots_of(again, variables), slots_of(optimizer, variables))
    np.testing.assert_array_equal(
        theirs.values()["r/w_average"], optimizer.get_slot(variables["w"], "average").numpy()
    )


@pytest.mark.parametrize("calls", [4, 5])
def test_a_round_travels(calls):
    """Keras counts calls; what waits for the third of them is the sum of the two before."""
    variables, config = new_variables("float32"), {"use_ema": False}
    optimizer, theirs = with_rounds(3), in_keras(variables, {**config, STEPS_OF: 3}, 0)
    train(optimizer, variables, range(calls))
    to_keras_optimizer(optimizer, variables, theirs)
    held = theirs.values()
    assert held["r/iteration"] == calls
    waiting = [gradients_of(variables, step)[0] for step in range(3, calls)]
    np.testing.assert_array_equal(held["r/w_gradient_accumulator"], sum(waiting))
    others = {name: v.copy() for name, v in variables.items()}
    again = from_keras_optimizer(theirs, others, with_rounds(3))
    assert (int(again.iterations), again.accumulated_calls) == (1, calls - 3)
    train(optimizer, variables, range(5, 9))
    train(again, others, range(5, 9))
    np.testing.assert_equal(others, variables)


def test_rows_that_wait_are_dense_in_keras():
    variables = {"t": np.ones((4, 2), "float32")}
    optimizer = with_rounds(2)
    rows = rmsjit.IndexedSlices(np.full((2, 2), 0.5, "float32"), [1, 3])
    optimizer.apply_gradients([(rows, variables["t"])])
    optimizer.build(list(variables.values()))
    theirs = in_keras(variables, {"use_ema": False, STEPS_OF: 2}, 0)
    to_keras_optimizer(optimizer, variables, theirs)
    expected = [[0, 0], [0.5, 0.5], [0, 0], [0.5, 0.5]]
    np.testing.assert_array_equal(theirs.values()["r/t_gradient_accumulator"], expected)


@pytest.mark.parametrize(
    ("settings", "config", "match"),
    [
        ({"steps": 3}, {STEPS_OF: 2}, "must be the same, got 3 here and 2"),
        (
            {"steps": 2, "gradient_accumulation_reduction": "sum"},
            {STEPS_OF: 2},
            "takes the mean of gradients, and here it is the sum",
        ),
        ({"steps": 2, "use_ema": True}, {STEPS_OF: 2, "use_ema": True}, "moves averages at every"),
        ({"use_ema": True}, {}, "the slot 'average', which is here only"),
        ({"master_weights": True}, {}, "the slot 'master', which is here only"),
    ],
)
def test_rounds_that_would_not_go_on(settings, config, match):
    variables = new_variables("float32")
    optimizer = with_rounds(**settings)
    theirs = in_keras(variables, {"use_ema": False, STEPS_OF: None, **config}, 0)
    optimizer.build(list(variables.values()))
    for act in (
        lambda: from_keras_optimizer(theirs, variables, optimizer),
        lambda: to_keras_optimizer(optimizer, variables, theirs),
    ):
        with pytest.raises(ValueError, match=match):
            act()


# --- files, without Keras -------------------------------------------------------------------

FILES = ["keras.keras", "keras.weights.h5", "tf_keras.keras", "tf_keras.weights.h5"]


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_a_recorded_run(h5py, file):
    library = file.split(".")[0]
    theirs, variables, _ = recorded(library)
    optimizer = from_keras_file(GOLDEN / file, variables, of_record(library))
    by_name = from_keras_optimizer(theirs, variables, of_record(library))
    assert int(optimizer.iterations) == 5
    np.testing.assert_equal(slots_of(optimizer, variables), slots_of(by_name, variables))


def datasets(h5py, path):
    """All that a file of Keras holds, but for the time at which a zip member was written."""
    content, members = path, {}
    if str(path).endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
            content = io.BytesIO(members.pop("model.weights.h5"))
    found = {}

    def note(name, held):
        if isinstance(held, h5py.Dataset):
            found[name] = held[()]

    with h5py.File(content) as file:
        file.visititems(note)
    return members, found


@pytest.mark.parametrize("file", FILES)
def test_a_state_is_put_into_a_file(h5py, tmp_path, file):
    library = file.split(".")[0]
    _, variables, _ = recorded(library)
    path = tmp_path / file
    shutil.copyfile(GOLDEN / file, path)
    optimizer = from_keras_file(path, variables, of_record(library))
    to_keras_file(optimizer, variables, path)
    np.testing.assert_equal(datasets(h5py, path), datasets(h5py, GOLDEN / file))
    train(optimizer, variables, MORE)
    to_keras_file(optimizer, variables, path)
    again = from_keras_file(path, variables, of_record(library))
    assert int(again.iterations) == 10
    np.testing.assert_equal(slots_of(again, variables), slots_of(optimizer, variables))
    members, _ = datasets(h5py, path)
    assert members == datasets(h5py, GOLDEN / file)[0]
    assert [other.name for other in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("file", FILES)
def test_a_file_with_another_number_of_variables(h5py, tmp_path, file):
    library = file.split(".")[0]
    _, variables, _ = recorded(library)
    path, optimizer = tmp_path / file, of_record(library)
    shutil.copyfile(GOLDEN / file, path)
    for other in (dict(list(variables.items())[:1]), {**variables, "x": np.ones(2, np.float32)}):
        needed = 1 + 3 * len(other)
        match = rf"can't be loaded: it has [78] optimizer variables, but must have {needed}"
        with pytest.raises(ValueError, match=match):
            from_keras_file(path, other, optimizer)
    swapped = dict(reversed(variables.items()))
    with pytest.raises(ValueError, match=r"velocity of '.*bias.*' must be of shape \(4,\), got"):
        from_keras_file(path, swapped, optimizer)
    optimizer.build(list(variables.values()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"can't be written to: .* must be of shape \(4,\), got"):
        to_keras_file(optimizer, swapped, path)
    assert path.read_bytes() == before


def test_a_file_of_half_precision(h5py, tmp_path):
    """HDF5 has no bfloat16: Keras writes two bytes, and beside them what they are."""
    _, variables, _ = recorded("keras")
    path = tmp_path / "a.weights.h5"
    shutil.copyfile(GOLDEN / "keras.weights.h5", path)
    with h5py.File(path, "r+") as file:
        held = file["optimizer/vars"]
        for number in map(str, range(2, 8)):
            value = held[number][()].astype(ml_dtypes.bfloat16)
            del held[number]
            held.create_dataset(number, data=value).attrs["dtype"] = "bfloat16"
    variables = {name: v.astype(ml_dtypes.bfloat16) for name, v in variables.items()}
    optimizer = from_keras_file(path, variables, of_record("keras"))
    velocity = golden("keras")[1]["state/rm_sprop/model_dense_bias_velocity"]
    np.testing.assert_array_equal(
        optimizer.get_slot(variables["model/dense/bias"], "rms").numpy(),
        velocity.astype(ml_dtypes.bfloat16),
    )
    train(optimizer, variables, MORE)
    to_keras_file(optimizer, variables, path)
    again = from_keras_file(path, variables, of_record("keras"))
    np.testing.assert_equal(slots_of(again, variables), slots_of(optimizer, variables))


def test_files_that_are_none_of_keras(h5py, tmp_path):
    _, variables, _ = recorded("keras")
    optimizer = of_record("keras")
    for name in ("model.h5", "model.npz"):
        with pytest.raises(ValueError, match=r"its name must end in \.keras or \.weights\.h5"):
            from_keras_file(tmp_path / name, variables, optimizer)
    with pytest.raises(FileNotFoundError):
        from_keras_file(tmp_path / "no.keras", variables, optimizer)
    path = tmp_path / "a.keras"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.keras can't be loaded: it is no \.keras file"):
        from_keras_file(path, variables, optimizer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"it must hold config.json and model.weights.h5"):
        from_keras_file(path, variables, optimizer)
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones(3)
    with pytest.raises(ValueError, match="it was saved without an optimizer"):
        from_keras_file(path, variables, optimizer)


def with_config(path, change):
    """A copy of the recorded `.keras` file with another `config.json`."""
    with zipfile.ZipFile(GOLDEN / "keras.keras") as archive, zipfile.ZipFile(path, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            copy.writestr(name, content)
    return path


def test_the_configuration_in_a_file(h5py, tmp_path):
    _, variables, _ = recorded("keras")
    path, optimizer = tmp_path / "a.keras", of_record("keras")
    with_config(path, lambda config: config.update(compile_config=None))
    with pytest.raises(ValueError, match=r"its config\.json describes no optimizer"):
        from_keras_file(path, variables, optimizer)
    with_config(path, lambda config: config["compile_config"]["optimizer"]["config"].pop("rho"))
    with pytest.raises(TypeError, match="the optimizer of Keras must be an RMSprop"):
        from_keras_file(path, variables, optimizer)
    outside = like_keras("keras", epsilon="outside")
    with pytest.raises(ValueError, match="the place of epsilon: outside of the root here, inside"):
        from_keras_file(GOLDEN / "keras.keras", variables, outside)


def test_values_in_another_file_are_not_read(h5py, tmp_path):
    """HDF5 may name any file of the machine as the place of a dataset."""
    _, variables, _ = recorded("keras")
    path, secret = tmp_path / "a.weights.h5", tmp_path / "secret"
    shutil.copyfile(GOLDEN / "keras.weights.h5", path)
    secret.write_bytes(bytes(48))
    with h5py.File(path, "r+") as file:
        del file["optimizer/vars/2"]
        file.create_dataset("optimizer/vars/2", (3, 4), "float32", external=[(str(secret), 0, 48)])
    with pytest.raises(ValueError, match=r"velocity of 'model/dense/kernel' is stored in another"):
        from_keras_file(path, variables, of_record("keras"))
    for linked in ("optimizer/vars/2", "optimizer"):
        with h5py.File(path, "r+") as file:
            del file[linked]
            file[linked] = h5py.ExternalLink(str(GOLDEN / "keras.weights.h5"), linked)
        with pytest.raises(ValueError, match="its variables are links into another file"):
            from_keras_file(path, variables, of_record("keras"))


@pytest.mark.slow
def test_a_configuration_that_is_too_large(h5py, tmp_path):
    """A zip of some kilobytes can hold gigabytes."""
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(2**26 + 1))
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match=r"its config\.json must be below 67108864 bytes"):
        from_keras_file(path, {}, of_record("keras"))


def test_without_h5py(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    _, variables, _ = recorded("keras")
    with pytest.raises(ImportError, match="files of Keras need h5py: pip install h5py"):
        from_keras_file(GOLDEN / "keras.keras", variables, of_record("keras"))


# --- live -----------------------------------------------------------------------------------


def keras_run(library, variables, **settings):
    """An optimizer of Keras over variables of these values, built, and the variables by name."""
    settings = {"learning_rate": LEARNING_RATE, **settings}
    if library == "keras":
        keras = pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")
        held = [keras.Variable(v, name=name, dtype=v.dtype.name) for name, v in variables.items()]
        optimizer = keras.optimizers.RMSprop(**settings)
    else:
        keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")
        import tensorflow as tf

        held = [tf.Variable(value, name=name) for name, value in variables.items()]
        face = keras.optimizers.legacy if library == "tf_keras_legacy" else keras.optimizers
        optimizer = face.RMSprop(**settings)
    if library == "tf_keras_legacy":
        optimizer._create_all_weights(held)
    else:
        optimizer.build(held)
    return optimizer, {getattr(v, "path", v.name).removesuffix(":0"): v for v in held}


def train_keras(optimizer, held, steps):
    arrays = {name: v.numpy() for name, v in held.items()}
    for step in steps:
        pairs = zip(gradients_of(arrays, step), held.values(), strict=True)
        optimizer.apply_gradients([(as_tensor(gradient, v), v) for gradient, v in pairs])


def as_tensor(array, variable):
    """A tensor of the library that a variable is of; Keras 3 has several backends."""
    if hasattr(variable, "path"):
        import keras

        return keras.ops.convert_to_tensor(array)
    import tensorflow as tf

    return tf.constant(array)


def values_of(held):
    return {name: np.array(v.numpy()) for name, v in held.items()}


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of TensorFlow's own
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_runs_travel_both_ways(library, settings, dtype):
    decay = {} if library == "tf_keras_legacy" else {"weight_decay": 0.125}  # exact in float32
    theirs, held = keras_run(library, new_variables(dtype), **settings, **decay)
    train_keras(theirs, held, STEPS)
    variables = values_of(held)
    optimizer = like_keras(library, **settings, **decay)
    optimizer.learning_rate = float(np.float32(LEARNING_RATE))  # as Keras keeps it
    if library == "tf_keras_legacy":
        optimizer.rho = float(np.float32(0.9))
        optimizer.momentum = float(np.float32(settings["momentum"]))
    from_keras_optimizer(theirs, variables, optimizer)
    train_keras(theirs, held, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(held).values(), variables)

    again, held = keras_run(library, variables, **settings, **decay)
    named = dict(zip(held, variables.values(), strict=True))  # Keras 3 counts names
    to_keras_optimizer(optimizer, named, again)
    assert int(again.iterations.numpy()) == 10
    train_keras(again, held, range(10, 15))
    train(optimizer, named, range(10, 15))
    assert_close(values_of(held).values(), named)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", SETTINGS)
def test_lists_of_weights_of_the_legacy_optimizer(settings, tmp_path):
    """`get_weights` and `set_weights` have its order; and a checkpoint in between."""
    theirs, held = keras_run("tf_keras_legacy", new_variables("float32"), **settings)
    train_keras(theirs, held, STEPS)
    variables, optimizer = values_of(held), like_keras("tf_keras_legacy", **settings)
    optimizer.build(list(variables.values()))
    optimizer.set_weights(theirs.get_weights())
    save(tmp_path / "run.npz", optimizer, variables)
    optimizer, variables = load(tmp_path / "run.npz")
    train_keras(theirs, held, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(held).values(), variables)

    again, held = keras_run("tf_keras_legacy", variables, **settings)
    again.set_weights(optimizer.get_weights())
    train_keras(again, held, range(10, 15))
    train(optimizer, variables, range(10, 15))
    assert_close(values_of(held).values(), variables)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_files_travel_both_ways(library, ending, tmp_path):
    keras = pytest.importorskip(library, reason=f"{library} is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    layers = [keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.RMSprop(LEARNING_RATE, momentum=0.9, weight_decay=0.1))
    held = {getattr(v, "path", v.name): v for v in model.trainable_variables}
    train_keras(model.optimizer, held, STEPS)
    path = tmp_path / f"model{ending}"
    (model.save if ending == ".keras" else model.save_weights)(path)
    variables = values_of(held)
    optimizer = like_keras(library, centered=False, weight_decay=0.1)
    from_keras_file(path, variables, optimizer)
    train_keras(model.optimizer, held, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(held).values(), variables)

    to_keras_file(optimizer, variables, path)
    if ending == ".keras":
        model = keras.models.load_model(path)
    else:
        model.load_weights(path)
    held = {getattr(v, "path", v.name): v for v in model.trainable_variables}
    for variable, value in zip(held.values(), variables.values(), strict=True):
        variable.assign(value)
    assert int(model.optimizer.iterations.numpy()) == 10
    train_keras(model.optimizer, held, range(10, 15))
    train(optimizer, variables, range(10, 15))
    assert_close(values_of(held).values(), variables)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "settings",
    [{"use_ema": True, "ema_momentum": 0.75}, {STEPS_OF: 2}, {STEPS_OF: 3, "momentum": 0.9}],
    ids=["average", "two calls", "three calls"],
)
def test_averages_and_rounds_travel_both_ways(settings, dtype):
    """Five calls are in the middle of a round, and ten of three as well."""
    numbers = {"momentum": 0.0, "centered": False, "weight_decay": 0.125, **settings}
    theirs, held = keras_run("keras", new_variables(dtype), **numbers)
    train_keras(theirs, held, STEPS)
    variables = values_of(held)

    def of_here():
        form = {"momentum": numbers["momentum"], "centered": False, "weight_decay": 0.125}
        config = like_keras("keras", **form).get_config() | settings
        return rmsjit.RMSprop.from_config(config | {"learning_rate": float(np.float32(0.05))})

    optimizer = from_keras_optimizer(theirs, variables, of_here())
    train_keras(theirs, held, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(held).values(), variables)

    again, held = keras_run("keras", variables, **numbers)
    named = dict(zip(held, variables.values(), strict=True))
    to_keras_optimizer(optimizer, named, again)
    assert int(again._iterations.numpy()) == 10
    train_keras(again, held, range(10, 15))
    train(optimizer, named, range(10, 15))
    assert_close(values_of(held).values(), named)
    if "use_ema" in settings:
        averages = [v.numpy() for v in again._model_variables_moving_average]
        own = {name: optimizer.get_slot(v, "average").numpy() for name, v in named.items()}
        assert_close(averages, own)


def state_in(model):
    """The count of calls, and all else that an optimizer of Keras holds, in its order."""
    return [np.array(v.numpy()) for v in model.optimizer.variables]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("settings", [{"use_ema": True}, {STEPS_OF: 2}], ids=["average", "round"])
def test_averages_and_rounds_in_files(settings, ending, tmp_path):
    keras = pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    layers = [keras.layers.Input((3,)), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.RMSprop(LEARNING_RATE, momentum=0.9, **settings))
    held = {v.path: v for v in model.trainable_variables}
    train_keras(model.optimizer, held, STEPS)
    path = tmp_path / f"model{ending}"
    (model.save if ending == ".keras" else model.save_weights)(path)
    variables = values_of(held)
    config = like_keras("keras", centered=False).get_config() | settings
    optimizer = from_keras_file(path, variables, rmsjit.RMSprop.from_config(config))
    train_keras(model.optimizer, held, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(held).values(), variables)

    before = state_in(model)
    to_keras_file(optimizer, variables, path)
    if ending == ".keras":
        model = keras.models.load_model(path)
    else:
        model.load_weights(path)
    after = state_in(model)
    assert after.pop(0) == before.pop(0) == 10
    assert_close(after, dict(enumerate(before)))
