"""Learning-rate schedules against slow formulas, and the promises of their interface.

Values that TensorFlow computed are compared with in test_golden.py.
"""

import argparse
import ast
import copy
import dataclasses
import inspect
import itertools
import json
import math
import pathlib
import pickle
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsjit import schedules
from rmsjit.cli import plots
from rmsjit.cli import schedule as cli
from rmsjit.schedules import (
    Chain,
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    ExponentialDecayRestarts,
    InverseTimeDecay,
    Join,
    LearningRateSchedule,
    LinearWarmup,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
    ReduceOnPlateau,
    curves,
    deserialize,
    serialize,
)
from rmsjit.variables import Variable

PACKAGE = pathlib.Path(schedules.__file__).parent

# One of each that tf-keras has, with every argument away from its default.
EXAMPLES = [
    ExponentialDecay(0.1, 1000, 0.96, staircase=True, name="e"),
    PiecewiseConstantDecay([100, 200.5], [1.0, 0.5, 0.25], name="p"),
    PolynomialDecay(0.1, 1000, 0.01, power=2.0, cycle=True, name="q"),
    InverseTimeDecay(0.1, 1000, 0.5, staircase=True, name="i"),
    CosineDecay(0.1, 1000, alpha=0.2, name="c", warmup_target=0.3, warmup_steps=50),
    CosineDecayRestarts(0.1, 1000, t_mul=1.5, m_mul=0.5, alpha=0.2, name="r"),
]
STEPS = [0, 1, 2, 49, 50, 51, 99, 100, 101, 199, 200, 201, 999, 1000, 1001, 2500, 123456]

rates = st.floats(1e-6, 10.0)
lengths = st.integers(1, 10**6) | st.floats(0.5, 1e6)
steps = st.integers(0, 10**7)
fractions = st.floats(0.0, 1.0)
# Each example is cheap; the same ones every time, and no deadline on a busy machine.
checked = settings(deadline=None, derandomize=True, max_examples=60)


def name_of(thing):
    return thing if isinstance(thing, str) else type(thing).__name__


each_schedule = pytest.mark.parametrize("schedule", EXAMPLES, ids=name_of)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential_and_inverse_time_follow_their_formulas(staircase):
    arguments = {"decay_steps": 100, "decay_rate": 0.9, "staircase": staircase}
    exponential, inverse = (kind(0.1, **arguments) for kind in (ExponentialDecay, InverseTimeDecay))
    for step in STEPS:
        elapsed = step // 100 if staircase else step / 100
        expected = math.exp(math.log(0.1) + elapsed * math.log(0.9))
        assert exponential(step) == pytest.approx(expected), step
        assert inverse(step) == pytest.approx(1 / (10 + 9 * elapsed)), step


