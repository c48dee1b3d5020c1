"""The functions of `rmsjit.forms`: their signatures, what they refuse, and from_config."""

import copy
import doctest
import inspect
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

import rmsjit
from golden import form_transcriptions
from rmsjit import forms
from rmsjit.forms.formula import formula
from rmsjit.forms.functions import example_arguments
from rmsjit.forms.library import Number, Unsupported
from rmsjit.forms.table import BY_NAME, LIBRARIES
from strategies import run_python

EVERY = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
# Of the libraries themselves, without parameters and functions that are given there at first.
SIGNATURES = {
    "torch": "lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False, "
    "capturable=False, foreach=None, maximize=False, differentiable=False",
    "keras": "learning_rate=0.001, rho=0.9, momentum=0.0, epsilon=1e-07, centered=False, "
    "weight_decay=None, clipnorm=None, clipvalue=None, global_clipnorm=None, "
    "use_ema=False, ema_momentum=0.99, ema_overwrite_frequency=None, "
    "loss_scale_factor=None, gradient_accumulation_steps=None, name=None",
    "tf_keras": "learning_rate=0.001, rho=0.9, momentum=0.0, epsilon=1e-07, centered=False, "
    "weight_decay=None, clipnorm=None, clipvalue=None, global_clipnorm=None, "
    "use_ema=False, ema_momentum=0.99, ema_overwrite_frequency=100, jit_compile=True, "
    "name='RMSprop'",
    "tf_keras_legacy": "learning_rate=0.001, rho=0.9, momentum=0.0, epsilon=1e-07, centered=False, "
    "name='RMSprop'",
    "tf1": "learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, use_locking=False, "
    "centered=False, name='RMSProp'",
    "optax": "learning_rate, decay=0.9, eps=1e-08, initial_scale=0.0, eps_in_sqrt=True, "
    "centered=False, momentum=None, nesterov=False, bias_correction=False",
    "timm": "lr=0.01, alpha=0.9, eps=1e-10, weight_decay=0.0, momentum=0.0, centered=False, "
    "decoupled_decay=False, lr_in_momentum=True, caution=False",
    "stable_baselines3": "lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, "
    "momentum=0.0, centered=False",
    "pfrl": "lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False",
    "torchopt": "lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False",
    "chainer": "lr=0.01, alpha=0.99, eps=1e-08, eps_inside_sqrt=False",
    "chainer_graves": "lr=0.0001, alpha=0.95, momentum=0.9, eps=0.0001",
    "autograd": "step_size=0.1, gamma=0.9, eps=1e-08",
    "jax_example_libraries": "step_size, gamma=0.9, eps=1e-08, momentum=0.9",
    "paddle": "learning_rate, rho=0.95, epsilon=1e-06, momentum=0.0, centered=False, "
    "parameters=None, weight_decay=None, grad_clip=None, name=None",
    "mlx": "learning_rate, alpha=0.99, eps=1e-08",
    "river": "lr=0.1, rho=0.9, eps=1e-08",
} | {name: run.signature for name, run in form_transcriptions.RUNS.items()}


def optimizer_of(library, **arguments):
    return getattr(forms, library.name)(**(example_arguments(library) | arguments))


def by_position(function):
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


# --- Signatures and help ---------------------------------------------------------------------


def test_signatures_are_those_of_the_libraries():
    assert SIGNATURES.keys() == BY_NAME.keys()
    for name, expected in SIGNATURES.items():
        assert ", ".join(map(str, by_position(getattr(forms, name)))) == expected, name


@EVERY
def test_options_of_rmsjit_come_by_keyword(library):
    parameters = inspect.signature(getattr(forms, library.name)).parameters
    for name in ("clipvalue", "clipnorm", "global_clipnorm"):
        taken = library.numbers.get(name)  # under a name of the library's own
        assert (taken.name if taken else name) in parameters
        assert (name in parameters) == (taken is None or taken.name == name)
    assert {"sparse", "strategy", "slot_allocator", "name"} <= parameters.keys()
    assert optimizer_of(library, num_threads=1, nonfinite="raise").form == (
        optimizer_of(library).form
    )


