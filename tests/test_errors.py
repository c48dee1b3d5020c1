"""Every error is clear, and leaves everything as it was, byte for byte."""

import re

import numpy as np
import pytest

import rmsjit
from pairs import every_pair
from rmsjit.schedules import ExponentialDecay, LearningRateSchedule
from strategies import BOTH, TRAIN, Form, state_of

LIKE_BOTH = Form("train", True, 0.9)
FACES = [BOTH, LIKE_BOTH]
every_face = pytest.mark.parametrize("form", FACES, ids=["keras", "train"])


def good_pairs():
    """Two variables with gradients; the second has the name that messages show."""
    a = np.arange(6, dtype="float32").reshape(2, 3)
    b = rmsjit.Variable(np.ones(4), name="bias")
    return [(np.ones((2, 3), "float32"), a), (np.full(4, 2.0), b)]


class Opaque:
    """Neither an array nor anything like one."""

    def __repr__(self):
        return "Opaque()"


class Failing:
    def __array__(self, dtype=None, copy=None):
        raise ValueError("no array of me")


# Arguments of both optimizers, the error and its message.
BAD_SETTINGS = {
    "centered": ("yes", TypeError, "centered must be True or False, got 'yes'"),
    "centered ": (np.ones(2), TypeError, "centered must be True or False, got array"),
    "rounding": (np.ones(2), ValueError, 'rounding must be "nearest" or "stochastic", got array'),
    "sparse": (np.ones(2), ValueError, 'sparse must be "rows" or "exact", got array'),
    "nonfinite": (np.ones(2), ValueError, 'nonfinite must be "propagate", .* got array'),
}


@pytest.mark.parametrize("make", [rmsjit.RMSprop, rmsjit.train.RMSPropOptimizer])
@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_arguments_name_what_they_may_be(name, make):
    value, error, match = BAD_SETTINGS[name]
    with pytest.raises(error, match=match):
        make(0.1, **{name.strip(): value})


@pytest.mark.parametrize("transformers", [5, len, [3]])
def test_transformers_are_callables(transformers):
    with pytest.raises(TypeError, match=r"gradient_transformers.* must be (a list of )?callable"):
        rmsjit.RMSprop(gradient_transformers=transformers)


def test_a_transformer_must_return_pairs():
    w, optimizer = np.ones(2), rmsjit.RMSprop(gradient_transformers=[list, lambda pairs: None])
    with pytest.raises(TypeError, match=r"gradient_transformers\[1\] must return pairs, got None"):
        optimizer.apply_gradients([(np.ones(2), w)])
    np.testing.assert_array_equal(w, 1.0)


def test_use_locking_is_a_flag():
    with pytest.raises(TypeError, match="use_locking must be True or False, got 'no'"):
        rmsjit.train.RMSPropOptimizer(0.1, use_locking="no")


