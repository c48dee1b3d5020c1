"""What comes from elsewhere keeps its precision, or is refused by name."""

import fractions
import json
import warnings
from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

# --- Variable -------------------------------------------------------------------------------


class Foreign:
    """What tensors, series and the like of other libraries are to NumPy."""

    def __init__(self, value):
        self.value = np.asarray(value)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype or self.value.dtype)


class WithoutCopy(Foreign):
    """As tensors of torch are: NumPy warns when it has to copy one."""

    def __array__(self, dtype=None):
        return self.value if dtype is None else self.value.astype(dtype)


class Interfaced:
    def __init__(self, value):
        self.__array_interface__ = np.asarray(value).__array_interface__
        self._kept = value


ONE = np.float64(0.1)
KEPT = {
    "array": np.array([0.1]),
    "scalar": ONE,
    "int64 scalar": np.int64(3),
    "__array__": Foreign([0.1]),
    "__array__ of int64": Foreign([1]),
    "__array__ of complex128": Foreign([1j]),
    "__array__ without copy": WithoutCopy([0.1]),
    "__array_interface__": Interfaced(np.array([0.1])),
    "memoryview": memoryview(np.array([0.1])),
    "list of scalars": [ONE],
    "list of int64": [np.int64(1)],
    "list of complex128": [np.complex128(1j)],
    "mixed list": [0.5, ONE],
    "deep mixed list": [[0.5, 0.25], [0.5, ONE]],
    "tuple of scalars": (ONE, ONE),
    "list of arrays": [np.array([0.1]), np.array([0.2])],
    "list of foreign ones": [Foreign([0.1]), Foreign([0.2])],
    "list of foreign ones without copy": [WithoutCopy([0.1])],
    "list of variables": [rmsjit.Variable(np.array([0.1]))],
    "callable": lambda: [ONE],
    "variable": rmsjit.Variable(np.array([0.1])),
}
NARROWED = [
    (0.1, "float32"),
    (1, "int32"),
    (1j, "complex64"),
    (True, "bool"),
    ([0.1, 2], "float32"),
    ((0.1,), "float32"),
    ([[0.1], (0.2,)], "float32"),
    ([1, 2], "int32"),
    (range(3), "int32"),
    ([1j, 1.0], "complex64"),
    ([True, False], "bool"),
    ([], "float32"),
    (lambda: [0.1], "float32"),
]


def plain_array(value):
    value = value() if callable(value) else value
    return (
        np.array([v.array for v in value])
        if isinstance(value, list) and isinstance(value[0], rmsjit.Variable)
        else np.asarray(value)
    )


@pytest.mark.parametrize("value", KEPT.values(), ids=KEPT)
def test_a_variable_keeps_the_precision_of_what_has_one(value):
    variable, expected = rmsjit.Variable(value), plain_array(value)
    assert variable.dtype == expected.dtype
    assert (variable.array == expected).all()


@pytest.mark.parametrize("foreign", [Foreign, WithoutCopy])
def test_foreign_objects_are_copied(foreign):
    given, v = foreign([0.1]), rmsjit.Variable(np.ones(1))
    slot = rmsjit.RMSprop().add_slot(v, "own", given)
    for taken in (rmsjit.Variable(given), slot):
        assert taken.array == given.value
        assert not np.shares_memory(taken.array, given.value)


@pytest.mark.parametrize(("value", "dtype"), NARROWED)
def test_numbers_of_python_have_the_precision_of_tensorflow(value, dtype):
    assert rmsjit.Variable(value).dtype == dtype
    assert rmsjit.Variable(value, dtype="complex128").dtype == "complex128"


@pytest.mark.parametrize("library", ["torch", "jax", "pandas", "xarray"])
def test_objects_of_other_libraries_keep_theirs(library):
    module = pytest.importorskip(library)
    if library == "jax":
        module.config.update("jax_enable_x64", True)
    make = {
        "torch": lambda: module.tensor([0.1], dtype=module.float64),
        "jax": lambda: module.numpy.array([0.1]),
        "pandas": lambda: module.Series([0.1]),
        "xarray": lambda: module.DataArray([0.1]),
    }
    assert rmsjit.Variable(make[library]()).dtype == np.float64


# --- hyperparameters ------------------------------------------------------------------------

