"""Optimizers and variables in the files and messages of other programs go on, or warn."""

import copy
import gc
import io
import json
import mmap
import pickle
import warnings

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.owners import held_elsewhere
from strategies import state_of


def trained(steps, state=None):
    """A run of `steps` steps, new or going on; large arrays, which are unpickled without a copy."""
    if state is None:
        w, table = np.ones(1000), np.asfortranarray(np.ones((50, 40)))
        bias = rmsjit.Variable(np.ones(300), name="bias")
        optimizer = rmsjit.RMSprop(0.1, momentum=0.9)
        state = {"w": w, "optimizer": optimizer, "table": table, "bias": bias}
    for _ in range(steps):
        pairs = [(0.5 * np.asarray(v), v) for v in variables_of(state)]
        state["optimizer"].apply_gradients(pairs)
    return state


def variables_of(state):
    return [state["w"], state["table"], state["bias"]]


def everything(state):
    return state_of(state["optimizer"], variables_of(state))


def goes_on(state):
    """Whether two more steps end where a run without a break does."""
    same = everything(trained(2, state)) == everything(trained(5))
    return same and state["optimizer"].iterations == 5


def out_of_band(value, kind):
    """A copy by pickle protocol 5, whose buffers travel beside it in memory of some kind."""
    buffers = []
    text = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(text, buffers=[kind(buffer.raw()) for buffer in buffers])


def mapped(raw):
    """A copy in memory of which nobody can tell who holds it, as a message of dask or Ray is."""
    memory = mmap.mmap(-1, max(1, raw.nbytes))
    memory[: raw.nbytes] = raw
    return memoryview(memory)[: raw.nbytes]


def by_joblib(value, **options):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(value, file, **options)
    file.seek(0)
    return joblib.load(file)


def by_cloudpickle(value):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(value))


