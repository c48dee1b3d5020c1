"""State to and from torch and tf-keras; live where these are installed."""

import sys

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit.checkpoints.save import load, save
from rmsjit.interop import from_torch_state_dict, to_torch_state_dict

SETTINGS = [
    pytest.param({"momentum": momentum, "centered": centered}, id=f"{momentum}-{centered}")
    for momentum in (0.0, 0.9)
    for centered in (False, True)
]


def torch_form(momentum=0.0, centered=False, learning_rate=0.05):
    """An optimizer that has epsilon where torch has it."""
    optimizer = rmsjit.RMSprop(learning_rate, rho=0.99, epsilon=1e-8, centered=centered)
    optimizer.momentum = momentum
    return optimizer


def new_variables(dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (4,), "scale": ()}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def gradients_of(variables, step):
    rng = np.random.default_rng([1, step])
    return [rng.standard_normal(v.shape).astype(v.dtype) for v in variables.values()]


def train(optimizer, variables, steps):
    for step in steps:
        gradients = gradients_of(variables, step)
        optimizer.apply_gradients(zip(gradients, variables.values(), strict=True))


def state_dict_of(variables, *, lr=0.5, momentum=0.9, centered=True, **group):
    """A state_dict of torch with arrays in the place of tensors."""
    state = {
        number: {
            "step": np.float32(7),
            "square_avg": np.full_like(variable, 2 + number),
            "momentum_buffer": np.full_like(variable, 3),
            "grad_avg": np.full_like(variable, 0.5),
        }
        for number, variable in enumerate(variables.values())
    }
    settings = {"lr": lr, "alpha": 0.99, "eps": 1e-8, "momentum": momentum, "centered": centered}
    group = {**settings, "weight_decay": 0, "params": list(range(len(variables))), **group}
    return {"state": state, "param_groups": [group]}


# --- torch, without torch -------------------------------------------------------------------


def test_state_of_torch_with_arrays():
    variables = new_variables()
    before = {name: variable.copy() for name, variable in variables.items()}
    optimizer = from_torch_state_dict(state_dict_of(variables), variables)
    assert int(optimizer.iterations) == 7
    config = optimizer.get_config()
    expected = {"learning_rate": 0.5, "rho": 0.99, "momentum": 0.9, "epsilon": 1e-8}
    assert expected.items() <= config.items()
    assert optimizer.centered
    for number, (name, variable) in enumerate(variables.items()):
        np.testing.assert_array_equal(variable, before[name])
        assert (optimizer.get_slot(variable, "rms").numpy() == 2 + number).all()
        assert (optimizer.get_slot(variable, "momentum").numpy() == 1.5).all()
        assert (optimizer.get_slot(variable, "mg").numpy() == 0.5).all()


def test_parameters_without_state_start_anew():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    del state_dict["state"][1]
    state_dict["state"][2]["step"] = np.float32(9)
    optimizer = torch_form(0.9, centered=True)
    train(optimizer, variables, range(1))
    assert from_torch_state_dict(state_dict, variables, optimizer) is optimizer
    assert not optimizer.get_slot(variables["b"], "rms").numpy().any()
    assert optimizer.get_slot(variables["w"], "rms").numpy().all()
    assert int(optimizer.iterations) == 9
    assert optimizer.learning_rate == 0.05


