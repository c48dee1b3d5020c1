"""State to and from torch, and classes made after its RMSprop; live where they are installed."""

import sys

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from golden import form_libraries
from rmsjit.interop import from_torch_state_dict, to_torch_state_dict
from runs import (
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

SETTINGS = [
    pytest.param(
        {"momentum": momentum, "centered": centered, "weight_decay": decay},
        id=f"{momentum}-{centered}-{decay}",
    )
    for momentum in (0.0, 0.9)
    for centered in (False, True)
    for decay in (0.0, 0.1)
]


def like_torch(momentum=0.0, centered=False, weight_decay=0.0, lr=LEARNING_RATE, **form):
    """An optimizer of torch's form, written down apart from what is tested."""
    slots = ["rms", *["momentum"] * (momentum > 0), *["mg"] * centered]
    settings = {
        "learning_rate": "outside" if momentum else "inside",
        "weight_decay": "coupled",
        "one_minus_rho": "exact",
        "mg_average": "difference",
        "quotient": "rate_first",
        "fused": True,
    }
    return rmsjit.RMSprop(
        lr,
        rho=0.99,
        momentum=momentum,
        epsilon=1e-8,
        form=rmsjit.Form.with_slots(*slots, **settings | form),
        weight_decay=weight_decay,
    )


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


@pytest.fixture
def arrays_for_tensors(monkeypatch):
    """Without torch: arrays where a state_dict would have tensors."""
    import rmsjit.exchange.torch_state as torch_state

    monkeypatch.setattr(torch_state, "torch_tensor", np.array)


# --- without torch --------------------------------------------------------------------------


def test_state_of_torch_with_arrays():
    variables = new_variables()
    before = {name: variable.copy() for name, variable in variables.items()}
    optimizer = from_torch_state_dict(state_dict_of(variables, weight_decay=0.25), variables)
    assert int(optimizer.iterations) == 7
    config = optimizer.get_config()
    expected = {"learning_rate": 0.5, "rho": 0.99, "momentum": 0.9, "epsilon": 1e-8}
    assert expected.items() <= config.items()
    assert (optimizer.centered, optimizer.weight_decay) == (True, 0.25)
    form = optimizer.form
    assert (form.epsilon, form.learning_rate) == ("outside", "outside")
    assert form.weight_decay == "coupled"
    for number, (name, variable) in enumerate(variables.items()):
        np.testing.assert_array_equal(variable, before[name])
        assert (optimizer.get_slot(variable, "rms").numpy() == 2 + number).all()
        assert (optimizer.get_slot(variable, "momentum").numpy() == 3).all()  # as it is
        assert (optimizer.get_slot(variable, "mg").numpy() == 0.5).all()


def recorded(name):
    """A state_dict that a library has written, the variables then, and those five steps later."""
    settings, arrays = golden(name)
    state, before, after = {}, {}, {}
    for key, array in arrays.items():
        kind, first, *rest = key.split("/")
        if kind == "state":
            state.setdefault(int(first), {})[rest[0]] = array
        else:
            (before if kind == "before" else after)[first] = array
    return {"state": state, "param_groups": settings["param_groups"]}, before, after


def by_group(state_dict, variables):
    names = list(variables)
    return [
        {names[k]: variables[names[k]] for k in group["params"]}
        for group in state_dict["param_groups"]
    ]


@pytest.mark.parametrize("library", ["torch", "timm", "stable_baselines3", "pfrl"])
def test_a_recorded_run_goes_on(library):
    """Two groups with settings of their own, and a parameter that has taken no step."""
    state_dict, before, after = recorded(library)
    assert 3 not in state_dict["state"]  # "idle"
    groups = by_group(state_dict, before)
    optimizers = from_torch_state_dict(state_dict, groups, library=library)
    for optimizer, group in zip(optimizers, groups, strict=True):
        stepped = {name: v for name, v in group.items() if name != "idle"}
        train(optimizer, stepped, MORE)
        assert int(optimizer.iterations) == 10
    assert_close(after.values(), before)


@pytest.mark.parametrize("library", ["torch", "timm", "stable_baselines3", "pfrl"])
def test_a_recorded_state_comes_back(arrays_for_tensors, library):
    state_dict, before, _ = recorded(library)
    groups = by_group(state_dict, before)
    optimizers = from_torch_state_dict(state_dict, groups, library=library)
    again = to_torch_state_dict(optimizers, groups, library)
    assert again["state"].keys() == state_dict["state"].keys()
    for number, state in state_dict["state"].items():
        np.testing.assert_equal(again["state"][number], state)
    for mine, theirs in zip(again["param_groups"], state_dict["param_groups"], strict=True):
        common = mine.keys() & theirs.keys()
        assert {"lr", "alpha", "eps", "momentum", "centered", "weight_decay", "params"} <= common
        assert {key: mine[key] for key in common} == {key: theirs[key] for key in common}


def test_tensorflows_own_form_is_that_of_timm(arrays_for_tensors):
    """`train.RMSPropOptimizer` has no count of steps, and timm's options say what it computes."""
    variables = new_variables()
    optimizer = rmsjit.train.RMSPropOptimizer(0.1, momentum=0.9)
    train(optimizer, variables, STEPS)
    order = [slot.name for slot in optimizer.variables()]
    state_dict = to_torch_state_dict(optimizer, variables, "timm")
    assert state_dict["param_groups"][0]["lr_in_momentum"] is True
    resumed = rmsjit.train.RMSPropOptimizer(0.1, momentum=0.9)
    here = {name: variable.copy() for name, variable in variables.items()}
    assert from_torch_state_dict(state_dict, here, resumed, "timm") is resumed
    assert [slot.name for slot in resumed.variables()] == order
    train(optimizer, variables, MORE)
    train(resumed, here, MORE)
    np.testing.assert_equal(here, variables)


def test_parameters_without_state_start_anew():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    del state_dict["state"][1]
    state_dict["state"][2]["step"] = np.float32(9)
    optimizer = like_torch(0.9, centered=True)
    train(optimizer, variables, range(1))
    assert from_torch_state_dict(state_dict, variables, optimizer) is optimizer
    assert not optimizer.get_slot(variables["b"], "rms").numpy().any()
    assert optimizer.get_slot(variables["w"], "rms").numpy().all()
    assert int(optimizer.iterations) == 9
    assert optimizer.learning_rate == LEARNING_RATE


def test_groups_of_equal_hyperparameters():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    [group] = state_dict["param_groups"]
    state_dict["param_groups"] = [
        {**group, "params": [0, 1], "foreach": True},
        {**group, "params": [2]},
    ]
    optimizer = from_torch_state_dict(state_dict, variables)
    assert optimizer.get_slot(variables["scale"], "rms").numpy() == 4
    state_dict["param_groups"][1]["lr"] = 0.25
    with pytest.raises(ValueError, match=r"its groups differ in lr: \[0.5, 0.25\]; give a list"):
        from_torch_state_dict(state_dict, variables)


def test_parameters_with_names_go_by_them():
    variables = new_variables()
    names = ["scale", "b", "w"]
    state_dict = state_dict_of({name: variables[name] for name in names}, param_names=names)
    optimizer = from_torch_state_dict(state_dict, variables)
    assert (optimizer.get_slot(variables["w"], "rms").numpy() == 4).all()
    state_dict["param_groups"][0]["param_names"] = ["scale", "bias", "w"]
    with pytest.raises(ValueError, match=r"the names \['scale', 'bias', 'w'\], and the variables"):
        from_torch_state_dict(state_dict, variables)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"maximize": True}, "it has maximize=True, the optimizer here False"),
        ({"params": [0, 1]}, r"it has parameters \[0, 1\] in groups, state for"),
        ({"params": [0, 1, 1, 2]}, r"it has parameters \[0, 1, 1, 2\] in groups"),
        ({"params": [0, 1, 2, 3]}, "it has 4 parameters, and there are 3 variables"),
        ({"centered": False}, "the average of gradients, by which the form here is centered"),
        ({"weight_decay": 0.1, "momentum": 0.0}, "weight decay of 0.1: independent here, coupled"),
        ({"alpha": None}, "it is not an RMSprop's state_dict: TypeError"),
        ({"lr_in_momentum": True}, r"it is not of torch\.optim.RMSprop"),
    ],
)
def test_state_that_does_not_fit_is_refused(change, match):
    variables = new_variables()
    state_dict = state_dict_of(variables, **change)
    optimizer = rmsjit.RMSprop(
        momentum=0.9,
        form=rmsjit.Form.with_slots(
            "rms", "mg", "momentum", learning_rate="outside", weight_decay="independent"
        ),
    )
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


