"""Every name of the two TensorFlow pages: it exists, takes the page's arguments, is documented.

What the pages say is written out here as data, and compared with our classes and with
`golden/interface.json`, which was recorded from live TensorFlow.
"""

import inspect
import json
import pathlib
import re
import types

import autograd.numpy as anp
import numpy as np
import pytest

import rmsjit

RECORDED = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "interface.json").read_text(encoding="utf-8")
)
CLASSES = {"keras": rmsjit.RMSprop, "train": rmsjit.train.RMSPropOptimizer}
every_face = pytest.mark.parametrize("face", CLASSES)
REQUIRED = inspect.Parameter.empty

# --- What the pages say ----------------------------------------------------------------------

METHODS = {
    "keras": {
        "__init__": {
            "learning_rate": 0.001,
            "rho": 0.9,
            "momentum": 0.0,
            "epsilon": 1e-7,
            "centered": False,
            "name": "RMSprop",
        },
        "add_slot": {
            "var": REQUIRED,
            "slot_name": REQUIRED,
            "initializer": "zeros",
            "shape": None,
        },
        "add_weight": {
            "name": REQUIRED,
            "shape": REQUIRED,
            "dtype": None,
            "initializer": "zeros",
            "trainable": None,
            "synchronization": None,
            "aggregation": None,
        },
        "apply_gradients": {
            "grads_and_vars": REQUIRED,
            "name": None,
            "experimental_aggregate_gradients": True,
        },
        "from_config": {"config": REQUIRED, "custom_objects": None},
        "get_config": {},
        "get_gradients": {"loss": REQUIRED, "params": REQUIRED},
        "get_slot": {"var": REQUIRED, "slot_name": REQUIRED},
        "get_slot_names": {},
        "get_updates": {"loss": REQUIRED, "params": REQUIRED},
        "get_weights": {},
        "minimize": {
            "loss": REQUIRED,
            "var_list": REQUIRED,
            "grad_loss": None,
            "name": None,
            "tape": None,
        },
        "set_weights": {"weights": REQUIRED},
        "variables": {},
    },
    "train": {
        "__init__": {
            "learning_rate": REQUIRED,
            "decay": 0.9,
            "momentum": 0.0,
            "epsilon": 1e-10,
            "use_locking": False,
            "centered": False,
            "name": "RMSProp",
        },
        "apply_gradients": {"grads_and_vars": REQUIRED, "global_step": None, "name": None},
        "compute_gradients": {
            "loss": REQUIRED,
            "var_list": None,
            "gate_gradients": 1,
            "aggregation_method": None,
            "colocate_gradients_with_ops": False,
            "grad_loss": None,
        },
        "get_name": {},
        "get_slot": {"var": REQUIRED, "name": REQUIRED},
        "get_slot_names": {},
        "minimize": {
            "loss": REQUIRED,
            "global_step": None,
            "var_list": None,
            "gate_gradients": 1,
            "aggregation_method": None,
            "colocate_gradients_with_ops": False,
            "name": None,
            "grad_loss": None,
        },
        "variables": {},
    },
}
ATTRIBUTES = {
    "keras": ["clipnorm", "clipvalue", "global_clipnorm", "iterations", "weights"],
    "train": ["GATE_GRAPH", "GATE_NONE", "GATE_OP"],
}
# What hides behind `**kwargs` there: the page's three, and those that the class accepts besides.
KEYWORDS = {
    "clipvalue": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "lr": None,
    "decay": 0.0,
    "gradient_transformers": None,
    "gradient_aggregator": None,
}
HYPERPARAMETERS = ["centered", "decay", "epsilon", "learning_rate", "lr", "momentum", "rho"]

# --- Where we differ, all of it --------------------------------------------------------------