def test_groups_of_equal_hyperparameters():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    [group] = state_dict["param_groups"]
    state_dict["param_groups"] = [{**group, "params": [0, 1]}, {**group, "params": [2]}]
    optimizer = from_torch_state_dict(state_dict, variables)
    assert optimizer.get_slot(variables["scale"], "rms").numpy() == 4
    state_dict["param_groups"][1]["lr"] = 0.25
    with pytest.raises(ValueError, match=r"its groups differ in lr: \[0.5, 0.25\]"):
        from_torch_state_dict(state_dict, variables)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight_decay": 0.1}, "it has weight_decay or maximize, which rmsjit lacks"),
        ({"maximize": True}, "it has weight_decay or maximize, which rmsjit lacks"),
        ({"params": [0, 1]}, "it has 2 parameters, and there are 3 variables"),
        ({"momentum": 0.0}, "slots: saved mg, rms, here mg, momentum, rms"),
        ({"centered": False}, "slots: saved momentum, rms, here mg, momentum, rms"),
        ({"alpha": None}, r"none of torch\.optim.RMSprop: TypeError"),
    ],
)
def test_state_that_does_not_fit_is_refused(change, match):
    variables = new_variables()
    state_dict = state_dict_of(variables, **change)
    optimizer = torch_form(0.9, centered=True)
    train(optimizer, variables, range(2))
    before = [optimizer.get_weights(), {name: v.copy() for name, v in variables.items()}]
    with pytest.raises(ValueError, match=match):
        from_torch_state_dict(state_dict, variables, optimizer)
    np.testing.assert_equal([optimizer.get_weights(), variables], before)


def test_wrong_shapes_and_dtypes_are_named():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    state_dict["state"][0]["square_avg"] = np.ones((4, 3))
    state_dict["state"][1]["grad_avg"] = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="the state_dict can't be loaded: it does not") as error:
        from_torch_state_dict(state_dict, variables)
    assert "shape of slot 'rms' of 'w': saved (4, 3), here (3, 4)" in str(error.value)
    assert "dtype of slot 'mg' of 'b': saved float32, here float64" in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (
            rmsjit.RMSprop(momentum=0.9, centered=True),
            "place of epsilon: saved outside, here inside",
        ),
        (rmsjit.RMSprop(), "slots: saved mg, momentum, rms, here rms"),
    ],
)
def test_optimizer_that_torch_lacks_is_refused(optimizer, match):
    variables = new_variables()
    with pytest.raises(ValueError, match=match):
        from_torch_state_dict(state_dict_of(variables), variables, optimizer)
    assert len(optimizer.weights) == 1


def test_epsilon_of_zero_is_refused():
    variables = new_variables()
    with pytest.raises(ValueError, match="eps must be positive, got 0"):
        from_torch_state_dict(state_dict_of(variables, eps=0), variables)
    from_torch_state_dict(state_dict_of(variables, eps=0), variables, torch_form(0.9, True))


@pytest.mark.parametrize("state_dict", [None, {}, {"state": {}, "param_groups": []}, {"state": 3}])
def test_what_is_no_state_dict(state_dict):
    with pytest.raises(ValueError, match=r"none of torch\.optim.RMSprop"):
        from_torch_state_dict(state_dict, new_variables())


def test_optimizer_of_another_class():
    variables = new_variables()
    first = rmsjit.train.RMSPropOptimizer(0.1)
    with pytest.raises(TypeError, match="optimizer must be an RMSprop, got RMSPropOptimizer"):
        from_torch_state_dict(state_dict_of(variables), variables, first)
    with pytest.raises(TypeError, match="optimizer must be an RMSprop, got RMSPropOptimizer"):
        to_torch_state_dict(first, variables)


def test_what_torch_can_not_continue():
    variables = new_variables()
    with pytest.raises(ValueError, match=r"torch\.optim.RMSprop has epsilon outside of the root"):
        to_torch_state_dict(rmsjit.RMSprop(momentum=0.9), variables)
    complex_variables = {"z": np.ones(2, np.complex64)}
    with pytest.raises(TypeError, match=r"variables\['z'\] must be real, got dtype complex64"):
        to_torch_state_dict(rmsjit.RMSprop(), complex_variables)
    with pytest.raises(TypeError, match=r"variables\['n'\] must be real, got dtype int64"):
        to_torch_state_dict(rmsjit.RMSprop(), {"n": np.arange(3)})
    optimizer = torch_form()
    train(optimizer, variables, range(1))
    with pytest.raises(ValueError, match="lacks Variable_1"):
        to_torch_state_dict(optimizer, {"w": variables["w"], "scale": variables["scale"]})


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    variables = new_variables()
    optimizer = torch_form()
    train(optimizer, variables, range(1))
    with pytest.raises(ImportError, match="pip install torch"):
        to_torch_state_dict(optimizer, variables)