def test_a_list_is_changed_as_a_whole_or_not_at_all():
    state_dict, before, _ = recorded("torch")
    groups = by_group(state_dict, before)
    optimizers = from_torch_state_dict(state_dict, groups)
    weights = [optimizer.get_weights() for optimizer in optimizers]
    for state in state_dict["state"].values():
        state["square_avg"] = state["square_avg"] + 1
    state_dict["state"][2]["square_avg"] = np.ones(7)
    with pytest.raises(ValueError, match=r"shape of slot 'rms' of 'scale': saved \(7,\)"):
        from_torch_state_dict(state_dict, groups, optimizers)
    np.testing.assert_equal([optimizer.get_weights() for optimizer in optimizers], weights)


@pytest.mark.parametrize(
    ("optimizer", "lost"),
    [
        (
            rmsjit.RMSprop(momentum=0.9, centered=True),
            ["the place of epsilon: inside of the root here, outside there"]
            + ["the learning rate of each past step: it is inside of the momentum here"],
        ),
        (
            rmsjit.RMSprop(),
            ["the momentum, which is there only", "by which the form there is centered"],
        ),
        (
            like_torch(0.9, True, nesterov=True, bias_correction=True),
            ["nesterov: True here, False there", "bias correction: True here, False there"],
        ),
    ],
)
def test_what_would_be_lost_is_named(optimizer, lost):
    variables = new_variables()
    with pytest.raises(ValueError, match=r"can't continue unchanged between this") as error:
        from_torch_state_dict(state_dict_of(variables), variables, optimizer)
    for words in lost:
        assert words in str(error.value)
    assert len(optimizer.weights) == 1