# For a variable of shape (2, 3) and dtype float32: the gradient, the error and its message after
# the words "the gradient of variable k".
BAD_GRADIENTS = {
    "shape": (np.ones((3, 2)), ValueError, r"must have its shape \(2, 3\), got \(3, 2\)"),
    "size": (np.ones((2, 4)), ValueError, r"shape \(2, 3\), got \(2, 4\)"),
    "scalar": (1.0, ValueError, r"shape \(2, 3\), got \(\)"),
    "0-d array": (np.ones(()), ValueError, r"shape \(2, 3\), got \(\)"),
    "flat": (np.ones(6, "float32"), ValueError, r"shape \(2, 3\), got \(6,\)"),
    "broadcastable": (np.ones(3), ValueError, r"shape \(2, 3\), got \(3,\)"),
    "one more axis": (np.ones((1, 2, 3)), ValueError, r"shape \(2, 3\), got \(1, 2, 3\)"),
    "empty": (np.ones((0, 3)), ValueError, r"shape \(2, 3\), got \(0, 3\)"),
    "empty list": ([], ValueError, r"shape \(2, 3\), got \(0,\)"),
    "list of another shape": ([[1.0, 2.0]], ValueError, r"shape \(2, 3\), got \(1, 2\)"),
    "Variable of another shape": (
        rmsjit.Variable([1.0]),
        ValueError,
        r"shape \(2, 3\), got \(1,\)",
    ),
    "complex": (np.ones((2, 3), complex), TypeError, r"casts to float32 .*got complex128"),
    "complex list": ([[1j] * 3] * 2, TypeError, r"casts to float32 .*got complex128"),
    "text": (np.full((2, 3), "1"), TypeError, r"casts to float32 .*got <U1"),
    "bytes": (np.full((2, 3), b"1"), TypeError, r"casts to float32 .*got \|S1"),
    "object": (np.ones((2, 3), object), TypeError, r"casts to float32 .*got object"),
    "datetime": (np.zeros((2, 3), "M8[s]"), TypeError, r"casts to float32 .*got datetime64"),
    "structured": (np.zeros((2, 3), "f4,f4"), TypeError, r"casts to float32 .*got \[\('f0'"),
    "ragged list": ([[1.0, 2.0, 3.0], [1.0]], TypeError, r"nested list of numbers"),
    "list with None": ([[1.0, 2.0, None]] * 2, TypeError, r"casts to float32 .*got object"),
    "list of text": ([["a"] * 3] * 2, TypeError, r"casts to float32 .*got <U1"),
    "string": ("gradient", TypeError, r"an array or a nested list, got str 'gradient'"),
    "bytes object": (b"gradient", TypeError, r"an array or a nested list, got bytes"),
    "dict": ({"a": 1}, TypeError, r"an array or a nested list, got dict"),
    "set": ({1.0}, TypeError, r"an array or a nested list, got set"),
    "function": (np.sum, TypeError, r"an array or a nested list, got .*function"),
    "object of its own": (Opaque(), TypeError, r"an array or a nested list, got Opaque Opaque\(\)"),
    "array that fails": (Failing(), TypeError, r"no array of me"),
}


def read_only(dtype="float32"):
    array = np.ones((2, 3), dtype)
    array.setflags(write=False)
    return array


# The variable, its gradient if not ones, the error, and its message after "variable k".
BAD_VARIABLES = {
    "list": ([1.0, 2.0], [1.0, 1.0], TypeError, r"a NumPy array or an rmsjit.Variable, got list"),
    "number": (3.0, 1.0, TypeError, r"a NumPy array .*, got float 3\.0"),
    "NumPy scalar": (np.float32(3), 1.0, TypeError, r"a NumPy array .*, got float32"),
    "None": (None, 1.0, TypeError, r"a NumPy array .*, got NoneType None"),
    "string": ("w", 1.0, TypeError, r"a NumPy array .*, got str 'w'"),
    "object of its own": (Opaque(), 1.0, TypeError, r"a NumPy array .*, got Opaque Opaque\(\)"),
    "integers": (np.ones(3, int), None, TypeError, r"dtypes float16, .*, got dtype\('int64'\)"),
    "bools": (np.ones(3, bool), None, TypeError, r"dtypes float16, .*, got dtype\('bool'\)"),
    "longdouble": (np.ones(3, "longdouble"), None, TypeError, r"dtypes .*, got dtype\("),
    "objects": (np.ones(3, object), None, TypeError, r"dtypes .*, got dtype\('O'\)"),
    "other byte order": (
        np.ones(3, ">f4"),
        None,
        TypeError,
        r"native byte order, got dtype\('>f4'\)",
    ),
    "structured": (np.zeros(3, "f4,f4"), np.ones(3), TypeError, r"dtypes .*, got dtype\(\["),
    "integer Variable": (rmsjit.Variable([1, 2], "n"), None, TypeError, r"\(n:0\) must .*int32"),
    "read-only": (read_only(), None, ValueError, r"must be writeable, got a read-only array"),
    "read-only Variable": (
        rmsjit.Variable(read_only(), "frozen"),
        None,
        ValueError,
        r"\(frozen:0\) must be writeable",
    ),
    "broadcast": (
        np.lib.stride_tricks.as_strided(np.ones(3), (2, 3), (0, 8)),
        None,
        ValueError,
        r"an element of its own at every index, got strides \(0, 8\) for shape \(2, 3\)",
    ),
}