@pytest.mark.parametrize("power", [0, 0.5, 1.0, 3])
def test_polynomial_follows_its_formula(power):
    def formula(step, span):
        return 0.01 + 0.49 * ((span - min(step, span)) / span) ** power

    once = PolynomialDecay(0.5, 100, 0.01, power)
    cycling = PolynomialDecay(0.5, 100, 0.01, power, cycle=True)
    for step in STEPS:
        span = 100 if step == 0 else 100 * -(-step // 100)
        assert once(step) == pytest.approx(formula(step, 100)), step
        assert cycling(step) == pytest.approx(formula(step, span)), step


def half_cosine(done):
    return math.sin(math.pi / 2 * (1 - done)) ** 2  # = (1 + cos(pi * done)) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0])
def test_cosine_follows_its_formula(alpha):
    def wave(start, position):
        down = half_cosine(min(position, 1000) / 1000)
        return start * (down + alpha * (1 - down))

    plain = CosineDecay(0.1, 1000, alpha)
    warmed = CosineDecay(0.1, 1000, alpha, warmup_target=0.4, warmup_steps=100)
    for step in STEPS:
        assert plain(step) == pytest.approx(wave(0.1, step), abs=1e-15), step
        expected = 0.1 + 0.003 * step if step < 100 else wave(0.4, step - 100)
        assert warmed(step) == pytest.approx(expected, abs=1e-15), step


def restarts_by_walking(step, first, t_mul, m_mul):
    """Walk from period to period in exact arithmetic."""
    position, length, height = Fraction(step), Fraction(first), 1.0
    factor = Fraction(str(t_mul))
    while position >= length:
        position, length, height = position - length, length * factor, height * m_mul
    return height * half_cosine(float(position / length))


@pytest.mark.parametrize("t_mul", [1.0, 1.1, 1.5, 2.0, 3, 10.0])
@pytest.mark.parametrize("first", [1, 10, 50, 1000])
def test_restarts_follow_a_walk_through_the_periods(first, t_mul):
    schedule = CosineDecayRestarts(0.1, first, t_mul, m_mul=0.9, alpha=0.25)
    starts = [first * sum(Fraction(str(t_mul)) ** i for i in range(n)) for n in range(8)]
    near = {math.floor(start) + offset for start in starts for offset in (-1, 0, 1)}
    for step in sorted((near | set(STEPS)) & set(range(10**5))):
        expected = 0.1 * (0.75 * restarts_by_walking(step, first, t_mul, 0.9) + 0.25)
        assert schedule(step) == pytest.approx(expected, abs=1e-9), step


@pytest.mark.parametrize("t_mul", [1.0, 1.1, 1.7, 2.0, 3.0, 5, 7.0])
def test_every_restart_is_on_time(t_mul):
    schedule = CosineDecayRestarts(0.1, 10**8, t_mul)
    for periods in range(12):
        restart = 10**8 * sum(Fraction(str(t_mul)) ** i for i in range(periods))
        if restart.denominator == 1:
            assert schedule(int(restart)) == pytest.approx(0.1, rel=1e-9), periods


def test_ever_shorter_periods_end_at_the_lowest_rate():
    schedule = CosineDecayRestarts(0.1, 10, t_mul=0.5, m_mul=2.0, alpha=0.25)
    assert schedule(15) == pytest.approx(0.1 * (0.25 + 0.75 * 4))
    assert schedule.curve([20, 21, 1000]) == pytest.approx([0.025] * 3)
    rounded = CosineDecayRestarts(0.1, 10, t_mul=0.9, m_mul=2.0)  # 10 * (0.9 - 1) is above -1
    assert rounded(100) == 0


def test_piecewise_constant_includes_the_boundary_in_the_left_piece():
    schedule = PiecewiseConstantDecay([2, 5], [1, 0.5, 0.25])
    assert schedule.curve(8).tolist() == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert PiecewiseConstantDecay([], [0.1]).curve([0, 99]).tolist() == [0.1, 0.1]


@checked
@given(rate=rates, length=lengths, factor=fractions, staircase=st.booleans(), step=steps)
def test_decays_start_at_the_initial_rate_and_fall(rate, length, factor, staircase, step):
    for schedule in (
        ExponentialDecay(rate, length, factor, staircase),
        InverseTimeDecay(rate, length, factor, staircase),
        PolynomialDecay(rate, length, rate * factor),
        CosineDecay(rate, length, factor),
    ):
        assert schedule(0) == rate
        assert 0 <= schedule(step + 1) <= schedule(step) * (1 + 1e-15) <= rate * (1 + 2e-15)


@checked
@given(rate=rates, length=lengths, alpha=fractions, step=steps, t_mul=st.floats(0.5, 4.0))
def test_restarts_stay_between_the_lowest_and_the_initial_rate(rate, length, alpha, step, t_mul):
    schedule = CosineDecayRestarts(rate, length, t_mul, alpha=alpha)
    assert schedule(0) == rate
    assert alpha * rate * (1 - 1e-15) <= schedule(step) <= rate * (1 + 1e-15)


@checked
@given(rate=rates, length=st.integers(2, 10**5), step=st.integers(0, 10**5))
def test_restarts_of_equal_length_are_periodic(rate, length, step):
    schedule = CosineDecayRestarts(rate, length, t_mul=1.0, m_mul=0.5)
    assert schedule(step + length) == pytest.approx(schedule(step) / 2, rel=1e-9, abs=1e-12)


@checked
@given(start=rates, target=rates, warmup=st.integers(1, 10**5), length=lengths)
def test_warmup_runs_continuously_into_the_wave(start, target, warmup, length):
    schedule = CosineDecay(start, length, warmup_target=target, warmup_steps=warmup)
    assert (schedule(0), schedule(warmup)) == (start, target)
    assert schedule(warmup * (1 - 1e-12)) == pytest.approx(target, rel=1e-9, abs=1e-10)
    assert schedule(warmup / 2) == pytest.approx((start + target) / 2)
    assert schedule(warmup + length + 1) == 0


@checked
@given(length=st.integers(1, 1000), cycles=st.integers(1, 50))
def test_cycling_polynomial_touches_the_end_and_jumps_up(length, cycles):
    schedule = PolynomialDecay(0.5, length, 0.125, cycle=True)
    assert schedule(length * cycles) == 0.125
    assert schedule(length * cycles + 0.5) > 0.125


def test_warmup_steps_alone_do_not_warm_up():
    assert CosineDecay(0.1, 10, warmup_steps=5) != CosineDecay(0.1, 10)
    assert (CosineDecay(0.1, 10, warmup_steps=5).curve(20) == CosineDecay(0.1, 10).curve(20)).all()
    assert CosineDecay(0.1, 10, warmup_target=0.2)(0) == 0.2


def test_extreme_arguments_give_finite_rates():
    tiny, huge, near = 1e-38, 1e38, 1 + 2**-52
    extremes = [
        ExponentialDecay(1.0, 1, 2.0),
        ExponentialDecay(0.1, 10, 0.0),
        ExponentialDecay(0, tiny, huge, staircase=True),
        InverseTimeDecay(huge, tiny, huge),
        PolynomialDecay(huge, tiny, -huge, power=huge, cycle=True),
        CosineDecay(huge, tiny, -huge, warmup_target=-huge, warmup_steps=tiny),
        *(
            CosineDecayRestarts(0, first, t_mul, m_mul, alpha=-huge)
            for first in (tiny, 1, huge)
            for t_mul in (tiny, 1 - 2**-53, 1, near, huge)
            for m_mul in (0, 0.5, 2, huge)
        ),
    ]
    for schedule in extremes:
        assert np.isfinite(schedule.curve([0, 1, 2, 10**6, 2.0**64])).all(), schedule


# Steps ------------------------------------------------------------------------------------------


class Convertible:
    def __float__(self):
        return 3.0


@each_schedule
def test_a_step_is_anything_that_float_takes_and_the_rate_is_a_float(schedule):
    for step in (
        3,
        3.0,
        np.int64(3),
        np.float32(3),
        np.array(3),
        Variable(np.array(3)),
        Convertible(),
    ):
        rate = schedule(step)
        assert type(rate) is float
        assert rate == schedule(3)


@each_schedule
@pytest.mark.parametrize("step", [-1, -0.5, math.nan, math.inf, 2**65, 10**400])
def test_a_step_out_of_range_is_refused(schedule, step):
    with pytest.raises(ValueError, match=r"^step must be between 0 and 2\*\*64"):
        schedule(step)


@each_schedule
@pytest.mark.parametrize("step", [None, "one", [1], np.arange(3), 1j], ids=repr)
def test_a_step_that_is_no_number_is_refused(schedule, step):
    with pytest.raises(TypeError, match=r"^step must be one number"):
        schedule(step)


@each_schedule
def test_curve_has_the_rates_in_the_shape_of_the_steps(schedule):
    curve = schedule.curve(5)
    assert curve.dtype == np.float64
    assert curve.tolist() == [schedule(step) for step in range(5)]
    assert schedule.curve(np.int16(5)).tolist() == curve.tolist()
    assert schedule.curve([[1, 2.5], [3, 4]]).tolist() == [
        [schedule(1), schedule(2.5)],
        [schedule(3), schedule(4)],
    ]
    assert schedule.curve(np.arange(2, dtype=np.uint8)).tolist() == curve[:2].tolist()
    assert schedule.curve(0).shape == schedule.curve([]).shape == (0,)


@pytest.mark.parametrize("count", [2.5, "5", None, True, ["1"], [True], [None], 1j], ids=repr)
def test_curve_of_what_is_no_number_is_refused(count):
    with pytest.raises(TypeError, match=r"^steps must be"):
        EXAMPLES[0].curve(count)


def test_curve_of_negative_steps_is_refused():
    with pytest.raises(ValueError, match=r"^steps must be a count of 0 or more, got -1"):
        EXAMPLES[0].curve(-1)
    with pytest.raises(ValueError, match=r"^step must be between 0"):
        EXAMPLES[0].curve([-1])


# Construction -----------------------------------------------------------------------------------

NUMBERS = [
    (schedule, field.name)
    for schedule in EXAMPLES
    for field in dataclasses.fields(schedule)
    if isinstance(getattr(schedule, field.name), (int, float)) and field.type != "bool"
]
POSITIVE = {"decay_steps", "first_decay_steps", "t_mul"}
NOT_NEGATIVE = {"decay_rate", "power", "m_mul", "warmup_steps"}


def changed(schedule, **arguments):
    return type(schedule)(**(schedule.get_config() | arguments))


@pytest.mark.parametrize(("schedule", "name"), NUMBERS, ids=name_of)
def test_every_number_is_checked(schedule, name):
    for wrong in (True, "0.1", None, [0.1], 1j, np.arange(2), lambda: 0.1):
        if wrong is None and name == "warmup_target":
            continue
        with pytest.raises(TypeError, match=f"^{name} must be a real number, got"):
            changed(schedule, **{name: wrong})
    wrong_sign = [-1e-3] * (name in POSITIVE | NOT_NEGATIVE) + [0, 1e-40] * (name in POSITIVE)
    for wrong in (math.nan, math.inf, -math.inf, 1e39, 10**400, np.float32("nan"), *wrong_sign):
        with pytest.raises(ValueError, match=f"^{name} must be between .* and 1e38, got"):
            changed(schedule, **{name: wrong})


def test_the_list_of_numbers_above_is_complete():
    assert {name for _, name in NUMBERS} >= POSITIVE | NOT_NEGATIVE
    assert len(NUMBERS) == 3 + 0 + 4 + 3 + 5 + 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ExponentialDecay(0.1, 10, 0.5, 1), TypeError, "staircase must be a bool, got 1"),
        (lambda: InverseTimeDecay(0.1, 10, 0.5, None), TypeError, "staircase must be a bool"),
        (lambda: PolynomialDecay(0.1, 10, cycle="no"), TypeError, "cycle must be a bool"),
        (lambda: CosineDecay(0.1, 10, name=5), TypeError, "name must be a string or None, got 5"),
        (lambda: PiecewiseConstantDecay(5, [1, 2]), TypeError, "boundaries must be a list"),
        (lambda: PiecewiseConstantDecay({5}, [1, 2]), TypeError, "boundaries must be a list"),
        (lambda: PiecewiseConstantDecay([5], "12"), TypeError, r"values\[0\] must be a real"),
        (lambda: PiecewiseConstantDecay([5], [1, None]), TypeError, r"values\[1\] must be a real"),
        (lambda: PiecewiseConstantDecay([math.nan], [1, 2]), ValueError, r"boundaries\[0\] must"),
        (lambda: PiecewiseConstantDecay([5], [1, math.inf]), ValueError, r"values\[1\] must be"),
        (lambda: PiecewiseConstantDecay([5], [1]), ValueError, "values must be 2, .* got 1"),
        (lambda: PiecewiseConstantDecay([5], [1, 2, 3]), ValueError, "values must be 2, .* got 3"),
        (lambda: PiecewiseConstantDecay([5, 5], [1, 2, 3]), ValueError, "boundaries must be str"),
        (lambda: PiecewiseConstantDecay([5, 2], [1, 2, 3]), ValueError, "boundaries must be str"),
        (lambda: CosineDecay(0.1), TypeError, ".*missing .*'decay_steps'"),
        (lambda: CosineDecay(0.1, 10, beta=1), TypeError, ".*unexpected .*'beta'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_numbers_of_numpy_become_plain_ones():
    schedule = CosineDecay(np.float32(0.5), np.int64(10), np.array(0.25), warmup_target=np.array(1))
    kept = schedule.get_config()
    assert [type(kept[k]) for k in ("initial_learning_rate", "decay_steps", "alpha")] == [
        float,
        int,
        float,
    ]
    assert json.loads(json.dumps(kept)) == kept
    assert CosineDecay(Fraction(1, 2), 10).initial_learning_rate == 0.5
    piecewise = PiecewiseConstantDecay(np.array([1, 2]), np.array([0.5, 0.25, 0.125]))
    assert piecewise == PiecewiseConstantDecay((1, 2), [0.5, 0.25, 0.125])
    assert piecewise.get_config()["boundaries"] == [1, 2]


@each_schedule
def test_a_schedule_is_a_read_only_value(schedule):
    for name in schedule.get_config():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, name, 1)
    twin = changed(schedule)
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert changed(schedule, name="other") != schedule
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
        assert copied(77) == schedule(77)
    assert eval(repr(schedule)) == schedule