NO_NUMBERS = {
    "text": "0.1",
    "no text": "",
    "empty list": [],
    "bytes": b"0.1",
    "bytearray": bytearray(b"1"),
    "0-d text": np.array("0.1"),
    "0-d bytes": np.array(b"0.1"),
    "numpy text": np.str_("0.1"),
    "bool": True,
    "numpy bool": np.True_,
    "0-d bool": np.array(True),
    "0-d object": np.array(Decimal("0.1")),
    "complex": 1j,
    "numpy complex": np.complex128(0.1),
    "0-d complex": np.array(0.1 + 0j),
    "date": np.datetime64(1, "s"),
    "duration": np.timedelta64(1, "s"),
    "0-d duration": np.array(1, "m8[s]"),
    "record": np.zeros((), [("a", "f8")]),
    "masked": np.ma.masked,
    "None": None,
    "list": [0.1],
    "array": np.array([0.1]),
    "variable of text": rmsjit.Variable(np.array("0.1")),
    "variable of bool": rmsjit.Variable(True),
}
NOT_FINITE = {
    "beyond floats": 10**400,
    "beyond text": 10**5000,
    "below floats": -(10**400),
    "fraction": fractions.Fraction(10**400),
    "decimal": Decimal("1e400"),
    "infinity": float("inf"),
    "NaN": np.float32("nan"),
    "0-d": np.array(np.inf),
}
NUMBERS = [
    0.5, 1, np.float16(0.5), np.int8(1), np.array(0.5), np.array(1), Decimal("0.5"),
    fractions.Fraction(1, 2), ml_dtypes.bfloat16(0.5), np.array(0.5, ml_dtypes.bfloat16),
    np.longdouble(0.5), np.ma.array(0.5), Foreign, rmsjit.Variable(0.5),
]  # fmt: skip


def takers():
    """Everything that takes a number, by a name: functions of the number."""
    keras, train = rmsjit.RMSprop, rmsjit.train.RMSPropOptimizer
    form = rmsjit.Form(weight_decay="coupled", clip_weights=True)
    takes = {
        f"RMSprop({name})": lambda x, name=name: keras(**{name: x})
        for name in ("rho", "momentum", "epsilon", "decay", "clipvalue", "clipnorm")
    }
    takes |= {
        f"RMSPropOptimizer({name})": lambda x, name=name: train(**{"learning_rate": 0.1, name: x})
        for name in ("learning_rate", "decay", "momentum", "epsilon")
    }
    takes["RMSprop(learning_rate)"] = keras
    takes["RMSprop(weight_decay)"] = lambda x: keras(form=form, weight_decay=x, clip_weights=1.0)
    takes["learning_rate ="] = lambda x: setattr(keras(), "learning_rate", x)
    return takes


TAKERS = takers()
MAY_BE_NONE = ("epsilon", "clipvalue", "clipnorm")


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_number_is_a_type_error(value):
    for name, take in TAKERS.items():
        if value is None and any(word in name for word in MAY_BE_NONE):
            continue
        with pytest.raises(TypeError, match="must be a "):
            take(value)


@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_is_a_value_error(value):
    for take in TAKERS.values():
        with pytest.raises(ValueError, match="must be finite"):
            take(value)


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers_of_all_kinds_are_taken(value):
    given = 0.5 if value is Foreign else value
    for take in TAKERS.values():
        take(given)


@pytest.mark.parametrize(
    ("given", "error"),
    [("0.1", TypeError), (np.array(True), TypeError), (10**400, ValueError)],
    ids=["text", "bool", "huge"],
)
def test_what_a_callable_or_schedule_gives_is_checked_alike(given, error):
    class Odd(rmsjit.schedules.LearningRateSchedule):
        def __call__(self, step):
            return given

    for rate in (lambda: given, Odd()):
        optimizer, w = rmsjit.RMSprop(rate), np.zeros(2)
        with pytest.raises(error, match=r"learning_rate \(from .*\) must be"):
            optimizer.apply_gradients([(np.ones(2), w)])
        assert not w.any()
        assert int(optimizer.iterations) == 0