def refused(optimizer, pairs, error, message):
    """The step raises this error, twice, and nothing changes."""
    arrays = [v for _, v in pairs if isinstance(v, (np.ndarray, rmsjit.Variable))]
    arrays += [g for g, _ in pairs if isinstance(g, np.ndarray) and g.dtype != object]
    before = state_of(optimizer, arrays)
    for _ in range(2):
        with pytest.raises(error) as caught:
            optimizer.apply_gradients(pairs)
        assert type(caught.value) is error
        assert re.search(message, str(caught.value)), str(caught.value)
        assert state_of(optimizer, arrays) == before


def placed(bad, good, position):
    return [bad, *good] if position == 0 else [*good, bad]


def train(optimizer, pairs, steps=2):
    for _ in range(steps):
        optimizer.apply_gradients(pairs)


MOMENTS = ["first step", "later step", "later step, variable known"]


@every_pair(name=BAD_GRADIENTS, moment=MOMENTS, position=[0, 2], form=FACES)
def test_bad_gradient(form, name, moment, position):
    gradient, error, message = BAD_GRADIENTS[name]
    optimizer, good = form.optimizer(), good_pairs()
    variable = np.ones((2, 3), "float32")
    if moment == "later step":
        train(optimizer, good)
    elif moment == "later step, variable known":
        train(optimizer, placed((np.ones((2, 3), "float32"), variable), good, position))
    pairs = placed((gradient, variable), good, position)
    refused(optimizer, pairs, error, rf"^the gradient of variable {position} .*{message}")
    train(optimizer, good)  # and it goes on


@every_pair(name=BAD_VARIABLES, moment=MOMENTS[:2], position=[0, 2], form=FACES)
def test_bad_variable(form, name, moment, position):
    variable, gradient, error, message = BAD_VARIABLES[name]
    optimizer, good = form.optimizer(), good_pairs()
    if moment == "later step":
        train(optimizer, good)
    gradient = np.ones_like(np.asarray(variable)) if gradient is None else gradient
    pairs = placed((gradient, variable), good, position)
    refused(optimizer, pairs, error, rf"^variable {position} .*{message}")
    train(optimizer, good)


@every_face
def test_the_name_of_a_variable_is_in_the_message(form):
    pairs = [*good_pairs(), (np.ones(2), rmsjit.Variable([1.0], name="scale"))]
    refused(
        form.optimizer(), pairs, ValueError, r"variable 2 \(scale:0\) must have its shape \(1,\)"
    )


@every_face
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("position", [0, 2])
def test_overlapping_variables(form, later, position):
    optimizer, good = form.optimizer(), good_pairs()
    if later:
        train(optimizer, good)
    a = good[0][1]
    bad = (np.ones(3, "float32"), a[1])
    message = rf"must not overlap in part.*variable {position} of shape \(3,\)"
    refused(optimizer, placed(bad, good, position), ValueError, message)


MALFORMED = {
    "a pair of three": (
        [(1, 2, 3)],
        r"grads_and_vars\[{k}\] must be a \(gradient, variable\) pair",
    ),
    "a single": ([(1,)], r"grads_and_vars\[{k}\] must be .* pair, got tuple \(1,\)"),
    "an empty pair": ([()], r"grads_and_vars\[{k}\] must be .* pair, got tuple \(\)"),
    "a number": ([3], r"grads_and_vars\[{k}\] must be .* pair, got int 3"),
    "None": ([None], r"grads_and_vars\[{k}\] must be .* pair, got NoneType None"),
    "an array": ([np.ones(3)], r"grads_and_vars\[{k}\] must be .* pair, got ndarray"),
    "an array of two": ([np.ones((2, 3))], r"grads_and_vars\[{k}\] must be .* pair, got ndarray"),
    "a string of two": (["ab"], r"grads_and_vars\[{k}\] must be .* pair, got str 'ab'"),
    "a set of two": ([{1, 2}], r"grads_and_vars\[{k}\] must be .* pair, got set"),
    "a dict of two": ([{1: 2, 3: 4}], r"grads_and_vars\[{k}\] must be .* pair, got dict"),
}