# Arguments of our own, all by keyword; those of other forms of the rule are the Keras face's.
FORM_KEYWORDS = {
    "form": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "gradient_accumulation_steps": None,
    "gradient_accumulation_reduction": "mean",
    "loss_scale": None,
}
OUR_KEYWORDS = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": True,
    "clip_weights": None,
    "maximize": False,
    "grad_scale": 1.0,
    "master_weights": False,
    "rounding": "nearest",
    "state_dtype": None,
    "seed": 0,
    "sparse": "rows",
    "nonfinite": "propagate",
    "track_norms": False,
    "num_threads": None,
    "slot_allocator": None,
    "strategy": None,
}
_NUMBERS = {"clip_weights", "weight_decay"}
_GROUPS = {"add_group", "grad_scale", "groups", "maximize"}
_PRECISION = {"master_weights", "rounding", "seed", "state_dtype"}
_MEMORY = {"forget", "rebind", "resize_rows", "variables_seen"}
_STEPS = {
    *("nonfinite", "num_threads", "slot_allocator", "sparse", "strategy", "track_norms"),
    "current_learning_rate",
    "last_gradient_norm",
    "last_gradient_norms",
    "skipped_steps",
    "step",
}
_OF_KERAS_3 = {
    *("averaged", "ema_momentum", "ema_overwrite_frequency", "finalize_variable_values", "use_ema"),
    *("gradient_accumulation_reduction", "gradient_accumulation_steps"),
    *("accumulated_calls", "flush", "loss_scale", "scale_loss"),
}
OUR_NAMES = {
    "keras": {
        "build",
        "form",
        "name",
        "one_step",
        "sync",
        *_NUMBERS,
        *_PRECISION,
        *_GROUPS,
        *_MEMORY,
        *_STEPS,
        *_OF_KERAS_3,
    },
    "train": {"build", "sync", *_PRECISION, *_GROUPS, *_MEMORY, *_STEPS},
}
# Signatures of the TensorFlow that was asked (2.21) that are not those of the pages (2.15, 1.10).
RECORDED_OTHERWISE = {
    ("keras", "__init__"): lambda text: text.replace(", **kwargs", ""),  # spelled out by us
    ("keras", "add_weight"): lambda text: (  # there are no replicas to place weights on
        text.replace("<VariableSynchronization.AUTO: 0>", "None").replace(
            "<VariableAggregationV2.NONE: 0>", "None"
        )
    ),
    ("train", "apply_gradients"): lambda text: text.replace(
        ", skip_gradients_aggregation=False", ""
    ),
}


def our_name_of_a_slot(optimizer, variable, slot):
    """Ours on both faces; TensorFlow 1 calls slots "W/RMSProp:0", "W/RMSProp_1:0" and so on."""
    return f"{optimizer}/{variable}/{slot}:0"


# --- Names and signatures --------------------------------------------------------------------


every_method = pytest.mark.parametrize(
    ("face", "name"), [(face, name) for face, methods in METHODS.items() for name in methods]
)


def parameters_of(function):
    """The parameters of a function or method, without self or cls."""
    parameters = list(inspect.signature(function).parameters.values())
    return [p for p in parameters if p.name not in ("self", "cls")]


@every_method
def test_a_method_takes_the_arguments_of_the_page(face, name):
    parameters = parameters_of(getattr(CLASSES[face], name))
    page = METHODS[face][name]
    shared, own = parameters[: len(page)], parameters[len(page) :]
    assert [(p.name, p.default) for p in shared] == list(page.items())
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in shared)
    expected = {}
    if name == "__init__":
        expected = (KEYWORDS | FORM_KEYWORDS if face == "keras" else {}) | OUR_KEYWORDS
    assert {p.name: p.default for p in own} == expected
    assert all(p.kind is p.KEYWORD_ONLY for p in own)


@every_method
def test_the_page_is_what_tensorflow_has(face, name):
    recorded = RECORDED[face]["signatures"][name]
    change = RECORDED_OTHERWISE.get((face, name))
    if change is not None:
        changed = change(recorded)
        assert changed != recorded  # a deviation that is none must be struck off the list
        recorded = changed
    first = [] if name == "from_config" else ["self"]  # which Python leaves out of a class method's
    assert recorded == written(METHODS[face][name], *first)


def written(arguments, *first):
    """A signature as Python writes it."""
    rest = [
        name if default is REQUIRED else f"{name}={default!r}"
        for name, default in arguments.items()
    ]
    return f"({', '.join([*first, *rest])})"