@EVERY
def test_help_shows_formula_arguments_and_an_example_that_runs(library):
    function = getattr(forms, library.name)
    lines = function.__doc__.splitlines()
    assert library.note in lines
    for line in formula(optimizer_of(library).form, names_of(library)):
        assert f"    {line}" in lines
    for name in inspect.signature(function).parameters:
        assert name in function.__doc__
    (example,) = doctest.DocTestFinder().find(function, library.name, globs={})
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    assert pickle.loads(pickle.dumps(function)) is function


def names_of(library):
    return {number: argument.name for number, argument in library.numbers.items()}


def test_forms_are_found_by_name_and_the_nearest_is_named():
    assert set(forms.__all__) == {"from_config", *BY_NAME}
    with pytest.raises(AttributeError, match=r"no form 'pytorch' .*; the nearest is 'torch'"):
        forms.pytorch  # noqa: B018


def test_importing_forms_imports_no_library():
    found = run_python(
        "import sys, rmsjit.forms\n"
        "print(sorted({'torch', 'keras', 'tensorflow', 'jax', 'numba'} & set(sys.modules)))"
    )
    assert found == "[]\n"


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: forms.torch(learning_rate=0.1), r"torch\(\) has .* 'learning_rate'; .* 'lr'"),
        (lambda: forms.torch(rho=0.9), "torch.* no argument 'rho'; the nearest is 'alpha'"),
        (lambda: forms.keras(alpha=0.9), "keras.* no argument 'alpha'; the nearest is 'rho'"),
        (lambda: forms.autograd(lr=0.1), "'lr'; the nearest is 'step_size'"),
        (lambda: forms.torch7(momentun=0.1), "'momentun'; the nearest is"),
        (lambda: forms.torch(nonsense=True), "no argument 'nonsense'$"),
        (lambda: forms.optax(0.1, eps_in_sqr=True), "the nearest is 'eps_in_sqrt'"),
        (lambda: forms.mlx(0.1, momentum=0.9), "no argument 'momentum'"),
        (lambda: forms.tf1(), r"tf1\(\): missing a required argument: 'learning_rate'"),
        (lambda: forms.river(1, 2, 3, 4), r"river\(\): too many positional arguments"),
        (lambda: forms.torch(0.1, lr=0.1), r"torch\(\): multiple values for argument 'lr'"),
        (lambda: forms.torch(lr="0.1"), "lr must be a number, got '0.1'"),
        (lambda: forms.chainer(eps="small"), "eps must be a number, got 'small'"),
        (lambda: forms.optax(None), "learning_rate must be a number, got None"),
        (lambda: forms.timm(eps=None), "eps must be a number, got None"),
        (lambda: forms.chainer_graves(momentum=None), "momentum must be a number, got None"),
        (lambda: forms.torch(weight_decay=None), "weight_decay must be a number, got None"),
        (lambda: forms.caffe(0.1, clip_gradients=None), "clip_gradients must be a number, got"),
    ],
)
def test_wrong_arguments_are_type_errors_that_help(call, match):
    with pytest.raises(TypeError, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: forms.torch(alpha=1.5), "alpha must be between 0 and 1, got 1.5"),
        (lambda: forms.torch(eps=0), "eps must be positive, got 0.0"),
        (lambda: forms.optax(0.1, momentum=2), "momentum must be between 0 and 1, got 2.0"),
        (lambda: forms.torch(weight_decay=-1), "weight_decay must not be negative"),
        (lambda: forms.mxnet(wd=-1), "wd must not be negative"),
        (lambda: forms.tf_keras(use_ema=True), "use_ema must be False, got True"),
        (lambda: forms.keras(loss_scale_factor=0), "loss_scale_factor must be positive, got 0.0"),
        (lambda: forms.mxnet(rescale_grad=0.5), "rescale_grad must be 1.0, got 0.5: scale the"),
        (lambda: forms.torch(centered="yes"), "centered must be one of False, True, got 'yes'"),
        (lambda: forms.optax(0.1, nesterov="yes", momentum=0.9), "nesterov must be one of"),
        (lambda: forms.optax(0.1, initial_scale="one"), "start must be a finite number"),
        (lambda: forms.caffe(0.1, regularization_type="L1"), "regularization_type must be 'L2'"),
        (lambda: forms.torch(weight_decay=0.1, sparse="exact"), 'can.t have sparse="exact": '),
        (lambda: forms.torch(clipnorm=1, global_clipnorm=1), "can't both be set"),
        (lambda: forms.torch(differentiable=True), "differentiable must be False, got True: steps"),
        (
            lambda: forms.keras(use_ema=True, gradient_accumulation_steps=2),
            "use_ema and gradient_accumulation_steps can't both be set, got use_ema=True and "
            "gradient_accumulation_steps=2: Keras moves averages at every call",
        ),
        (
            lambda: forms.keras(clipnorm=1.0, clipvalue=0.5),
            "clipnorm and clipvalue can't both be set, .*: Keras takes one of its three bounds",
        ),
        (
            lambda: forms.keras(clipvalue=1.0, global_clipnorm=0.5),
            "clipvalue and global_clipnorm can't both be set",
        ),
        (lambda: forms.keras(epsilon=0), "epsilon must be positive, got 0.0"),
        (lambda: forms.keras(clipnorm=math.inf), "clipnorm must be finite, got inf"),
    ],
)
def test_values_that_may_not_be_are_refused_by_the_librarys_names(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@EVERY
def test_arguments_for_which_there_is_one_value_take_it(library):
    for argument in library.arguments:
        if isinstance(argument, Unsupported):
            optimizer_of(library, **{argument.name: argument.default})
            with pytest.raises(ValueError, match=f"{argument.name} must be "):
                optimizer_of(library, **{argument.name: "another"})


@EVERY
def test_none_is_a_number_only_where_the_library_says_what_it_means(library):
    """Elsewhere it would stand for a default, but of rmsjit.RMSprop and not of the library."""
    own = {"learning_rate", "rho", "momentum", "epsilon", "weight_decay", "clipvalue", "decay"}
    for number, argument in library.numbers.items():
        if argument.default is None or argument.zero_is_default:
            optimizer_of(library, **{argument.name: None})
        elif number in own:
            with pytest.raises(TypeError, match=f"{argument.name} must be a number, got None"):
                optimizer_of(library, **{argument.name: None})


# --- What a call stands for ------------------------------------------------------------------


@EVERY
def test_numbers_arrive(library):
    """Each number that is given is the optimizer's, under rmsjit's name."""
    given = {"learning_rate": 0.03, "rho": 0.7, "epsilon": 1e-3, "weight_decay": 0.2}
    given |= {"momentum": 0.6, "clip_weights": 2.0, "clipvalue": 3.0, "decay": 0.01}
    given = {k: v for k, v in given.items() if k in library.numbers}
    arguments = {library.numbers[name].name: value for name, value in given.items()}
    if library.name == "mxnet":
        arguments["centered"] = True  # which uses momentum
    optimizer = optimizer_of(library, **arguments)
    assert {name: getattr(optimizer, name) for name in given} == given
    assert optimizer.form.has_momentum == ("momentum" in given)
    assert (optimizer.form.weight_decay is not None) == ("weight_decay" in given)


@EVERY
def test_schedules_functions_and_clips_go_with_every_form(library):
    schedule = rmsjit.schedules.ExponentialDecay(0.1, 10, 0.5)
    rate, rho = library.numbers["learning_rate"].name, library.numbers["rho"].name
    optimizer = optimizer_of(library, **{rate: schedule, rho: lambda: 0.5})
    assert optimizer.learning_rate is schedule
    assert optimizer.rho() == 0.5


def test_a_few_forms_in_full():
    assert forms.torch(momentum=0.9).form == rmsjit.Form.with_slots(
        "rms",
        "momentum",
        learning_rate="outside",
        one_minus_rho="exact",
        mg_average="difference",
        quotient="rate_first",
        fused=True,
    )
    assert forms.optax(0.1, nesterov=True).form == forms.optax(0.1).form  # without momentum
    assert forms.optax(0.1).form.slot_names == forms.optax(0.1, momentum=None).form.slot_names
    assert forms.optax(0.1, momentum=0.0).form.slot_names == ("rms", "momentum")
    assert forms.optax(0.1, momentum=0.9, nesterov=True).form.nesterov
    assert forms.mxnet(momentum=0.9).form.has_momentum is False
    assert forms.mxnet(clip_weights=1.0).form.clip_weights
    assert forms.caffe(0.1).global_clipnorm is None
    assert forms.caffe(0.1, clip_gradients=5).global_clipnorm == 5.0
    assert forms.tf1(0.1).form.slot_names == ("rms", "momentum")
    assert forms.dl4j().form.slot("rms").start == "epsilon"


OFF = {  # what no clipping is called, and by whom
    "clipnorm": (0, 0.0),
    "global_clipnorm": (0, 0.0),
    "clipvalue": (0, 0.0, math.inf, np.float32(np.inf)),
}
NO_CLIPPING = [
    (form, {name: value})
    for form in ("keras", "tf_keras")
    for name, values in OFF.items()
    for value in values
] + [("tf_keras_legacy", {"clipvalue": math.inf}), ("caffe", {"clip_gradients": -1})]


@pytest.mark.parametrize(("form", "settings"), NO_CLIPPING)
def test_bounds_by_which_a_library_does_not_clip(form, settings):
    optimizer = optimizer_of(BY_NAME[form], **settings)
    assert optimizer.get_config() == optimizer_of(BY_NAME[form]).get_config()


@pytest.mark.parametrize("name", OFF)
def test_a_bound_of_zero_stops_the_legacy_optimizer(name):
    variable = np.ones(2)
    forms.tf_keras_legacy(0.1, **{name: 0}).apply_gradients([(np.ones(2), variable)])
    assert (variable == 1).all()


@pytest.mark.parametrize("value", [0, 0.0, None])
def test_no_epsilon_is_the_default_of_the_legacy_optimizer(value):
    assert (
        forms.tf_keras_legacy(epsilon=value).epsilon
        == 1e-7
        == rmsjit.RMSprop(epsilon=value).epsilon
    )


@pytest.mark.parametrize("name", ["ema_overwrite_frequency", "gradient_accumulation_steps"])
def test_a_count_of_zero_is_none_in_keras(name):
    assert getattr(forms.keras(use_ema=name[0] == "e", **{name: 0}), name) is None


@EVERY
def test_configs_of_rmsjit_keep_the_form(library):
    optimizer = optimizer_of(library)
    config = json.loads(json.dumps(optimizer.get_config()))
    for made in (rmsjit.RMSprop.from_config(config), forms.from_config(config)):
        assert made.form == optimizer.form
        assert made.get_config() == optimizer.get_config()
    assert copy.deepcopy(optimizer).form == optimizer.form


def test_a_row_is_a_value():
    row = BY_NAME["torch"]
    assert row.arguments[0] == Number("lr", 0.01, number="learning_rate")
    other = replace(row, settings=dict(row.settings) | {"epsilon": "inside"})
    assert other != row
    assert other.chosen({}).form.epsilon == "inside"


def test_momentum_that_comes_later_is_refused_where_it_would_be_another_form():
    optimizer, w = forms.torch(), np.ones(2)
    with pytest.raises(ValueError, match="momentum needs a form that has it from construction on"):
        optimizer.momentum = 0.9
    optimizer.apply_gradients([(np.ones(2), w)])
    with_momentum = forms.torch(momentum=0.5)
    with_momentum.momentum = 0.9
    assert with_momentum.momentum == 0.9


# --- from_config -----------------------------------------------------------------------------

KERAS_3 = {
    "name": "rmsprop",
    "learning_rate": 0.0010000000474974513,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": 1.5,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "rho": 0.9,
    "momentum": 0.8,
    "epsilon": 1e-07,
    "centered": True,
}
_NEWER = ("loss_scale_factor", "gradient_accumulation_steps")
TF_KERAS = {k: v for k, v in KERAS_3.items() if k not in _NEWER} | {
    "jit_compile": False,
    "is_legacy_optimizer": False,
    "ema_overwrite_frequency": 100,
}
LEGACY = {
    "name": "RMSprop",
    "learning_rate": 0.001,
    "decay": 0.0,
    "rho": 0.9,
    "momentum": 0.0,
    "epsilon": 1e-07,
    "centered": False,
}
TORCH = {
    "lr": 0.01,
    "momentum": 0.9,
    "alpha": 0.99,
    "eps": 1e-08,
    "centered": False,
    "weight_decay": 0.1,
    "capturable": False,
    "foreach": None,
    "maximize": False,
    "differentiable": False,
    "params": [0, 1],
}


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (
            KERAS_3,
            lambda: forms.keras(
                0.0010000000474974513, 0.9, 0.8, centered=True, global_clipnorm=1.5, name="rmsprop"
            ),
        ),
        (
            TF_KERAS,
            lambda: forms.tf_keras(
                0.0010000000474974513, 0.9, 0.8, centered=True, global_clipnorm=1.5, name="rmsprop"
            ),
        ),
        (LEGACY, lambda: forms.tf_keras_legacy()),
        (LEGACY | {"is_legacy_optimizer": True}, lambda: forms.tf_keras_legacy()),
        (TORCH, lambda: forms.torch(momentum=0.9, weight_decay=0.1)),
        (
            TORCH | {"maximize": True},
            lambda: forms.torch(momentum=0.9, weight_decay=0.1, maximize=True),
        ),
        ({"step_size": 0.1, "gamma": 0.9}, None),
        ({"rmsDecay": 0.9}, lambda: forms.dl4j(rmsDecay=0.9)),
    ],
    ids=["keras", "tf_keras", "legacy", "marked legacy", "torch", "ascent", "ambiguous", "dl4j"],
)
def test_from_config(config, made):
    wrapped = {"module": "x", "class_name": "RMSprop", "config": config, "registered_name": None}
    for given in (config, wrapped):
        if made is None:
            with pytest.raises(TypeError, match="autograd, jax_example_libraries, which differ"):
                forms.from_config(given)
            continue
        optimizer = forms.from_config(json.loads(json.dumps(given)))
        assert optimizer.form == made().form
        assert optimizer.get_config() == made().get_config()


