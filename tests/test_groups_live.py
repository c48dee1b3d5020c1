"""Groups and weight decay beside the libraries that have them, where these are installed."""

import numpy as np
import pytest

import rmsjit
import rmsjit.interop

STEPS = 20
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}
SHAPES = [(4, 3), (3,), (50,), (2, 2)]
GROUPS = {
    "rates": [{"lr": 0.1}, {"lr": 0.001}],
    "decay": [{"weight_decay": 0.0}, {"weight_decay": 0.5}],
    "averages": [{"alpha": 0.5}, {"eps": 1e-2}],
    "momentum": [{"momentum": 0.0}, {"momentum": 0.99}],
    "all": [
        {"lr": 0.5, "alpha": 0.9, "eps": 1e-3, "momentum": 0.1, "weight_decay": 0.0},
        {"lr": 0.002},
    ],
}
BASE = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.1}
OURS = {"lr": "learning_rate", "alpha": "rho", "eps": "epsilon"}


def start(dtype):
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def gradients_of(step):
    rng = np.random.default_rng([step, 13])
    return [rng.standard_normal(shape) for shape in SHAPES]


@pytest.mark.live
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_those_of_torch(name, maximize, dtype):
    """The first two variables are in a group each, the others have the settings of all."""
    torch = pytest.importorskip("torch")
    variables = start(dtype)
    parameters = [torch.nn.Parameter(torch.tensor(v)) for v in variables]
    own = [{"params": [p], **given} for p, given in zip(parameters, GROUPS[name], strict=False)]
    theirs = torch.optim.RMSprop([*own, {"params": parameters[2:]}], **BASE, maximize=maximize)
    opt = rmsjit.RMSprop(
        form=rmsjit.forms.torch(**BASE).form,
        maximize=maximize,
        **{OURS.get(word, word): value for word, value in BASE.items()},
    )
    for variable, given in zip(variables, GROUPS[name], strict=False):
        opt.add_group([variable], **{OURS.get(word, word): v for word, v in given.items()})
    for step in range(STEPS):
        frozen = step in (5, 6)  # in torch, a parameter that has no gradient
        if name == "all":
            opt.groups[1].frozen = frozen
        gradients = [g.astype(dtype) for g in gradients_of(step)]
        for k, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            skipped = name == "all" and frozen and k == 1
            parameter.grad = None if skipped else torch.tensor(gradient)
        theirs.step()
        opt.apply_gradients(zip(gradients, variables, strict=True))
        for variable, parameter in zip(variables, parameters, strict=True):
            wanted = parameter.detach().numpy()
            np.testing.assert_allclose(
                variable, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


@pytest.mark.live
@pytest.mark.parametrize("maximize", [False, True])
def test_groups_go_on_in_torch(maximize):
    torch = pytest.importorskip("torch")
    variables = start("float64")
    opt = rmsjit.forms.torch(**BASE, maximize=maximize)
    opt.add_group([variables[0], variables[3]], learning_rate=0.1)
    opt.add_group([variables[1]], weight_decay=0.0, momentum=0.5)
    opt.apply_gradients(zip(gradients_of(0), variables, strict=True))
    named = {f"v{k}": v for k, v in enumerate(variables)}
    state_dict = rmsjit.interop.to_torch_state_dict(opt, named)
    order = [[2], [0, 3], [1]]  # those in no group come first
    assert [group["params"] for group in state_dict["param_groups"]] == [[0], [1, 2], [3]]
    parameters = [torch.nn.Parameter(torch.tensor(v)) for v in variables]
    theirs = torch.optim.RMSprop([{"params": [parameters[k] for k in part]} for part in order])
    theirs.load_state_dict(state_dict)
    for step in range(1, STEPS):
        for parameter, gradient in zip(parameters, gradients_of(step), strict=True):
            parameter.grad = torch.tensor(gradient)
        theirs.step()
        opt.apply_gradients(zip(gradients_of(step), variables, strict=True))
    for variable, parameter in zip(variables, parameters, strict=True):
        np.testing.assert_allclose(variable, parameter.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.live
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_excluded_variables_are_those_of_keras(momentum):
    keras = pytest.importorskip("keras")
    names = ["dense/kernel", "dense/bias", "norm/gamma", "head/kernel"]
    ours = [rmsjit.Variable(v, name=n) for v, n in zip(start("float32"), names, strict=True)]
    theirs = [
        keras.Variable(v, name=n.replace("/", "_"))
        for v, n in zip(start("float32"), names, strict=True)
    ]
    other = keras.optimizers.RMSprop(0.01, momentum=momentum, weight_decay=0.1)
    other.exclude_from_weight_decay(var_names=["bias", "gamma"])
    opt = rmsjit.forms.keras(0.01, momentum=momentum, weight_decay=0.1)
    opt.add_group(["*/bias", "*/gamma"], weight_decay=0.0)
    for step in range(STEPS):
        gradients = [g.astype("float32") for g in gradients_of(step)]
        other.apply([keras.ops.convert_to_tensor(g) for g in gradients], theirs)
        opt.apply_gradients(zip(gradients, ours, strict=True))
    for variable, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(variable.numpy(), np.asarray(wanted.value), rtol=1e-5, atol=1e-6)