def test_an_inherited_list_does_not_change_with_the_callers():
    values = [1.0, 2.0]
    schedule = PiecewiseConstantDecay([5], values)
    values[0] = schedule.get_config()["values"][0] = 9.0
    assert schedule(0) == 1.0


# Configs ----------------------------------------------------------------------------------------


@each_schedule
def test_config_is_the_signature_in_order(schedule):
    config = schedule.get_config()
    assert list(config) == list(inspect.signature(type(schedule)).parameters)
    assert type(schedule).from_config(config) == schedule


@each_schedule
def test_serialize_gives_the_dictionary_of_keras(schedule):
    assert serialize(schedule) == {
        "module": "keras.optimizers.schedules",
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
        "registered_name": None,
    }
    legacy = {"class_name": type(schedule).__name__, "config": schedule.get_config()}
    assert serialize(schedule, use_legacy_format=True) == legacy


@each_schedule
@pytest.mark.parametrize("legacy", [False, True])
def test_deserialize_undoes_serialize(schedule, legacy):
    config = serialize(schedule, use_legacy_format=legacy)
    assert deserialize(config) == schedule
    assert deserialize(json.loads(json.dumps(config))) == schedule
    assert deserialize(config, use_legacy_format=legacy) == schedule


class Reciprocal(LearningRateSchedule):
    """What a user of Keras writes."""

    def __init__(self, start, after=None, table=()):
        self.start, self.after, self.table = start, after, table

    def __call__(self, step):
        return self.start / (step + 1)

    def get_config(self):
        return {"start": self.start, "after": self.after, "table": self.table}