WAYS = {
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "pickle 4": lambda value: pickle.loads(pickle.dumps(value, 4)),
    "pickle 5": lambda value: pickle.loads(pickle.dumps(value, 5)),
    "out of band": lambda value: out_of_band(value, bytearray),
    "out of band, mapped": lambda value: out_of_band(value, mapped),
    "joblib": by_joblib,
    "joblib, compressed": lambda value: by_joblib(value, compress=3),
    "cloudpickle": by_cloudpickle,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every_way
def test_a_run_goes_on(way):
    assert goes_on(way(trained(3)))


@every_way
def test_a_run_goes_on_after_two_copies(way):
    assert goes_on(way(way(trained(3))))


# Arrays that the user holds, and the view of each that is the variable.
HELD = {
    "itself": (lambda: np.asfortranarray(np.ones((40, 130))), lambda held: held),
    "transposed": (lambda: np.ones((130, 40)), lambda held: held.T),
    "flat": (lambda: np.ones(5200), lambda held: held.reshape((40, 130), order="F")),
    "square": (lambda: np.ones((64, 64)), lambda held: held.T),
    "reversed": (lambda: np.ones((40, 130)), lambda held: held[::-1]),
}


@every_way
@pytest.mark.parametrize("name", HELD)
def test_copies_of_copies_have_the_axes_of_the_variable(name, way):
    make, view = HELD[name]
    held, optimizer = make(), rmsjit.RMSprop(0.1)
    gradient = np.arange(held.size, dtype=float).reshape(view(held).shape)
    optimizer.apply_gradients([(gradient, view(held))])
    (once, one), (twice, two) = (pair := way((optimizer, held))), WAYS["pickle 4"](way(pair))
    for other, memory in [(once, one), (twice, two)]:
        for mine, copied in zip(optimizer.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, copied)
        other.apply_gradients([(gradient, view(memory))])
    optimizer.apply_gradients([(gradient, view(held))])
    np.testing.assert_array_equal(one, held)
    np.testing.assert_array_equal(two, held)


@every_way
def test_a_copy_counts_for_itself(way):
    state = trained(3)
    other = way(state)
    trained(1, state)
    assert other["optimizer"].iterations == 3
    assert goes_on(other)
    assert state["optimizer"].iterations == 4


@every_way
def test_two_optimizers_with_one_count_of_steps(way):
    count, w, v = rmsjit.Variable(np.zeros((), np.int64), name="count"), np.ones(500), np.ones(500)
    one, other = rmsjit.RMSprop(), rmsjit.RMSprop()
    one.iterations = other.iterations = count
    one.apply_gradients([(w, w)])
    one, other, w, v = way((one, other, w, v))
    one.apply_gradients([(w, w)])
    other.apply_gradients([(v, v)])
    assert (one.iterations, other.iterations) == (3, 3)


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_a_run_goes_on_in_a_mapped_file(mode, tmp_path):
    joblib = pytest.importorskip("joblib")
    joblib.dump(trained(3), tmp_path / "run")
    assert goes_on(joblib.load(tmp_path / "run", mmap_mode=mode))
    again = joblib.load(tmp_path / "run")
    assert again["optimizer"].iterations == 3  # the optimizer's own memory is not in the file
    assert goes_on(again) == (mode == "c")  # the variables are


@pytest.mark.parametrize("kind", [bytes, lambda raw: mapped(raw).toreadonly()])
def test_read_only_memory_is_refused_for_variables_only(kind):
    """As in the object store of Ray: an actor copies the parameters, which then are others."""
    state = out_of_band(trained(3), kind)
    with pytest.raises(ValueError, match="variable 0 must be writeable, got a read-only array"):
        trained(1, state)
    read_only = dict(state)  # somebody still has it
    state |= {name: state[name].copy() for name in ("w", "table")}
    state["bias"] = rmsjit.Variable(state["bias"].array.copy(), name="bias")
    with pytest.warns(RuntimeWarning, match="continues with the state of Variable.* rebind"):
        trained(1, state)
    assert everything(trained(1, state)) == everything(trained(5))
    assert not read_only["w"].flags.writeable


APART = {
    "the same values": (lambda w: w, "continues with the state of Variable"),
    "other values": (lambda w: w + 1, "starts without state"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("change", "message"), APART.values(), ids=APART)
def test_what_travels_apart_is_told(name, change, message):
    way = WAYS[name]
    w, optimizer = np.linspace(0, 1, 1000), rmsjit.RMSprop(0.1)
    for _ in range(2):
        optimizer.apply_gradients([(w, w)])
    other, moved = way(optimizer), change(way(w))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            other.apply_gradients([(moved, moved)])
            optimizer.apply_gradients([(w, w)])
    told = [warning for warning in caught if message in str(warning.message)]
    # joblib always parts them, so nobody can know whether they travelled apart.
    assert len(told) == (0 if "joblib" in name and change(w) is w else 1)
    assert np.array_equal(moved, w) == (change(w) is w)


# --- Who holds what was unpickled ------------------------------------------------------------

LOADED = {
    "protocol 4": lambda array: pickle.loads(pickle.dumps(array, 4)),
    "protocol 5": lambda array: pickle.loads(pickle.dumps(array, 5)),
    "bytes": lambda array: out_of_band(array, bytes),
    "bytearray": lambda array: out_of_band(array, bytearray),
}
ALSO_HELD = {
    "the array": lambda array: array,
    "a view": lambda array: array[10:20],
    "a memoryview": lambda array: memoryview(array),
    "what it is a view of": lambda array: array.base,
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 10_000])
@pytest.mark.parametrize("load", LOADED.values(), ids=LOADED)
def test_an_array_that_was_unpickled_is_held_by_whoever_has_it(load, size):
    array = load(np.ones(size))
    views = [array.view(), array[1:]]
    for hold in ALSO_HELD.values():
        held = hold(array)
        assert held_elsewhere([views]) == [True]
        del held
    assert held_elsewhere([views], as_arrays=True) == [True]
    del array
    gc.collect()
    assert held_elsewhere([views]) == [False]
    assert held_elsewhere([views], as_arrays=True) == [False]


@pytest.mark.parametrize("hold", ["memoryview", "bytearray", "array"])
def test_memory_of_the_users_own_is_held(hold):
    memory = memoryview(bytearray(8000))
    views = [np.frombuffer(memory).view()]
    held = {
        "memoryview": memory,
        "bytearray": memory.obj,
        "array": np.frombuffer(memory.obj),
    }[hold]
    del memory
    assert held_elsewhere([views]) == [True]
    assert held_elsewhere([views], as_arrays=True) == [False]
    del held
    assert held_elsewhere([views]) == [False]


def test_memory_that_was_released_may_be_held():
    memory = memoryview(np.ones(1000))
    views = [np.frombuffer(memory).view()]
    assert held_elsewhere([views]) == [True]


# --- Configurations --------------------------------------------------------------------------

SETTINGS = {
    "sparse": "exact",
    "nonfinite": "skip",
    "num_threads": 2,
    "track_norms": True,
}


@pytest.mark.parametrize("names", [[name] for name in SETTINGS] + [list(SETTINGS)])
def test_a_configuration_keeps_how_steps_are_run(names):
    given = {name: SETTINGS[name] for name in names}
    config = json.loads(json.dumps(rmsjit.RMSprop(0.5, **given).get_config()))
    assert config.pop("rmsjit") == given
    assert config == rmsjit.RMSprop(0.5).get_config()
    for make in (rmsjit.RMSprop.from_config, rmsjit.forms.from_config):
        made = make(config | {"rmsjit": given})
        assert made.get_config() == config | {"rmsjit": given}
        assert made.learning_rate == 0.5


def test_a_form_of_another_library_keeps_them_too():
    optimizer = rmsjit.forms.torch(0.5, nonfinite="raise")
    made = rmsjit.forms.from_config(optimizer.get_config())
    assert (made.form, made.get_config()) == (optimizer.form, optimizer.get_config())


def test_defaults_are_not_in_a_configuration():
    assert "rmsjit" not in rmsjit.RMSprop(0.5, sparse="rows", num_threads=None).get_config()


def test_a_configuration_is_not_changed_and_its_faults_are_told():
    config = rmsjit.RMSprop(nonfinite="skip").get_config()
    before = json.dumps(config)
    rmsjit.RMSprop.from_config(config)
    assert json.dumps(config) == before
    with pytest.raises(TypeError, match="nonsense"):
        rmsjit.RMSprop.from_config(config | {"rmsjit": {"nonsense": 1}})
    with pytest.raises(ValueError, match="nonfinite must be"):
        rmsjit.RMSprop.from_config(config | {"rmsjit": {"nonfinite": "maybe"}})


# --- Parameters that are new at each step ----------------------------------------------------


def test_the_warning_of_rebound_parameters_names_the_idiom():
    optimizer = rmsjit.RMSprop(0.1)

    def train(w):
        for _ in range(100):
            w = w * 0.9999
            optimizer.apply_gradients([(np.ones(3), w)])

    with pytest.warns(RuntimeWarning, match=r"`w = w\*0\.9999` before each step.*`w \*= 0\.9999`"):
        train(np.ones(3))


# --- Workers ---------------------------------------------------------------------------------


class Trainer:
    """An actor, as of dask or Ray: it keeps a run, and is asked to go on."""

    def __init__(self, state):
        self.state = state

    def train(self, steps):
        return everything(trained(steps, self.state))


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of dask
def test_workers_and_actors_of_dask():
    distributed = pytest.importorskip("distributed")
    expected = everything(trained(5))
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        state = client.submit(trained, 3)
        assert goes_on(state.result())
        assert everything(client.submit(trained, 2, state).result()) == expected
        actor = client.submit(Trainer, trained(3), actor=True).result()
        assert actor.train(2).result() == expected


@pytest.mark.slow
@pytest.mark.live
def test_workers_of_joblib():
    joblib = pytest.importorskip("joblib")
    parallel = joblib.Parallel(n_jobs=2)
    for state in parallel(joblib.delayed(trained)(2, trained(3)) for _ in range(2)):
        assert everything(state) == everything(trained(5))


@pytest.mark.parametrize("which", ["the variable", "the view"])
def test_a_copy_is_saved_by_the_names_of_any_of_its_views(which, tmp_path):
    """As where a strategy keeps a view of an earlier step alive."""
    w, opt = np.ones(3), rmsjit.RMSprop(0.1)
    view = w[...]
    for one in (w, view):
        opt.apply_gradients([(np.ones(3), one)])
    opt, w, view = copy.deepcopy((opt, w, view))
    named = {"w": w if which == "the variable" else view}
    rmsjit.save(tmp_path / "run.npz", opt, named)
    loaded, variables = rmsjit.load(tmp_path / "run.npz")
    for one, variable in ((opt, named["w"]), (loaded, variables["w"])):
        one.apply_gradients([(np.ones(3), variable)])
    np.testing.assert_array_equal(named["w"], variables["w"])
    assert len(loaded.weights) == 2