def test_epsilon_of_zero_is_refused():
    variables = new_variables()
    with pytest.raises(ValueError, match="eps must be positive, got 0"):
        from_torch_state_dict(state_dict_of(variables, eps=0), variables)
    from_torch_state_dict(state_dict_of(variables, eps=0), variables, like_torch(0.9, True))


@pytest.mark.parametrize("state_dict", [None, {}, {"state": {}, "param_groups": []}, {"state": 3}])
def test_what_is_no_state_dict(state_dict):
    with pytest.raises(ValueError, match="the state_dict can't be loaded: it"):
        from_torch_state_dict(state_dict, new_variables())


def test_wrong_arguments():
    variables = new_variables()
    state_dict = state_dict_of(variables)
    with pytest.raises(TypeError, match="optimizer must be one of rmsjit's, got str"):
        from_torch_state_dict(state_dict, variables, "opt")
    with pytest.raises(TypeError, match="optimizer must be one of rmsjit's, got list"):
        to_torch_state_dict([], variables)
    with pytest.raises(TypeError, match="variables must be a dict or a list of dicts, got ndarray"):
        to_torch_state_dict(like_torch(), variables["w"])
    with pytest.raises(ValueError, match="optimizer must be a list of 2, as variables are"):
        to_torch_state_dict(like_torch(), [variables, {}])
    with pytest.raises(ValueError, match="it has 1 groups, but variables has 2 dicts"):
        from_torch_state_dict(state_dict, [variables, {}])
    with pytest.raises(ValueError, match=r"library must be one of torch, timm, .* got 'keras'"):
        from_torch_state_dict(state_dict, variables, library="keras")


def test_what_torch_can_not_continue(arrays_for_tensors):
    variables = new_variables()
    complex_variables = {"z": np.ones(2, np.complex64)}
    with pytest.raises(TypeError, match=r"variables\['z'\] must be real, got dtype complex64"):
        to_torch_state_dict(rmsjit.RMSprop(), complex_variables)
    with pytest.raises(TypeError, match=r"variables\['n'\] must be real, got dtype int64"):
        to_torch_state_dict(rmsjit.RMSprop(), {"n": np.arange(3)})
    optimizer = like_torch()
    train(optimizer, variables, range(1))
    with pytest.raises(ValueError, match="lacks Variable_1"):
        to_torch_state_dict(optimizer, {"w": variables["w"], "scale": variables["scale"]})
    with pytest.raises(ValueError, match=r"rms: 0.0 here, 1.0 there; not stepped yet: 'idle'"):
        to_torch_state_dict(like_torch(epsilon="inside"), {"idle": np.ones(2)}, "stable_baselines3")


def test_momentum_without_steps_and_variables_without_slots(arrays_for_tensors):
    variables = new_variables()
    optimizer = like_torch(0.9)
    optimizer.build([variables["w"]])
    state = to_torch_state_dict(optimizer, variables)["state"]
    assert list(state) == [0]
    assert not state[0]["momentum_buffer"].any()
    optimizer.momentum = 0.0  # whatever the buffer holds is not used any more
    assert "momentum_buffer" not in to_torch_state_dict(optimizer, variables)["state"][0]


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    variables = new_variables()
    optimizer = like_torch()
    train(optimizer, variables, range(1))
    with pytest.raises(ImportError, match="pip install torch"):
        to_torch_state_dict(optimizer, variables)


# --- live -----------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def train_torch(torch, optimizer, parameters, variables, steps):
    for step in steps:
        for parameter, gradient in zip(parameters, gradients_of(variables, step), strict=True):
            parameter.grad = to_tensor(torch, gradient)
        optimizer.step()