def test_a_subclass_has_curve_and_config():
    schedule = Reciprocal(1.0)
    assert schedule.curve([0, 1, 3]).tolist() == [1.0, 0.5, 0.25]
    assert Reciprocal.from_config(schedule.get_config()).start == 1.0


def test_a_subclass_is_serialised_with_custom_objects():
    schedule = Reciprocal(np.float64(2.0), after=EXAMPLES[0], table=(np.arange(2), np.int8(3)))
    config = serialize(schedule)
    assert config == {
        "module": __name__,
        "class_name": "Reciprocal",
        "config": {"start": 2.0, "after": serialize(EXAMPLES[0]), "table": ([0, 1], 3)},
        "registered_name": "Reciprocal",
    }
    config = json.loads(json.dumps(config))
    for custom_objects in ({"Reciprocal": Reciprocal}, {"mine>Reciprocal": Reciprocal}):
        named = config | {"registered_name": next(iter(custom_objects))}
        assert deserialize(named, custom_objects)(1) == 1.0
    legacy = serialize(schedule, use_legacy_format=True)
    assert deserialize(legacy, {"Reciprocal": Reciprocal})(0) == 2.0


def test_a_class_of_the_main_program_has_no_module(monkeypatch):
    monkeypatch.setattr(Reciprocal, "__module__", "__main__")
    assert serialize(Reciprocal(1.0))["module"] is None