SCHEDULES = [
    ExponentialDecay(0.1, 10, 0.5),
    InverseTimeDecay(0.1, 10, 0.5),
    PiecewiseConstantDecay([2], [0.1, 0.01]),
    PolynomialDecay(0.1, 10),
    CosineDecay(0.1, 10),
    CosineDecayRestarts(0.1, 10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_steps_are_numbers(schedule):
    for step in ("3", b"3", np.array("3"), np.str_("3"), np.True_, 1j, np.complex64(1), None, [3]):
        with pytest.raises(TypeError, match="step must be one number"):
            schedule(step)
    for step in (-1, 10**400, float("inf"), float("nan"), np.array(-1.0)):
        with pytest.raises(ValueError, match="step must be between"):
            schedule(step)
    expected = schedule(3)
    for step in (3.0, np.int8(3), np.array(3), np.float32(3), rmsjit.Variable(3)):
        assert schedule(step) == expected


@pytest.mark.parametrize("value", ["x", 3, [], object(), rmsjit.RMSprop])
def test_strategies_and_allocators_of_another_kind_are_refused(value):
    with pytest.raises(TypeError, match="strategy must be a strategy or None"):
        rmsjit.RMSprop(strategy=value)
    if not callable(value):
        with pytest.raises(TypeError, match="slot_allocator must be callable or None"):
            rmsjit.RMSprop(slot_allocator=value)


# --- configurations of other optimizers -----------------------------------------------------

LATER = {
    "name": "rmsprop", "learning_rate": 0.001, "weight_decay": None, "clipnorm": None,
    "global_clipnorm": None, "clipvalue": None, "use_ema": False, "ema_momentum": 0.99,
    "ema_overwrite_frequency": None, "rho": 0.9, "momentum": 0.5, "epsilon": 1e-7,
    "centered": True,
}  # fmt: skip
KERAS_3 = LATER | {"loss_scale_factor": None, "gradient_accumulation_steps": None}
TF_KERAS = LATER | {"jit_compile": True, "is_legacy_optimizer": False}


@pytest.mark.parametrize(
    ("config", "title", "form"),
    [
        (KERAS_3, r"keras\.optimizers\.RMSprop of Keras 3", "keras"),
        (TF_KERAS, r"tf_keras\.optimizers\.RMSprop since 2\.11", "tf_keras"),
    ],
    ids=["Keras 3", "tf_keras"],
)
def test_configuration_of_a_later_keras_says_what_it_is(config, title, form):
    match = rf"the configuration of {title} .*rmsjit\.forms\.from_config.*rmsjit\.forms\.{form},"
    with pytest.raises(TypeError, match=match):
        rmsjit.RMSprop.from_config(config)


def test_configuration_of_the_legacy_optimizer_of_a_later_keras_is_taken():
    config = rmsjit.RMSprop(0.5, momentum=0.25).get_config()
    given = json.loads(json.dumps(config | {"is_legacy_optimizer": True}))
    assert rmsjit.RMSprop.from_config(given).get_config() == config


def test_subclass_that_knows_later_words_keeps_them():
    class Compiled(rmsjit.RMSprop):
        def __init__(self, jit_compile=False, **arguments):
            super().__init__(**arguments)
            self.jit_compile = jit_compile

    assert Compiled.from_config({"jit_compile": True}).jit_compile is True


# --- what is documented ---------------------------------------------------------------------


def descended(form, steps=2000):
    """How far |z - i| is from its minimum, from 1."""
    z = np.zeros(1, np.complex128)
    optimizer = rmsjit.RMSprop(0.01, form=form)
    for _ in range(steps):
        optimizer.apply_gradients([(2 * (z - 1j), z)])
    return abs(z[0] - 1j)


def test_complex_numbers_descend_by_the_modulus():
    assert descended(rmsjit.Form(complex_square="modulus")) < 0.05
    assert descended(None) > 0.9  # as TensorFlow computes


def test_complex_numbers_descend_as_pairs_of_real_ones():
    z = np.zeros(1, np.complex128)
    optimizer = rmsjit.RMSprop(0.01)
    for _ in range(2000):
        optimizer.apply_gradients([((2 * (z - 1j)).view(float), z.view(float))])
    assert abs(z[0] - 1j) < 0.05


@pytest.mark.parametrize(
    ("dtype", "large", "bound"), [("float16", 1e3, 500), ("float32", 1e20, 1e18)]
)
def test_a_square_that_overflows_stops_the_element_unless_clipped(dtype, large, bound):
    def trained(**arguments):
        w, optimizer = np.zeros(2, dtype), rmsjit.RMSprop(0.1, nonfinite="skip", **arguments)
        optimizer.apply_gradients([(np.array([large, 1], dtype), w)])
        stood = w.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(1200):
                optimizer.apply_gradients([(np.ones(2, dtype), w)])
        assert optimizer.skipped_steps == 0
        return w - stood, optimizer.get_slot(w, "rms").array

    moved, rms = trained()
    assert moved[0] == 0
    assert rms[0] == np.inf
    assert moved[1] != 0
    moved, rms = trained(clipvalue=bound)
    assert np.isfinite(rms).all()
    assert moved.all()