@every_face
def test_no_name_is_missing_and_none_is_there_unasked(face):
    page = {*METHODS[face], *ATTRIBUTES[face]} - {"__init__"}
    assert page == set(RECORDED[face]["class_names"])
    optimizer = CLASSES[face](0.1)
    ours = {name for name in dir(optimizer) if not name.startswith("_")}
    assert ours == {*page, *RECORDED[face]["instance_names"], *OUR_NAMES[face]}
    assert page <= set(dir(CLASSES[face]))


@every_face
def test_all_arguments_of_the_page_may_be_given_by_position(face):
    page = METHODS[face]["__init__"]
    values = dict.fromkeys(page, 0.125) | {"use_locking": True, "centered": True, "name": "me"}
    arguments = {name: values[name] for name in page}
    by_position, by_name = CLASSES[face](*arguments.values()), CLASSES[face](**arguments)
    assert repr(by_position) == repr(by_name)
    assert all(word in repr(by_name) for word in ("0.125", "True", "me"))


@every_face
def test_unknown_keywords_are_refused(face):
    with pytest.raises(TypeError, match="learning_rat"):
        CLASSES[face](0.1, learning_rat=0.1)
    with pytest.raises(TypeError, match="learning_rat"):
        rmsjit.RMSprop.from_config({"learning_rat": 0.1})


@every_method
def test_methods_refuse_unknown_keywords(face, name):
    method = getattr(CLASSES[face](0.1), name)
    required = [0.1 for default in METHODS[face][name].values() if default is REQUIRED]
    with pytest.raises(TypeError, match="nonsense"):
        method(*required, nonsense=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"learing_rate": 1},
            "RMSprop has no argument 'learing_rate'; did you mean 'learning_rate'",
        ),
        ({"clip_norm": 1}, "did you mean 'clipnorm'"),
        ({"eps": 1}, "it is called 'epsilon' here"),
        ({"nesterov": True}, "RMSprop has no argument 'nesterov'$"),
    ],
)
def test_unknown_arguments_are_answered_by_known_ones(given, message):
    with pytest.raises(TypeError, match=message):
        rmsjit.RMSprop(**given)


def test_arguments_of_a_group():
    optimizer = rmsjit.RMSprop(0.1)
    with pytest.raises(TypeError, match=r"RMSprop.add_group has .* is called 'learning_rate' here"):
        optimizer.add_group("*", lr=0.1)
    with pytest.raises(TypeError, match=r"add_group has .*; did you mean 'lr_multiplier'"):
        optimizer.add_group("*", lr_multiplyer=0.1)
    with pytest.raises(AttributeError, match="lr_multiplyer"):
        optimizer.add_group("*").lr_multiplyer = 0.1
    with pytest.raises(TypeError, match="called 'decay' here"):
        rmsjit.train.RMSPropOptimizer(0.1, alpha=0.5)