@every_face
@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pair(form, name, position):
    (pair,), message = MALFORMED[name]
    optimizer, good = form.optimizer(), good_pairs()
    train(optimizer, good)
    before = state_of(optimizer, [v for _, v in good])
    with pytest.raises(TypeError, match=message.replace("{k}", str(position))):
        optimizer.apply_gradients(placed(pair, good, position))
    assert state_of(optimizer, [v for _, v in good]) == before


@every_face
@pytest.mark.parametrize("pairs", [None, 3, np.float32(3), Opaque(), len])
def test_no_iterable_of_pairs(form, pairs):
    message = rf"must be an iterable of \(gradient, variable\) pairs, got {type(pairs).__name__}"
    with pytest.raises(TypeError, match=message):
        form.optimizer().apply_gradients(pairs)


@every_face
@pytest.mark.parametrize("later", [False, True])
def test_no_gradient_at_all(form, later):
    optimizer, good = form.optimizer(), good_pairs()
    if later:
        train(optimizer, good)
    message = r"no gradient .*variable 0, variable 1 \(bias:0\)"
    refused(optimizer, [(None, v) for _, v in good], ValueError, message)


# --- Hyperparameters that turn out bad at the step -------------------------------------------


def raises():
    raise ZeroDivisionError("mine")


class BadSchedule(LearningRateSchedule):
    def __call__(self, step):
        return "fast"

    def get_config(self):
        return {}


BAD_VALUES = {
    "NaN": (lambda: float("nan"), ValueError, r"{name} \(from .*\) must be finite, got nan"),
    "infinite": (lambda: np.inf, ValueError, r"{name} \(from .*\) must be finite, got inf"),
    "text": (lambda: "0.5", TypeError, r"{name} \(from .*\) must be a number, got '0.5'"),
    "None": (lambda: None, TypeError, r"{name} \(from .*\) must be a number, got None"),
    "an array": (lambda: np.ones(2), TypeError, r"{name} \(from .*\) must be a number"),
    "complex": (lambda: 1j, TypeError, r"{name} \(from .*\) must be a number, got 1j"),
    "an argument": (lambda step: 0.5, TypeError, r"argument"),
    "its own error": (raises, ZeroDivisionError, r"mine"),
}

OUT_OF_RANGE = [
    ("keras", "rho", 1.5, r"rho must be between 0 and 1, got 1.5"),
    ("keras", "momentum", -0.5, r"momentum must be between 0 and 1, got -0.5"),
    ("train", "decay", -0.5, r"decay must be between 0 and 1, got -0.5"),
    ("train", "momentum", 2, r"momentum must be between 0 and 1, got 2"),
    ("train", "epsilon", 0.0, r"epsilon must be positive, got 0.0"),
    ("train", "epsilon", -1.0, r"epsilon must be positive, got -1.0"),
]


def with_callable(face, name, function):
    arguments = {"learning_rate": 0.1, "momentum": 0.5, "centered": True}
    make = rmsjit.RMSprop if face == "keras" else rmsjit.train.RMSPropOptimizer
    current = {"value": lambda: 0.5}
    optimizer = make(**{**arguments, name: lambda: current["value"]()})
    return optimizer, lambda: current.update(value=function)


HYPERPARAMETERS = [
    ("keras", "learning_rate"),
    ("keras", "rho"),
    ("keras", "momentum"),
    ("train", "learning_rate"),
    ("train", "decay"),
    ("train", "epsilon"),
]


@every_pair(of=HYPERPARAMETERS, value=BAD_VALUES, later=[False, True])
def test_callable_that_gives_no_number(of, value, later):
    face, name = of
    function, error, message = BAD_VALUES[value]
    optimizer, turn_bad = with_callable(face, name, function)
    good = good_pairs()
    if later:
        train(optimizer, good)
    turn_bad()
    refused(optimizer, good, error, message.replace("{name}", name))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("face", "name", "value", "message"), OUT_OF_RANGE)
def test_callable_that_gives_a_number_out_of_range(face, name, value, message, later):
    optimizer, turn_bad = with_callable(face, name, lambda: value)
    good = good_pairs()
    if later:
        train(optimizer, good)
    turn_bad()
    refused(optimizer, good, ValueError, message)


def test_schedule_that_gives_no_number():
    refused(rmsjit.RMSprop(BadSchedule()), good_pairs(), TypeError, r"learning_rate .*got 'fast'")