def test_what_schedulers_put_into_a_group_of_torch():
    left = dict.fromkeys(
        ["initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"], 0.5
    )
    optimizer = forms.from_config(TORCH | left)
    assert optimizer.get_config() == forms.from_config(TORCH).get_config()


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": [1]}])
def test_a_class_without_its_arguments_is_refused(config):
    with pytest.raises(TypeError, match="config must have the arguments under 'config', got"):
        forms.from_config({"class_name": "RMSprop", **config})


def test_from_config_with_a_schedule():
    schedule = rmsjit.schedules.ExponentialDecay(0.1, 100, 0.5)
    saved = rmsjit.schedules.serialize(schedule)
    for form in (saved, saved | {"module": "keras.optimizers.schedules", "registered_name": None}):
        optimizer = forms.from_config(KERAS_3 | {"learning_rate": form})
        assert optimizer.learning_rate.get_config() == schedule.get_config()


def test_the_loss_scale_of_keras():
    optimizer = forms.from_config(KERAS_3 | {"loss_scale_factor": 8})
    assert optimizer.loss_scale == forms.keras(loss_scale_factor=8).loss_scale == 8.0


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        ({"class_name": "Adam", "config": {}}, TypeError, "one of 'Adam'"),
        ({"beta_1": 0.9}, TypeError, r"no form .* has all of the arguments \['beta_1'\]"),
        ([("lr", 0.1)], TypeError, "config must be a mapping, got list"),
        (
            {"name": "adam", "learning_rate": 0.1},
            TypeError,
            "config must be one of RMSprop, got one of 'adam'",
        ),
        (KERAS_3 | {"loss_scale_factor": -8}, ValueError, "loss_scale_factor must be positive"),
        (
            KERAS_3 | {"use_ema": True, "gradient_accumulation_steps": 2},
            ValueError,
            "use_ema and gradient_accumulation_steps can't both be set",
        ),
        (TORCH | {"differentiable": True}, ValueError, "differentiable must be False, got True"),
    ],
)
def test_from_config_says_what_is_wrong(config, error, match):
    with pytest.raises(error, match=match):
        forms.from_config(config)