def test_a_custom_object_comes_before_the_class_of_that_name():
    class CosineDecay(Reciprocal):
        pass

    ours = {"class_name": "CosineDecay", "config": {"start": 1.0}}
    assert type(deserialize(ours, {"CosineDecay": CosineDecay})) is CosineDecay
    assert serialize(CosineDecay(1.0))["registered_name"] == "CosineDecay"
    with pytest.raises(ValueError, match="must name a known class"):
        deserialize(serialize(CosineDecay(1.0)))


def test_a_subclass_of_one_of_the_six_keeps_its_checks_and_config():
    @dataclasses.dataclass(frozen=True)
    class Floored(ExponentialDecay):
        floor: float = 0.0

        def __call__(self, step):
            return max(super().__call__(step), self.floor)

    schedule = Floored(0.1, 10, 0.5, floor=0.05)
    assert (schedule(0), schedule(100)) == (0.1, 0.05)
    assert deserialize(serialize(schedule), {"Floored": Floored}) == schedule
    assert schedule != ExponentialDecay(0.1, 10, 0.5)
    with pytest.raises(ValueError, match=r"^decay_steps must be"):
        Floored(0.1, 0, 0.5)


def test_the_base_class_says_what_to_define():
    class Empty(LearningRateSchedule):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty does not define __call__\(step\)"):
        Empty()(0)
    with pytest.raises(NotImplementedError, match=r"Empty does not define get_config\(\)"):
        serialize(Empty())