@pytest.mark.parametrize("later", [False, True])
def test_epsilon_that_vanishes_in_single_precision(later):
    """The second variable is double and could be stepped."""
    optimizer, good = rmsjit.RMSprop(), good_pairs()
    if later:
        train(optimizer, good)
    optimizer.epsilon = 1e-50
    message = r"epsilon must not vanish .*got 1e-50, which is 0 in float32"
    refused(optimizer, good, ValueError, message)
    train(optimizer, good[1:])


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_clipvalue_with_a_complex_variable(dtype, later):
    optimizer, good = rmsjit.RMSprop(), [*good_pairs(), (np.ones(2), np.ones(2, dtype))]
    if later:
        train(optimizer, good)
    optimizer.clipvalue = 1.0
    refused(optimizer, good, TypeError, rf"clipvalue .*complex variables \({dtype}\)")


# --- Constructors and attributes -------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"learning_rate": "fast"}, TypeError, r"learning_rate must be a number, got 'fast'"),
    ({"learning_rate": None}, TypeError, r"learning_rate must be a number, got None"),
    ({"learning_rate": True}, TypeError, r"learning_rate must be a number, got True"),
    ({"learning_rate": np.ones(2)}, TypeError, r"learning_rate .*got ndarray array"),
    ({"learning_rate": [0.1]}, TypeError, r"learning_rate must be a number, got \[0.1\]"),
    ({"learning_rate": np.nan}, ValueError, r"learning_rate must be finite, got nan"),
    ({"learning_rate": np.inf}, ValueError, r"learning_rate must be finite, got inf"),
    ({"learning_rate": 1j}, TypeError, r"learning_rate must be a number, got 1j"),
    ({"rho": 1.5}, ValueError, r"rho must be between 0 and 1, got 1.5"),
    ({"rho": -0.1}, ValueError, r"rho must be between 0 and 1, got -0.1"),
    ({"rho": ExponentialDecay(1, 1, 1)}, TypeError, r"rho must be a number or a callable, got a s"),
    ({"momentum": 1.1}, ValueError, r"momentum must be between 0 and 1, got 1.1"),
    ({"momentum": -1}, ValueError, r"momentum must be between 0 and 1, got -1"),
    ({"momentum": None}, TypeError, r"momentum must be a number, got None"),
    ({"epsilon": -1e-7}, ValueError, r"epsilon must be positive, got -1e-07"),
    ({"epsilon": np.nan}, ValueError, r"epsilon must be finite, got nan"),
    ({"epsilon": "tiny"}, TypeError, r"epsilon must be a number, got 'tiny'"),
    ({"decay": -1}, ValueError, r"decay must not be negative, got -1"),
    ({"decay": lambda: 0.1}, TypeError, r"decay must be a number, got <function"),
    ({"clipvalue": -1}, ValueError, r"clipvalue must not be negative, got -1"),
    ({"clipnorm": -1.0}, ValueError, r"clipnorm must not be negative, got -1"),
    ({"global_clipnorm": "1"}, TypeError, r"global_clipnorm must be a number, got '1'"),
    ({"clipnorm": np.nan}, ValueError, r"clipnorm must be finite, got nan"),
    (
        {"clipnorm": 1.0, "global_clipnorm": 2.0},
        ValueError,
        r"can't both be set, got clipnorm=1.0 and global_clipnorm=2.0",
    ),
    ({"name": 3}, TypeError, r"name must be a string that is not empty, got 3"),
    ({"name": ""}, TypeError, r"name must be a string that is not empty, got ''"),
    ({"num_threads": 0}, ValueError, r"num_threads must be at least 1, got 0"),
    ({"num_threads": 1.5}, TypeError, r"num_threads must be an integer or None, got 1.5"),
    ({"num_threads": True}, TypeError, r"num_threads must be an integer or None, got True"),
    ({"learning_rat": 0.1}, TypeError, r"learning_rat"),
]
ATTRIBUTES = ["learning_rate", "rho", "momentum", "epsilon", "decay"]
ATTRIBUTES += ["clipvalue", "clipnorm", "global_clipnorm"]