# --- torch, live ----------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def train_torch(torch, optimizer, parameters, variables, steps):
    for step in steps:
        for parameter, gradient in zip(parameters, gradients_of(variables, step), strict=True):
            parameter.grad = to_tensor(torch, gradient)
        optimizer.step()


def to_tensor(torch, array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def torch_run(torch, variables, lr=0.05, **settings):
    parameters = [torch.nn.Parameter(to_tensor(torch, v)) for v in variables.values()]
    return torch.optim.RMSprop(parameters, lr=lr, **settings), parameters


def assert_close(parameters, variables, dtype):
    ulp = float(ml_dtypes.finfo(np.dtype(dtype)).eps)
    for parameter, variable in zip(parameters, variables.values(), strict=True):
        trained = parameter.detach().double().numpy()
        tolerance = 16 * ulp * max(1.0, np.abs(trained).max())
        np.testing.assert_allclose(trained, variable.astype(np.float64), rtol=0, atol=tolerance)


@pytest.mark.live
@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16, "float16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_torch_continues_a_run(torch, settings, dtype):
    variables = new_variables(dtype)
    optimizer = torch_form(**settings)
    train(optimizer, variables, range(3))
    torch_optimizer, parameters = torch_run(torch, variables)
    torch_optimizer.load_state_dict(to_torch_state_dict(optimizer, variables))
    assert torch_optimizer.param_groups[0]["lr"] == 0.05
    assert torch_optimizer.param_groups[0]["momentum"] == settings["momentum"]
    train_torch(torch, torch_optimizer, parameters, variables, range(3, 6))
    train(optimizer, variables, range(3, 6))
    assert_close(parameters, variables, dtype)
    assert int(torch_optimizer.state[parameters[0]]["step"]) == int(optimizer.iterations) == 6


@pytest.mark.live
@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16, "float16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_rmsjit_continues_a_run_of_torch(torch, settings, dtype):
    variables = new_variables(dtype)
    torch_optimizer, parameters = torch_run(torch, variables, **settings)
    train_torch(torch, torch_optimizer, parameters, variables, range(3))
    for parameter, variable in zip(parameters, variables.values(), strict=True):
        variable[...] = parameter.detach().double().numpy().astype(dtype)
    optimizer = from_torch_state_dict(torch_optimizer.state_dict(), variables)
    assert optimizer.learning_rate == 0.05
    train_torch(torch, torch_optimizer, parameters, variables, range(3, 6))
    train(optimizer, variables, range(3, 6))
    assert_close(parameters, variables, dtype)
    assert int(optimizer.iterations) == 6


@pytest.mark.live
def test_learning_rate_that_has_just_changed(torch):
    variables = new_variables()
    schedule = rmsjit.schedules.PiecewiseConstantDecay([2], [0.5, 0.01])
    optimizer = torch_form(0.9, learning_rate=schedule)
    train(optimizer, variables, range(3))
    torch_optimizer, parameters = torch_run(torch, variables)
    torch_optimizer.load_state_dict(to_torch_state_dict(optimizer, variables))
    assert torch_optimizer.param_groups[0]["lr"] == 0.01
    train_torch(torch, torch_optimizer, parameters, variables, range(3, 6))
    train(optimizer, variables, range(3, 6))
    assert_close(parameters, variables, "float64")


@pytest.mark.live
def test_state_of_torch_comes_back(torch, tmp_path):
    variables = new_variables("float32")
    optimizer = torch_form(0.9, centered=True)
    train(optimizer, variables, range(3))
    state_dict = to_torch_state_dict(optimizer, variables)
    torch.save(state_dict, tmp_path / "state.pt")
    resumed = from_torch_state_dict(torch.load(tmp_path / "state.pt"), variables)
    for mine, theirs in zip(resumed.get_weights(), optimizer.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    state_dict["state"][0]["square_avg"].zero_()  # a copy
    assert optimizer.get_slot(variables["w"], "rms").numpy().all()


@pytest.mark.live
def test_momentum_without_steps_and_variables_without_slots(torch):
    variables = new_variables()
    optimizer = torch_form()
    optimizer.build([variables["w"]])
    optimizer.momentum = 0.9
    state = to_torch_state_dict(optimizer, variables)["state"]
    assert list(state) == [0]
    assert not state[0]["momentum_buffer"].any()
    optimizer.learning_rate = 0.0
    train(optimizer, variables, range(1))
    assert not to_torch_state_dict(optimizer, variables)["state"][0]["momentum_buffer"].any()
    optimizer.get_slot(variables["w"], "momentum").assign(np.ones((3, 4)))
    with pytest.raises(ValueError, match="momentum of 'w' can't be divided by the learning rate"):
        to_torch_state_dict(optimizer, variables)


# --- tf-keras, live -------------------------------------------------------------------------


@pytest.fixture
def tf_keras():
    return pytest.importorskip("tf_keras")


def train_keras(optimizer, variables, arrays, steps):
    import tensorflow as tf

    for step in steps:
        gradients = map(tf.constant, gradients_of(arrays, step))
        optimizer.apply_gradients(zip(gradients, variables, strict=True))


def assert_like_keras(optimizer, arrays, keras_optimizer, variables):
    for array, variable in zip(arrays.values(), variables, strict=True):
        np.testing.assert_allclose(array, variable.numpy(), rtol=2e-5, atol=1e-6)
    for ours, theirs in zip(optimizer.get_weights(), keras_optimizer.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.live
@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_go_to_keras_and_back(tf_keras, settings):
    import tensorflow as tf

    arrays = new_variables("float32")
    optimizer = rmsjit.RMSprop(0.05, **settings)
    train(optimizer, arrays, range(3))

    variables = [tf.Variable(array) for array in arrays.values()]
    keras_optimizer = tf_keras.optimizers.legacy.RMSprop(0.05, **settings)
    keras_optimizer._create_all_weights(variables)
    keras_optimizer.set_weights(optimizer.get_weights())
    train_keras(keras_optimizer, variables, arrays, range(3, 6))
    train(optimizer, arrays, range(3, 6))
    assert_like_keras(optimizer, arrays, keras_optimizer, variables)

    resumed = rmsjit.RMSprop(0.05, **settings)
    fresh = {name: v.numpy().copy() for name, v in zip(arrays, variables, strict=True)}
    fresh["scale"] = np.array(fresh["scale"])
    resumed.build(list(fresh.values()))
    resumed.set_weights(keras_optimizer.get_weights())
    train_keras(keras_optimizer, variables, arrays, range(6, 9))
    train(resumed, fresh, range(6, 9))
    assert_like_keras(resumed, fresh, keras_optimizer, variables)


@pytest.mark.live
def test_checkpoint_of_a_run_that_came_from_keras(tf_keras, tmp_path):
    import tensorflow as tf

    arrays = new_variables("float32")
    variables = [tf.Variable(array) for array in arrays.values()]
    keras_optimizer = tf_keras.optimizers.legacy.RMSprop(0.05, momentum=0.5)
    train_keras(keras_optimizer, variables, arrays, range(3))
    optimizer = rmsjit.RMSprop.from_config(keras_optimizer.get_config())
    arrays = {name: np.array(v.numpy()) for name, v in zip(arrays, variables, strict=True)}
    optimizer.build(list(arrays.values()))
    optimizer.set_weights(keras_optimizer.get_weights())
    save(tmp_path / "run.npz", optimizer, arrays)
    resumed, loaded = load(tmp_path / "run.npz")
    keras_optimizer.set_weights(resumed.get_weights())
    train_keras(keras_optimizer, variables, arrays, range(3, 6))
    train(resumed, loaded, range(3, 6))
    assert_like_keras(resumed, loaded, keras_optimizer, variables)