@pytest.mark.parametrize(
    ("config", "custom_objects", "error", "message"),
    [
        (None, None, TypeError, "config must be a dictionary"),
        ("CosineDecay", None, TypeError, "config must be a dictionary"),
        ({"class_name": "CosineDecay"}, None, TypeError, "config must be a dictionary"),
        ({"class_name": "SGD", "config": {}}, None, ValueError, "config must name .* got 'SGD'"),
        ({"class_name": "serialize", "config": {}}, None, ValueError, "config must name"),
        ({"class_name": "A", "config": {}}, {"A": len}, TypeError, "custom_objects .* class for"),
        ({"class_name": "A", "config": {}}, {"A": int}, TypeError, "custom_objects .* class for"),
        ({"class_name": "CosineDecay", "config": {"x": 1}}, None, TypeError, ".*unexpected"),
    ],
)
def test_deserialize_refuses(config, custom_objects, error, message):
    with pytest.raises(error, match=f"^{message}"):
        deserialize(config, custom_objects)


@pytest.mark.parametrize("thing", [None, 0.1, len, CosineDecay])
def test_serialize_refuses_what_is_no_schedule(thing):
    with pytest.raises(TypeError, match=r"^learning_rate_schedule must be a schedule"):
        serialize(thing)


def test_the_package_needs_only_numpy_and_pictures():
    imported = set()
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")]
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(text)) for text in texts):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("rmsjit.schedules"):
            imported.add(node.module.removesuffix(".typing"))
    needed = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert needed == {"numpy", "rmsjit.svg"}


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_values_configs_and_signatures_are_those_of_tf_keras():
    theirs = pytest.importorskip("tf_keras").optimizers.schedules
    for schedule in EXAMPLES:
        twin_class = getattr(theirs, type(schedule).__name__)
        assert [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(type(schedule)).parameters.values()
        ] == [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(twin_class).parameters.values()
        ]
        twin = theirs.deserialize(json.loads(json.dumps(serialize(schedule))))
        assert type(twin) is twin_class
        assert theirs.serialize(twin) == serialize(schedule)
        assert deserialize(theirs.serialize(twin)) == schedule
        expected = [float(twin(np.int64(step))) for step in STEPS]
        assert schedule.curve(STEPS) == pytest.approx(expected, rel=2e-5, abs=1e-6)


# Command line -----------------------------------------------------------------------------------

ARGUMENTS = {
    "exponential": "--initial-learning-rate 0.1 --decay-steps 100 --decay-rate 0.5 --staircase",
    "piecewise": "--boundaries 100 200 --values 0.1 0.01 1e-3",
    "polynomial": "--initial-learning-rate 0.1 --decay-steps 100 --power 2 --cycle",
    "inverse-time": "--initial-learning-rate 0.1 --decay-steps 100 --decay-rate 0.5",
    "cosine": "--initial-learning-rate 0 --decay-steps 100 --warmup-target 0.1 --warmup-steps 9",
    "cosine-restarts": "--initial-learning-rate 0.1 --first-decay-steps 100 --m-mul 0.5",
    "exponential-restarts": "--initial-learning-rate 0.1 --first-decay-steps 9 --decay-rate 0.5",
    "one-cycle": "--max-learning-rate 0.1 --total-steps 100 --anneal-strategy linear",
    "plateau": "--schedule 0.1 --patience 20 --factor 0.5",
    "warmup": "--schedule ExponentialDecay(0.1,20,decay_rate=0.5) --warmup-steps 5",
    "join": "--schedules 0.1 CosineDecay(0.05,50,name=None) --boundaries 20",
    "chain": "--schedules 0.2 Join([0.5,0.1],[90])",
}


def run_cli(*words):
    parser = argparse.ArgumentParser(prog="rmsjit")
    cli.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["schedule", *" ".join(map(str, words)).split()])
    return args.run(args)