def ids(arguments):
    return [",".join(f"{k}={v!r:.12}" for k, v in case[0].items()) for case in arguments]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS, ids=ids(BAD_ARGUMENTS))
def test_constructor(arguments, error, message):
    with pytest.raises(error, match=message):
        rmsjit.RMSprop(**arguments)


TF1_ARGUMENTS = [case for case in BAD_ARGUMENTS if not case[0].keys() & {"rho", *ATTRIBUTES[4:]}]
TF1_ARGUMENTS += [
    ({"decay": 1.5}, ValueError, r"decay must be between 0 and 1, got 1.5"),
    ({"epsilon": 0}, ValueError, r"epsilon must be positive, got 0"),
    ({"learning_rate": ExponentialDecay(1, 1, 1)}, TypeError, r"learning_rate must be a number or"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), TF1_ARGUMENTS, ids=ids(TF1_ARGUMENTS))
def test_constructor_of_tensorflow_1(arguments, error, message):
    with pytest.raises(error, match=message):
        rmsjit.train.RMSPropOptimizer(**{"learning_rate": 0.1, **arguments})


SETTABLE = [
    case for case in BAD_ARGUMENTS if len(case[0]) == 1 and case[0].keys() <= set(ATTRIBUTES)
]


@pytest.mark.parametrize(("arguments", "error", "message"), SETTABLE, ids=ids(SETTABLE))
def test_attribute(arguments, error, message):
    ((name, value),) = arguments.items()
    optimizer, good = BOTH.optimizer(), good_pairs()
    train(optimizer, good)
    before = getattr(optimizer, name), state_of(optimizer, []), optimizer.get_slot_names()
    with pytest.raises(error, match=message):
        setattr(optimizer, name, value)
    after = getattr(optimizer, name), state_of(optimizer, []), optimizer.get_slot_names()
    assert after == before
    train(optimizer, good)


def test_both_norms_by_attribute():
    optimizer = rmsjit.RMSprop(clipnorm=1.0)
    with pytest.raises(ValueError, match="can't both be set"):
        optimizer.global_clipnorm = 2.0
    assert optimizer.global_clipnorm is None
    optimizer.clipnorm = None
    optimizer.global_clipnorm = 2.0


def test_what_is_fixed_cannot_be_set():
    for name in ("centered", "name", "weights"):
        with pytest.raises(AttributeError):
            setattr(rmsjit.RMSprop(), name, True)


# --- Weights and slots -----------------------------------------------------------------------


def changed(weights, position, value):
    weights = list(weights)
    weights[position] = value
    return weights