def to_tensor(torch, array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def torch_run(torch, variables, cls=None, lr=LEARNING_RATE, **settings):
    parameters = [torch.nn.Parameter(to_tensor(torch, v)) for v in variables.values()]
    return (cls or torch.optim.RMSprop)(parameters, lr=lr, **settings), parameters


def values_of(parameters):
    return [parameter.detach().double().numpy() for parameter in parameters]


@pytest.mark.live
@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16, "float16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_goes_to_torch(torch, settings, dtype):
    variables = new_variables(dtype)
    optimizer = like_torch(**settings)
    train(optimizer, variables, STEPS)
    torch_optimizer, parameters = torch_run(torch, variables)
    torch_optimizer.load_state_dict(to_torch_state_dict(optimizer, variables))
    [group] = torch_optimizer.param_groups
    assert {"lr": LEARNING_RATE, **settings}.items() <= group.items()
    train_torch(torch, torch_optimizer, parameters, variables, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(parameters), variables)
    assert int(torch_optimizer.state[parameters[0]]["step"]) == int(optimizer.iterations) == 10


@pytest.mark.live
@pytest.mark.parametrize("dtype", ["float32", "float64", ml_dtypes.bfloat16, "float16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_comes_from_torch(torch, settings, dtype):
    """At a rate that changes on the way, which no division by the rate would survive."""
    variables = new_variables(dtype)
    torch_optimizer, parameters = torch_run(torch, variables, **settings)
    train_torch(torch, torch_optimizer, parameters, variables, STEPS)
    torch_optimizer.param_groups[0]["lr"] = LEARNING_RATE / 3
    for parameter, variable in zip(parameters, variables.values(), strict=True):
        variable[...] = parameter.detach().double().numpy().astype(dtype)
    optimizer = from_torch_state_dict(torch_optimizer.state_dict(), variables)
    train_torch(torch, torch_optimizer, parameters, variables, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(parameters), variables)
    assert int(optimizer.iterations) == 10


LOOK_ALIKES = {
    "timm": form_libraries.timm_class,
    "stable_baselines3": form_libraries.stable_baselines3_class,
    "pfrl": form_libraries.pfrl_class,
}
OPTIONS = [
    *((name, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}) for name in LOOK_ALIKES),
    ("timm", {"momentum": 0.9, "lr_in_momentum": False}),
    ("timm", {"momentum": 0.9, "weight_decay": 0.1, "decoupled_decay": True}),
]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of old code, which these libraries have
@pytest.mark.parametrize(("library", "options"), OPTIONS)
def test_runs_of_look_alikes_travel_both_ways(torch, library, options):
    try:
        cls = LOOK_ALIKES[library]()
    except ImportError:
        pytest.skip(f"{library} is not installed")
    variables = new_variables("float32")
    theirs, parameters = torch_run(torch, variables, cls, **options)
    train_torch(torch, theirs, parameters, variables, STEPS)
    for parameter, variable in zip(parameters, variables.values(), strict=True):
        variable[...] = parameter.detach().numpy()
    optimizer = from_torch_state_dict(theirs.state_dict(), variables, library=library)
    train_torch(torch, theirs, parameters, variables, MORE)
    train(optimizer, variables, MORE)
    assert_close(values_of(parameters), variables)

    again, parameters = torch_run(torch, variables, cls, **options)
    again.load_state_dict(to_torch_state_dict(optimizer, variables, library))
    train_torch(torch, again, parameters, variables, range(10, 15))
    train(optimizer, variables, range(10, 15))
    assert_close(values_of(parameters), variables)


@pytest.mark.live
def test_a_file_of_torch(torch, tmp_path):
    variables = new_variables("float32")
    optimizer = like_torch(0.9, centered=True)
    train(optimizer, variables, STEPS)
    state_dict = to_torch_state_dict(optimizer, variables)
    torch.save(state_dict, tmp_path / "state.pt")
    resumed = from_torch_state_dict(torch.load(tmp_path / "state.pt"), variables)
    np.testing.assert_equal(slots_of(resumed, variables), slots_of(optimizer, variables))
    state_dict["state"][0]["square_avg"].zero_()  # a copy
    assert optimizer.get_slot(variables["w"], "rms").numpy().all()


def test_an_optimizer_that_is_given_twice_is_refused():
    opt, numbers = rmsjit.forms.torch(), {"lr": 0.01, "alpha": 0.99, "eps": 1e-8}
    states = {k: {"step": 3.0, "square_avg": np.full((3, 2), float(k))} for k in range(2)}
    groups = [{**numbers, "params": [k]} for k in range(2)]
    variables = [{"a": np.ones((3, 2))}, {"b": np.ones((3, 2))}]
    state_dict = {"state": states, "param_groups": groups}
    with pytest.raises(ValueError, match="different optimizers, got one of them twice"):
        rmsjit.interop.from_torch_state_dict(state_dict, variables, [opt, opt])
    assert int(opt.iterations) == 0
    assert opt.variables_seen == []