def test_every_schedule_has_a_subcommand():
    others = {"LearningRateSchedule", "serialize", "deserialize"}
    assert {cls.__name__ for cls in cli.SCHEDULES.values()} == set(schedules.__all__) - others
    assert ARGUMENTS.keys() == cli.SCHEDULES.keys()


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_help_names_every_argument(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_cli(kind, "--help")
    shown = capsys.readouterr().out
    for name in inspect.signature(cli.SCHEDULES[kind]).parameters:
        assert f"--{name.replace('_', '-')} " in shown.replace("]", " ")


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_text_draws_in_the_terminal(kind, capsys):
    assert run_cli(kind, ARGUMENTS[kind], "--text") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(cli.SCHEDULES[kind].__name__)
    assert shown.isascii()
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line[12:] for line in lines if line[11:12] == "|"]
    stars = [[row[column : column + 1] for row in rows].count("*") for column in range(64)]
    assert stars == [1] * 64
    assert any("0.1 |" in line and "*" in line for line in lines)


def test_text_shows_the_shape_of_the_curve():
    steps = np.arange(31)
    drawn = plots.text_plot("down", steps, np.linspace(0.3, 0.0, 31)).splitlines()
    assert drawn[2] == "       0.3 |*"
    assert drawn[17] == "         0 |" + " " * 30 + "*"
    assert drawn[19] == " " * 12 + "0" + "30 steps".rjust(30)
    flat = plots.text_plot("flat", steps, np.zeros(31)).splitlines()
    assert flat[17].endswith("|" + "*" * 31)


@pytest.mark.slow
def test_image_is_a_png_and_its_path_is_printed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    target = tmp_path / "lr.png"
    assert run_cli("cosine", ARGUMENTS["cosine"], "--steps 50 --output", target) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert target.stat().st_size > 10_000


@pytest.mark.slow
def test_image_goes_to_a_file_named_after_the_schedule(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run_cli("piecewise --boundaries 5 --values 0 -1 --steps 1") == 0
    assert capsys.readouterr().out == "piecewise.png\n"
    assert (tmp_path / "piecewise.png").exists()


@pytest.mark.parametrize(("output", "status"), [("", 0), ("--output lr.png", 1)])
def test_without_matplotlib_it_draws_in_the_terminal(output, status, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_cli("cosine", ARGUMENTS["cosine"], output) == status
    shown = capsys.readouterr()
    assert "*" in shown.out
    assert shown.err.startswith("rmsjit schedule: no image written: ")


@pytest.mark.slow
def test_an_image_that_cannot_be_written_is_an_error(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("missing/lr.png", "lr.unknown"):
        assert run_cli("cosine", ARGUMENTS["cosine"], "--output", tmp_path / name) == 1
        assert "rmsjit schedule: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sine", "invalid choice: 'sine'"),
        ("warmup --schedule 0.1 --text", "required: --warmup-steps"),
        ("warmup --schedule CosineDecay(0.1", "must be a number or a schedule: "),
        ("warmup --schedule CosineDecay(0.1)", "must be a number or a schedule: "),
        ("warmup --schedule print('x')", "there is no schedule 'print'"),
        ("warmup --schedule CosineDecay(**{})", "must be a number or a schedule: "),
        ("warmup --schedule [0.1]", "must be a number or a schedule, got '[0.1]'"),
        ("cosine --decay-steps 5", "required: --initial-learning-rate"),
        ("cosine --initial-learning-rate x --decay-steps 5", "must be a number, got 'x'"),
        (f"cosine {ARGUMENTS['cosine']} --steps 0", "--steps: must be a whole number of at least"),
        (f"cosine {ARGUMENTS['cosine']} --steps 1.5", "--steps: must be a whole number"),
        (f"cosine {ARGUMENTS['cosine']} --text --output a.png", "not allowed with"),
    ],
)
def test_wrong_options_are_refused(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_cli(words)
    assert message in capsys.readouterr().err


def test_wrong_numbers_are_refused_with_the_message_of_the_class(capsys):
    assert run_cli("cosine --initial-learning-rate 0.1 --decay-steps 0 --text") == 2
    assert "decay_steps must be between 1e-38 and 1e38, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schedule", "span"),
    [
        (PiecewiseConstantDecay([100, 200], [1, 2, 3]), 251),
        (PiecewiseConstantDecay([], [1]), 10),
        (CosineDecayRestarts(0.1, 100), 1500),
        (CosineDecay(0.1, 100, warmup_steps=100), 112),
        (CosineDecay(0.1, 100, warmup_steps=100, warmup_target=1.0), 222),
        (PolynomialDecay(0.1, 100, cycle=True), 301),
        (ExponentialDecay(0.1, 100, 0.5), 501),
        (InverseTimeDecay(0.1, 1e38, 0.5), 2**53),
        (ExponentialDecayRestarts(0.1, 100, 0.5), 1500),
        (OneCycle(0.1, 100), 111),
        (LinearWarmup(0.1, 100), 151),
        (LinearWarmup(CosineDecay(0.1, 100), 100), 211),
        (Join([0.1, CosineDecay(0.1, 100)], [50]), 161),
        (Join([0.1], []), 10),
        (Chain([CosineDecay(0.1, 100), ExponentialDecay(0.1, 100, 0.5)]), 501),
        (ReduceOnPlateau(0.1, patience=3, cooldown=5), 41),
        (ReduceOnPlateau(CosineDecay(0.1, 100)), 111),
    ],
)
def test_the_drawing_spans_what_there_is_to_see(schedule, span):
    assert curves.natural_span(schedule) == pytest.approx(span, abs=1)
    spread = curves.spread(span)
    assert spread[0] == 0
    assert spread[-1] == span - 1
    assert (np.diff(spread) > 0).all()
    assert len(spread) == min(span, 2001)