BAD_WEIGHTS = {
    "too many": (lambda w: [*w, w[-1]], r"expected 7 weights \(or 6 without iterations\), got 8"),
    "too few": (lambda w: w[2:], r"expected 7 weights .*, got 5"),
    "none": (lambda w: [], r"expected 7 weights .*, got 0"),
    "shape": (
        lambda w: changed(w, 3, np.ones(5)),
        r"weights\[3\] must have the shape \(2, 3\) of BOTH/Variable/momentum:0, got \(5,\)",
    ),
    "last shape": (lambda w: changed(w, 6, np.ones((4, 1))), r"weights\[6\] must .*\(4,\) of"),
    "broadcastable": (lambda w: changed(w, 1, 1.0), r"weights\[1\] must have the shape \(2, 3\)"),
    "iterations": (lambda w: changed(w, 0, [1]), r"weights\[0\] must have the shape \(\)"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_set_weights(name):
    make, message = BAD_WEIGHTS[name]
    optimizer, good = BOTH.optimizer(name="BOTH"), good_pairs()
    train(optimizer, good)
    before = state_of(optimizer, [])
    with pytest.raises(ValueError, match=message):
        optimizer.set_weights(make([np.full(w.shape, 7, w.dtype) for w in optimizer.get_weights()]))
    assert state_of(optimizer, []) == before


@pytest.mark.parametrize(
    ("position", "value"),
    [(6, ["a"] * 4), (6, [1j] * 4), (5, np.full((2, 3), None))],
    ids=str,
)
def test_set_weights_of_a_wrong_kind(position, value):
    """The last of them is bad, and the first is not written either."""
    optimizer, good = BOTH.optimizer(), good_pairs()
    train(optimizer, good)
    weights = [np.full(w.shape, 7, w.dtype) for w in optimizer.get_weights()]
    before = state_of(optimizer, [])
    with pytest.raises((TypeError, ValueError), match=rf"weights\[{position}\]"):
        optimizer.set_weights(changed(weights, position, value))
    assert state_of(optimizer, []) == before


def test_set_weights_before_the_slots_are_there():
    optimizer = rmsjit.RMSprop()
    with pytest.raises(ValueError, match=r"expected 1 weights .*build\(var_list\)"):
        optimizer.set_weights([np.array(3), np.ones(4), np.ones(4)])
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("name", BAD_VARIABLES)
def test_build(name):
    variable, _, error, message = BAD_VARIABLES[name]
    optimizer, good = BOTH.optimizer(), good_pairs()
    message = message.replace("got list", "got float")  # the first of a list, which is a structure
    with pytest.raises(error, match=rf"^variable 2 .*{message}"):
        optimizer.build([*(v for _, v in good), variable])
    assert len(optimizer.weights) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda shape, dtype: np.zeros((*shape, 1), dtype),
        lambda shape, dtype: np.zeros(shape, "float16"),
        lambda shape, dtype: np.zeros((*shape, 2), dtype)[..., 0],
        lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), shape),
        lambda shape, dtype: None,
        lambda shape, dtype: [0.0] * shape[0],
    ],
)
@every_face
def test_slot_allocator(form, make):
    optimizer, good = form.optimizer(slot_allocator=make), good_pairs()
    message = r"slot_allocator must return .* of shape .* and dtype float.., got"
    refused(optimizer, good, ValueError, message)


def test_slot_allocator_that_fails_in_the_middle():
    made = []

    def allocate(shape, dtype):
        if len(made) == 4:
            raise OSError("no space left")
        made.append(np.empty(shape, dtype))
        return made[-1]

    refused(BOTH.optimizer(slot_allocator=allocate), good_pairs(), OSError, "no space left")


# --- Iterations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.5, TypeError, r"RMSprop/iter:0 has dtype int64, got a value of float64"),
        ([1, 2], ValueError, r"RMSprop/iter:0 has shape \(\), got a value of \(2,\)"),
        ("3", TypeError, r"RMSprop/iter:0 has dtype int64"),
        (rmsjit.Variable(1.0), TypeError, r"integer Variable of shape \(\), got float32"),
        (
            rmsjit.Variable([1]),
            TypeError,
            r"integer Variable of shape \(\), got int32 of shape \(1,",
        ),
    ],
    ids=str,
)
def test_iterations(value, error, message):
    optimizer = rmsjit.RMSprop()
    counter = optimizer.iterations
    with pytest.raises(error, match=message):
        optimizer.iterations = value
    assert optimizer.iterations is counter
    assert int(counter) == 0


def test_iterations_that_cannot_be_counted_up():
    """Found before the step, not after it."""
    memory = np.zeros((), np.int64)
    optimizer, good = rmsjit.RMSprop(), good_pairs()
    optimizer.iterations = rmsjit.Variable(memory)
    memory.setflags(write=False)
    refused(optimizer, good, ValueError, r"read-only|writeable")


def frozen(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "step",
    [3, 1.5, "3", np.array(1.5), np.array([1]), np.int64(3), rmsjit.Variable([1])]
    + [frozen(np.array(3))],
)
def test_global_step(step):
    optimizer, good = TRAIN[0].optimizer(), good_pairs()
    before = state_of(optimizer, [v for _, v in good])
    with pytest.raises(TypeError, match=r"global_step must be a writeable integer array of shape"):
        optimizer.apply_gradients(good, global_step=step)
    assert state_of(optimizer, [v for _, v in good]) == before


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"learning_rat": 0.1}, TypeError, r"learning_rat"),
        ({"rho": 2}, ValueError, r"rho must be between"),
        (
            {"learning_rate": {"class_name": "Unknown", "config": {}}},
            ValueError,
            r"Unknown",
        ),
    ],
)
def test_from_config(config, error, message):
    with pytest.raises(error, match=message):
        rmsjit.RMSprop.from_config(config)