@every_face
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse", "exact"),
        ("nonfinite", "skip"),
        ("track_norms", True),
        ("num_threads", 1),
        ("slot_allocator", np.zeros),
    ],
)
def test_how_steps_are_taken_is_fixed_at_construction(face, name, value):
    assert getattr(CLASSES[face](0.1, **{name: value}), name) == value
    optimizer = CLASSES[face](0.1)
    before = getattr(optimizer, name)
    with pytest.raises(AttributeError, match=f"^{name} of .* is fixed at construction"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


def test_aliases():
    assert rmsjit.RMSProp is rmsjit.RMSprop
    assert {"RMSProp", "RMSprop", "train"} <= set(rmsjit.__all__)
    assert all(hasattr(rmsjit, name) for name in rmsjit.__all__)
    assert set(rmsjit.__all__) <= set(dir(rmsjit))


def test_gates():
    gates = RECORDED["train"]["gates"]
    for holder in (rmsjit.train, CLASSES["train"], CLASSES["train"](0.1)):
        assert {name: getattr(holder, name) for name in gates} == gates


def test_the_default_name():
    assert CLASSES["train"](0.1).get_name() == RECORDED["train"]["default_name"]
    assert rmsjit.RMSprop().get_config()["name"] == "RMSprop"


# --- Attributes ------------------------------------------------------------------------------


def test_hyperparameters_are_attributes_and_show_in_dir():
    optimizer = rmsjit.RMSprop(0.25, rho=0.5, momentum=0.125, epsilon=1e-3, decay=0.75)
    assert set(HYPERPARAMETERS) <= set(dir(optimizer))
    assert set(HYPERPARAMETERS) <= set(RECORDED["keras"]["instance_names"])
    values = [getattr(optimizer, name) for name in HYPERPARAMETERS]
    assert values == [False, 0.75, 1e-3, 0.25, 0.25, 0.125, 0.5]
    for name in set(HYPERPARAMETERS) - {"centered"}:
        setattr(optimizer, name, 0.0625)
        assert getattr(optimizer, name) == 0.0625
    with pytest.raises(AttributeError):
        optimizer.centered = True


def test_lr_is_learning_rate():
    optimizer = rmsjit.RMSprop()
    optimizer.lr = 0.5
    assert optimizer.learning_rate == 0.5
    optimizer.learning_rate = 0.25
    assert optimizer.lr == 0.25


@pytest.mark.parametrize("name", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clips_are_attributes(name):
    assert getattr(rmsjit.RMSprop(), name) is None
    optimizer = rmsjit.RMSprop(**{name: 1.5})
    assert getattr(optimizer, name) == 1.5
    setattr(optimizer, name, None)
    assert getattr(optimizer, name) is None
    assert name not in optimizer.get_config()


def test_iterations_and_weights_are_read_where_they_stand():
    optimizer = rmsjit.RMSprop()
    assert int(optimizer.iterations) == 0
    assert [weight.name for weight in optimizer.weights] == ["RMSprop/iter:0"]
    assert optimizer.weights[0] is optimizer.iterations
    with pytest.raises(AttributeError):
        optimizer.weights = []


# --- Weights ---------------------------------------------------------------------------------

FORMS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "both": {"momentum": 0.9, "centered": True},
}


def one_step(face, form, name=None):
    """An optimizer after a step as it was taken for the record, and its variables by name."""
    variables = {
        "W": rmsjit.Variable(np.ones((2, 3)), name="W"),
        "b": rmsjit.Variable(np.ones(3), name="b"),
    }
    given = {} if name is None else {"name": name}
    optimizer = CLASSES[face](0.01, **FORMS[form], **given)
    optimizer.apply_gradients([(np.ones(v.shape), v) for v in variables.values()])
    return optimizer, variables


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_tf_keras(form):
    recorded = RECORDED["keras"]["weights"][form]
    optimizer, _ = one_step("keras", form)
    for weights in (optimizer.weights, optimizer.variables()):
        assert [weight.name for weight in weights] == recorded["names"]
        assert [weight.dtype.name for weight in weights] == recorded["dtypes"]
        assert [list(weight.shape) for weight in weights] == recorded["shapes"]
    assert [list(array.shape) for array in optimizer.get_weights()] == recorded["shapes"]
    assert optimizer.get_slot_names() == recorded["slot_names"]


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_tensorflow_1_but_for_their_names(form):
    recorded = RECORDED["train"]["weights"][form]
    optimizer, variables = one_step("train", form)
    of_name = {
        name: (variable, slot)
        for variable, slots in recorded["by_slot"].items()
        for slot, name in slots.items()
    }
    expected = [our_name_of_a_slot("RMSProp", *of_name[name]) for name in recorded["names"]]
    weights = optimizer.variables()
    assert [weight.name for weight in weights] == expected
    assert all(weight.dtype == np.float64 for weight in weights)
    assert [weight.shape for weight in weights] == [
        variables[of_name[name][0]].shape for name in recorded["names"]
    ]
    assert optimizer.get_slot_names() == recorded["slot_names"]


@every_face
def test_the_name_is_the_prefix_of_the_names_of_weights(face):
    optimizer, _ = one_step(face, "both", name="mine")
    assert {weight.name.split("/")[0] for weight in optimizer.variables()} == {"mine"}


@pytest.mark.parametrize("name", RECORDED["keras"]["configs"])
def test_a_recorded_config_makes_an_optimizer_that_gives_it_back(name):
    recorded = RECORDED["keras"]["configs"][name]
    optimizer = rmsjit.RMSprop.from_config(recorded)
    assert json.loads(json.dumps(optimizer.get_config())) == recorded
    assert list(optimizer.get_config()) == list(recorded)


# --- Examples of the pages -------------------------------------------------------------------


def test_usage():
    opt = rmsjit.RMSprop(learning_rate=0.1)
    var1 = rmsjit.Variable(10.0)
    loss = lambda: (var1**2) / 2.0  # noqa: E731  # as the page has it
    step_count = opt.minimize(loss, [var1]).numpy()
    assert step_count == 1
    assert var1.numpy() == np.float32(9.683772)
    assert str(var1.numpy()) == "9.683772"


def test_apply_gradients_with_gradients_that_were_summed_elsewhere():
    v, w = rmsjit.Variable([1.0, 2.0]), rmsjit.Variable(3.0)
    with rmsjit.GradientTape() as tape:
        loss = (v * w).sum()
    variables = [v, w]
    grads = [4 * gradient for gradient in tape.gradient(loss, variables)]  # of four replicas
    optimizer = rmsjit.RMSprop(0.1)
    optimizer.apply_gradients(
        zip(grads, variables, strict=True), experimental_aggregate_gradients=False
    )
    twin = [rmsjit.Variable([1.0, 2.0]), rmsjit.Variable(3.0)]
    rmsjit.RMSprop(0.1).apply_gradients(zip([[12.0, 12.0], 12.0], twin, strict=True))
    assert v.tolist() == twin[0].tolist()
    assert w.numpy() == twin[1].numpy()


def dense_layer(opt):
    """The model of the page: one layer of ten units on five samples of twenty numbers."""
    rng = np.random.default_rng(0)
    kernel = rmsjit.Variable(rng.normal(size=(20, 10)).astype("f4"), name="dense/kernel")
    bias = rmsjit.Variable(np.zeros(10, "f4"), name="dense/bias")
    data, labels = np.arange(100, dtype="f4").reshape(5, 20), np.zeros((5, 1), "f4")
    opt.minimize(lambda: anp.mean((data @ kernel + bias - labels) ** 2), [kernel, bias])
    return kernel, bias


def test_get_weights():
    opt = rmsjit.RMSprop()
    kernel, bias = dense_layer(opt)
    weights = opt.get_weights()
    assert len(weights) == 3
    assert [weight.shape for weight in weights] == [(), (20, 10), (10,)]
    assert weights[0] == 1
    assert np.all(weights[1] > 0)
    np.testing.assert_array_equal(weights[1], opt.get_slot(kernel, "rms").numpy())
    np.testing.assert_array_equal(weights[2], opt.get_slot(bias, "rms").numpy())


def test_set_weights():
    opt = rmsjit.RMSprop()
    kernel, bias = dense_layer(opt)
    new_weights = [np.array(10), np.ones([20, 10]), np.zeros([10])]
    opt.set_weights(new_weights)
    assert repr(opt.iterations) == (
        "<rmsjit.Variable 'RMSprop/iter:0' shape=() dtype=int64, numpy=10>"
    )
    assert np.all(opt.get_slot(kernel, "rms").numpy() == 1)
    assert np.all(opt.get_slot(bias, "rms").numpy() == 0)


def test_tensorflow_1_in_two_steps_and_in_one():
    def train(opt, w, step):
        opt.minimize(lambda w: (w * w).sum(), step, [w])

    def train_by_hand(opt, w, step):
        grads_and_vars = opt.compute_gradients(lambda w: (w * w).sum(), [w])
        opt.apply_gradients(grads_and_vars, global_step=step)

    results = []
    for way in (train, train_by_hand):
        w, step = np.array([1.0, -2.0]), np.zeros((), np.int64)
        opt = rmsjit.train.RMSPropOptimizer(lambda: 0.1, decay=lambda: 0.9, momentum=lambda: 0.5)
        for _ in range(3):
            way(opt, w, step)
        results.append((w.tolist(), int(step)))
    assert results[0] == results[1]
    assert results[0][1] == 3
    assert np.all(np.abs(results[0][0]) < [1, 2])


# --- Docstrings ------------------------------------------------------------------------------


def documented_parameters(doc):
    """The names under "Parameters", or None where there is no such heading."""
    lines = inspect.cleandoc(doc or "").splitlines()
    heads = [
        (k, line) for k, line in enumerate(lines) if k + 1 < len(lines) and is_rule(lines[k + 1])
    ]
    starts = [k for k, line in heads if line == "Parameters"]
    if not starts:
        return None
    start = starts[0] + 2
    end = min((k for k, _ in heads if k > start), default=len(lines))
    entries = [line for line in lines[start:end] if line and not line.startswith(" ")]
    return [name.strip() for entry in entries for name in entry.partition(" : ")[0].split(",")]


def is_rule(line):
    return re.fullmatch("-{3,}", line) is not None


def docstring_faults(function, doc=None, required=True):
    """What is wrong with the docstring of a function; nothing if all is well."""
    doc = inspect.getdoc(function) if doc is None else doc
    if not doc:
        return ["has no docstring"]
    if not doc.splitlines()[0].rstrip().endswith((".", ":")):
        return ["begins with a line that is no sentence"]
    expected = [p.name for p in parameters_of(function)]
    documented = documented_parameters(doc)
    if documented is None:
        return ["has no Parameters"] if expected and required else []
    if sorted(documented) != sorted(expected):
        return [f"documents {documented} instead of {expected}"]
    return []


@every_face
def test_every_public_method_has_a_docstring_with_its_parameters(face):
    cls = CLASSES[face]
    faults = {"class": docstring_faults(cls)}
    for name, member in inspect.getmembers(cls):
        if not name.startswith("_"):
            if callable(member):
                faults[name] = docstring_faults(member)
            elif isinstance(member, property):
                faults[name] = [] if member.__doc__ else ["has no docstring"]
    assert {name: fault for name, fault in faults.items() if fault} == {}
    assert set(METHODS[face]) - {"__init__"} <= faults.keys()


def public_objects():
    for module in (rmsjit, rmsjit.schedules):
        for name in module.__all__:
            member = getattr(module, name)
            if not isinstance(member, types.ModuleType):
                yield f"{module.__name__}.{name}", member


@pytest.mark.parametrize(("name", "member"), list(public_objects()))
def test_what_else_is_public_documents_no_other_parameters_than_it_has(name, member):
    faults = {name: docstring_faults(member, required=False)}
    if inspect.isclass(member):
        for method, function in inspect.getmembers(member, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("rmsjit"):
                faults[method] = docstring_faults(function, required=False)
    assert {name: fault for name, fault in faults.items() if fault} == {}


WITHOUT = """One line.

Returns
-------
int
"""
RIGHT = """One line.

Parameters
----------
a, b : int
    Their sum : a number.
c : str

Returns
-------
d : int
"""


def test_the_check_of_docstrings_notices_mistakes():
    def function(a, b, c=0):
        pass

    assert docstring_faults(function) == ["has no docstring"]
    assert docstring_faults(function, "no sentence") == ["begins with a line that is no sentence"]
    assert docstring_faults(function, WITHOUT) == ["has no Parameters"]
    assert docstring_faults(function, WITHOUT, required=False) == []
    assert docstring_faults(function, RIGHT) == []
    for wrong in ("c : str", "c : str\ne : int"):
        changed = RIGHT.replace("c : str", "" if wrong == "c : str" else wrong)
        (fault,) = docstring_faults(function, changed)
        assert "instead of ['a', 'b', 'c']" in fault
    assert docstring_faults(lambda: None, "One line.") == []


def test_docstrings_say_which_arguments_are_ignored():
    for face, method in [("train", "compute_gradients"), ("keras", "apply_gradients")]:
        assert "no graph" in " ".join(inspect.getdoc(getattr(CLASSES[face], method)).split())


class Counting:
    """A strategy that counts its optimizers, as that of MPI numbers them."""

    def __init__(self):
        self.optimizers = 0

    def enrol(self):
        self.optimizers += 1
        return self.optimizers

    def reduced(self, engine, request):
        raise NotImplementedError


@pytest.mark.parametrize(
    "wrong", [{"name": 5}, {"slot_allocator": 5}, {"num_threads": 0}, {"sparse": "all"}], ids=str
)
def test_an_optimizer_that_fails_to_be_made_is_not_counted(wrong):
    strategy = Counting()
    with pytest.raises((TypeError, ValueError)):
        rmsjit.RMSprop(strategy=strategy, **wrong)
    assert strategy.optimizers == 0
    rmsjit.RMSprop(strategy=strategy)
    assert strategy.optimizers == 1