@pytest.mark.slow
def test_all_are_drawn_without_a_name(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run_cli() == 0
    assert capsys.readouterr().out == "schedules.png\n"
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert run_cli("--output missing/lr.png") == 1


@pytest.mark.parametrize(("words", "status"), [("--text", 0), ("", 0), ("--output lr.png", 1)])
def test_all_are_drawn_in_the_terminal(words, status, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_cli(words) == status
    shown = capsys.readouterr().out
    assert all(f"\n{cls.__name__}(" in f"\n{shown}" for cls in cli.SCHEDULES.values())


class Axes:
    """What is drawn on them."""

    def __init__(self):
        self.styles = []

    def plot(self, *arguments, drawstyle, **style):
        self.styles.append(drawstyle)

    def __getattr__(self, name):
        return Spines() if name == "spines" else lambda *arguments, **style: None


class Spines:
    def __getitem__(self, names):
        return self

    def set_visible(self, visible):
        pass


@pytest.mark.parametrize(
    ("schedule", "style"),
    [
        (PiecewiseConstantDecay([10, 20], [0.1, 0.2, 0.3]), "steps-post"),
        (ExponentialDecay(0.1, 10, 0.5, staircase=True), "steps-post"),
        (ExponentialDecay(0.1, 10, 0.5), "default"),
        (ReduceOnPlateau(0.1), "steps-post"),
        (CosineDecay(0.1, 100), "default"),
        (Join([0.1, 0.2], [10]), "steps-post"),
        (Chain([CosineDecay(0.1, 100), Join([0.1, 0.2], [10])]), "default"),
    ],
)
def test_stairs_are_drawn_as_steps(schedule, style):
    axes, steps = Axes(), curves.spread(curves.natural_span(schedule))
    plots._draw(axes, steps, curves.rates_of(schedule, steps))
    assert axes.styles == [style]


def test_a_plateau_is_drawn_with_a_metric_that_is_no_better():
    schedule = LinearWarmup(ReduceOnPlateau(0.8, factor=0.5, patience=1), 2)
    rates = curves.rates_of(schedule, np.array([0, 1, 2, 3, 4, 5, 7]))
    assert rates.tolist() == [0.0, 0.4, 0.8, 0.4, 0.4, 0.2, 0.1]
    assert schedule.schedule.state.reductions == 0
    with pytest.raises(ValueError, match="steps must be at most 1048576 with a metric"):
        curves.rates_of(schedule, np.array([2**30]))


def test_a_schedule_is_shown_as_the_call_that_makes_it():
    schedule = Join([Chain([0.5, CosineDecay(0.1, 9)]), LinearWarmup(0.1, 5)], [7], name="j")
    assert repr(schedule) == (
        "Join((Chain((0.5, CosineDecay(0.1, decay_steps=9))), LinearWarmup(0.1, warmup_steps=5)), "
        "boundaries=(7,), name='j')"
    )
    assert eval(repr(schedule)) == schedule