def test_a_variable_that_holds_zero_is_followed():
    momentum = rmsjit.Variable(0.0)
    optimizer, twin = rmsjit.forms.torch(momentum=momentum), rmsjit.forms.torch(momentum=0.5)
    assert optimizer.form == twin.form
    momentum.assign(0.5)
    v, w = np.ones(3), np.ones(3)
    for _ in range(2):
        optimizer.apply_gradients([(v * 2, v)])
        twin.apply_gradients([(w * 2, w)])
    assert np.array_equal(v, w)


# --- live ------------------------------------------------------------------------------------


def after_two_steps(optimizer, variable, gradient):
    for _ in range(2):
        optimizer.apply_gradients([(gradient, variable)])
    return np.array(variable)


CLIPPED = [
    ("keras", {"clipnorm": 0.0}),
    ("keras", {"clipvalue": math.inf}),
    ("keras", {"gradient_accumulation_steps": 0}),
    ("keras", {"use_ema": True, "ema_overwrite_frequency": 0}),
    ("tf_keras", {"global_clipnorm": 0.0}),
    ("tf_keras", {"clipvalue": 0}),
    ("tf_keras_legacy", {"clipnorm": 0.0}),
    ("tf_keras_legacy", {"clipvalue": math.inf}),
    ("tf_keras_legacy", {"epsilon": 0}),
]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "settings"), CLIPPED)
def test_live_keras_with_settings_that_mean_none(form, settings):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    module = pytest.importorskip(form.removesuffix("_legacy"), reason="Keras is not installed")
    classes = module.optimizers.legacy if form == "tf_keras_legacy" else module.optimizers
    start, gradient = np.ones(2, np.float32), np.array([3, -4], np.float32)
    variable = module.Variable(start) if form == "keras" else tf.Variable(start)
    theirs = after_two_steps(classes.RMSprop(0.1, **settings), variable, tf.constant(gradient))
    ours = after_two_steps(getattr(forms, form)(0.1, **settings), start.copy(), gradient)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


TORCH_SCHEDULERS = {
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 5},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
    "StepLR": {"step_size": 2},
}


@pytest.mark.live
@pytest.mark.parametrize("name", [*TORCH_SCHEDULERS, "SWALR"])
def test_live_groups_of_torch_under_schedulers(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))], momentum=0.9)
    if name == "SWALR":
        torch.optim.swa_utils.SWALR(optimizer, 0.1)
    else:
        getattr(torch.optim.lr_scheduler, name)(optimizer, **TORCH_SCHEDULERS[name])
    (group,) = optimizer.param_groups
    ours = forms.from_config(group)
    assert (ours.learning_rate, ours.momentum) == (group["lr"], group["momentum"])
