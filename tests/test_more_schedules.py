"""The schedules that tf-keras does not have: formulas, arguments, configs, and metrics.

Values of other libraries are compared with in test_schedules_of_libraries.py.
"""

import copy
import dataclasses
import inspect
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

import rmsjit
from rmsjit.schedules import (
    Chain,
    CosineDecay,
    ExponentialDecay,
    ExponentialDecayRestarts,
    Join,
    LearningRateSchedule,
    LinearWarmup,
    OneCycle,
    PiecewiseConstantDecay,
    ReduceOnPlateau,
    deserialize,
    serialize,
)
from rmsjit.schedules.plateau import PlateauState, plateaus_in

COSINE = CosineDecay(0.5, 100)
# One of each, with every argument away from its default.
EXAMPLES = [
    Chain([COSINE, 0.5, ExponentialDecay(1.0, 10, 0.5)], name="c"),
    ExponentialDecayRestarts(0.1, 100, 0.5, t_mul=1.5, m_mul=0.5, name="r"),
    Join([COSINE, 0.1], [50.5], name="j"),
    LinearWarmup(COSINE, 10, initial_learning_rate=0.1, name="w"),
    OneCycle(0.5, 100, 0.4, "linear", 10.0, 100.0, three_phase=True, name="o"),
    ReduceOnPlateau(COSINE, "max", 0.5, 3, 0.01, "abs", 2, 0.001, name="p"),
]
NESTED = LinearWarmup(Join([Chain([COSINE, ReduceOnPlateau(0.5)]), 0.25], [20]), 5)

each_schedule = pytest.mark.parametrize(
    "schedule", [*EXAMPLES, NESTED], ids=lambda schedule: type(schedule).__name__
)


def with_state(schedule, *metrics):
    for metric in metrics:
        schedule.update(metric)
    return schedule


# Values -----------------------------------------------------------------------------------------


def restarts_by_walking(step, first, decay_rate, t_mul, m_mul):
    """Walk from period to period in exact arithmetic."""
    position, length, height = Fraction(step), Fraction(first), 1.0
    factor = Fraction(str(t_mul))
    while position >= length:
        position, length, height = position - length, length * factor, height * m_mul
    return height * math.exp(float(position / length) * math.log(decay_rate))


@pytest.mark.parametrize("t_mul", [1.0, 1.1, 1.5, 2.0, 3])
@pytest.mark.parametrize("first", [1, 10, 64])
def test_restarts_follow_a_walk_through_the_periods(first, t_mul):
    schedule = ExponentialDecayRestarts(0.1, first, 0.2, t_mul, m_mul=0.9)
    for step in [*range(200), 999, 1000, 1001, 54321]:
        expected = 0.1 * restarts_by_walking(step, first, 0.2, t_mul, 0.9)
        assert schedule(step) == pytest.approx(expected, rel=1e-8), step


# By hand.
@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ExponentialDecayRestarts(8.0, 2, 0.25), [8, 4, 8, 8 / 2**0.5, 4, 8 / 2**1.5, 8]),
        (ExponentialDecayRestarts(8.0, 1, 0.0, 1.0, 0.5), [8, 4, 2, 1, 0.5]),
        (ExponentialDecayRestarts(8.0, 2, 0.0, 1.0), [8, 0, 8, 0]),
        (LinearWarmup(0.5, 4), [0, 0.125, 0.25, 0.375, 0.5, 0.5]),
        (LinearWarmup(0.5, 2, 1.5), [1.5, 1.0, 0.5, 0.5]),
        (LinearWarmup(ExponentialDecay(8.0, 1, 0.5), 2), [0, 4, 8, 4, 2, 1]),
        (LinearWarmup(0.5, 0), [0.5, 0.5]),
        (LinearWarmup(LinearWarmup(2.0, 2), 2, 4.0), [4, 2, 0, 1, 2, 2]),
        (Join([1, 2.0, ExponentialDecay(8, 1, 0.5)], [1, 3]), [1, 2, 2, 8, 4, 2]),
        (Join([ExponentialDecay(8, 1, 0.5), 0], [2.5]), [8, 4, 2, 0]),
        (Join([3.0], []), [3, 3]),
        (Chain([ExponentialDecay(8.0, 1, 0.5), PiecewiseConstantDecay([1], [1, 3])]), [8, 4, 6, 3]),
        (Chain([2, 3]), [6, 6]),
        (OneCycle(8.0, 9, 5 / 9, "linear", 4.0, 2.0), [2, 3.5, 5, 6.5, 8, 6.25, 4.5, 2.75, 1, 1]),
        (OneCycle(8.0, 8, 0.5, "linear", 4, 2, True), [2, 4, 6, 8, 6, 4, 2, 1, 1]),
        (OneCycle(8.0, 1), [0.32 / 1e4] * 3),
        (OneCycle(8.0, 10, 0.1), [0.32]),
    ],
    ids=lambda value: getattr(value, "name", None) or type(value).__name__,
)
def test_values_by_hand(schedule, values):
    assert schedule.curve(len(values)) == pytest.approx(values, rel=1e-12, abs=1e-12)


def test_a_part_gets_whole_steps_as_integers():
    class Table(LearningRateSchedule):
        def __call__(self, step):
            return [0.5, 0.25, 0.125][step]

    for schedule in (Join([0.0, Table()], [2]), LinearWarmup(Table(), 2), Chain([Table(), 1])):
        assert schedule(2) in (0.5, 0.125)
        assert type(schedule(2)) is float


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Chain(0.5), TypeError, "schedules must be a list of schedules and numbers"),
        (lambda: Chain("ab"), TypeError, "schedules must be a list"),
        (lambda: Chain([]), ValueError, "schedules must have at least one schedule"),
        (lambda: Chain([0.5, None]), TypeError, r"schedules\[1\] must be a schedule or a number"),
        (lambda: Chain([0.5, CosineDecay]), TypeError, r"schedules\[1\] must be a schedule"),
        (lambda: Chain([math.nan]), ValueError, r"schedules\[0\] must be between -1e38 and 1e38"),
        (lambda: Join([0.5], [1]), ValueError, "schedules must be 2, one more than boundaries"),
        (lambda: Join([1, 2, 3], [5, 5]), ValueError, "boundaries must be strictly increasing"),
        (lambda: Join([1, 2], [0]), ValueError, r"boundaries must be above 0, got \(0,\)"),
        (lambda: LinearWarmup("x", 5), TypeError, "schedule must be a schedule or a number"),
        (lambda: LinearWarmup(0.5, -1), ValueError, "warmup_steps must be between 0 and 1e38"),
        (lambda: ExponentialDecayRestarts(1, 9, 0.5, 0.5), ValueError, "t_mul must be between 1"),
        (lambda: ExponentialDecayRestarts(1, 9, -0.5), ValueError, "decay_rate must be between 0"),
        (lambda: OneCycle(0.5, 0), ValueError, "total_steps must be between 1e-38"),
        (lambda: OneCycle(0.5, 9, 1.5), ValueError, "pct_start must be between 0 and 1, got 1.5"),
        (lambda: OneCycle(0.5, 9, anneal_strategy="sin"), ValueError, ".* must be 'cos' or 'lin"),
        (lambda: OneCycle(0.5, 9, 0.6, three_phase=True), ValueError, "pct_start must be at most"),
        (lambda: OneCycle(0.5, 9, three_phase=1), TypeError, "three_phase must be a bool"),
        (lambda: ReduceOnPlateau(0.5, "low"), ValueError, "mode must be 'min' or 'max', got 'low'"),
        (lambda: ReduceOnPlateau(0.5, factor=1.0), ValueError, "factor must be below 1, got 1.0"),
        (lambda: ReduceOnPlateau(0.5, factor=-1), ValueError, "factor must be between 0 and"),
        (lambda: ReduceOnPlateau(0.5, patience=1.0), TypeError, "patience must be an integer"),
        (lambda: ReduceOnPlateau(0.5, cooldown=-1), ValueError, "cooldown must be 0 or more"),
        (lambda: ReduceOnPlateau(0.5, threshold=-1), ValueError, "threshold must be between 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


@each_schedule
def test_a_step_out_of_range_is_refused(schedule):
    with pytest.raises(ValueError, match=r"^step must be between 0 and 2\*\*64"):
        schedule(-1)
    with pytest.raises(TypeError, match=r"^step must be one number"):
        schedule(None)


# Configs ----------------------------------------------------------------------------------------


@each_schedule
def test_a_schedule_is_a_value(schedule):
    for name in inspect.signature(type(schedule)).parameters:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, name, 1)
    twin = type(schedule).from_config(schedule.get_config())
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
    assert eval(repr(schedule)) == schedule


@each_schedule
@pytest.mark.parametrize("legacy", [False, True])
def test_deserialize_undoes_serialize(schedule, legacy):
    config = json.loads(json.dumps(serialize(schedule, use_legacy_format=legacy)))
    assert deserialize(config) == schedule


@each_schedule
def test_serialize_names_the_class_as_keras_does(schedule):
    name = type(schedule).__name__
    config = serialize(schedule)
    assert config["module"] == "rmsjit.schedules"
    assert (config["class_name"], config["registered_name"]) == (name, f"rmsjit>{name}")


class Halving(LearningRateSchedule):
    def __call__(self, step):
        return 0.5**step

    def get_config(self):
        return {}


def test_parts_of_a_users_class_are_made_with_custom_objects():
    config = json.loads(json.dumps(serialize(LinearWarmup(Chain([Halving(), 2]), 3))))
    assert deserialize(config, {"Halving": Halving})(4) == 1.0
    with pytest.raises(ValueError, match=r"must name a known class .* got 'Halving'"):
        deserialize(config)


def test_a_users_class_may_have_the_name_of_one_here():
    class OneCycle(Halving):
        pass

    assert type(deserialize(serialize(OneCycle()), {"OneCycle": OneCycle})) is OneCycle
    with pytest.raises(ValueError, match="must name a known class"):
        deserialize(serialize(OneCycle()))


# Metrics ----------------------------------------------------------------------------------------


def test_update_says_whether_it_reduced_the_rate():
    schedule = ReduceOnPlateau(0.5, factor=0.5, patience=1)
    assert [schedule.update(m) for m in (3, 2, 2, 2, 2, 2)] == [False, False, False, True] + [
        False,
        True,
    ]
    assert schedule(0) == 0.125


@pytest.mark.parametrize("metric", [1.0, np.float32(1), np.array(1), rmsjit.Variable(1.0), 1])
def test_a_metric_is_one_number(metric):
    assert with_state(ReduceOnPlateau(0.5), metric).state.best == 1.0


@pytest.mark.parametrize("metric", [None, "1", [1.0], np.ones(1), True, 1j, 10**400], ids=repr)
def test_another_metric_is_refused_and_changes_nothing(metric):
    schedule = with_state(ReduceOnPlateau(0.5), 3.0, 4.0)
    before = schedule.state
    with pytest.raises(TypeError, match=r"^metric must be one number, got"):
        schedule.update(metric)
    assert schedule.state == before


def test_reductions_do_not_raise_a_rate_that_is_below_the_minimum():
    schedule = ReduceOnPlateau(LinearWarmup(0.5, 10), patience=0, min_learning_rate=0.2)
    with_state(schedule, 1.0, 1.0)
    assert schedule.curve([0, 2, 4, 10]).tolist() == [0.0, 0.1, 0.2, 0.2]


def test_the_state_is_part_of_the_value_and_of_copies():
    schedule = with_state(ReduceOnPlateau(0.5, patience=0, cooldown=3), 1.0, 2.0, 0.5)
    assert schedule.state == PlateauState(0.5, 0, 2, 1)
    assert schedule != ReduceOnPlateau(0.5, patience=0, cooldown=3)
    twins = [
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        deserialize(json.loads(json.dumps(serialize(schedule)))),
    ]
    schedule.update(0.1)
    for twin in twins:
        assert twin.state == PlateauState(0.5, 0, 2, 1)
        twin.update(0.1)
        assert twin == schedule


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"best": 1.0},
        {"best": "1", "bad_updates": 0, "cooldown_left": 0, "reductions": 0},
        {"best": None, "bad_updates": -1, "cooldown_left": 0, "reductions": 0},
        {"best": None, "bad_updates": 0, "cooldown_left": 0.5, "reductions": 0},
        {"best": None, "bad_updates": 0, "cooldown_left": 0, "reductions": 0, "more": 1},
    ],
    ids=str,
)
def test_a_config_with_another_state_is_refused(state):
    config = ReduceOnPlateau(0.5).get_config() | {"state": state}
    with pytest.raises(ValueError, match=r"^(state|best|bad_updates)"):
        ReduceOnPlateau.from_config(config)


# Checkpoints ------------------------------------------------------------------------------------


def plateau(rate=0.5):
    return LinearWarmup(ReduceOnPlateau(rate, patience=0, factor=0.5), 2)


def run(optimizer, variable, metrics):
    for metric in metrics:
        optimizer.apply_gradients([(variable.copy(), variable)])
        optimizer.learning_rate.schedule.update(metric)


@pytest.fixture
def saved(tmp_path):
    """A run that was saved after three metrics, and its variable after three more."""
    optimizer, w = rmsjit.RMSprop(plateau(), momentum=0.9), np.ones(3)
    run(optimizer, w, [1.0, 1.0, 0.5])
    path = tmp_path / "run.npz"
    rmsjit.save(path, optimizer, {"w": w})
    run(optimizer, w, [0.5, 0.6, 0.1])
    return path, w


def test_a_loaded_run_continues(saved):
    path, expected = saved
    optimizer, variables = rmsjit.load(path)
    run(optimizer, variables["w"], [0.5, 0.6, 0.1])
    assert variables["w"].tolist() == expected.tolist()


def test_a_run_restored_in_place_continues(saved):
    path, expected = saved
    optimizer, w = rmsjit.RMSprop(plateau(), momentum=0.9), np.zeros(3)
    schedule = optimizer.learning_rate
    run(optimizer, w, [9.0])
    rmsjit.load(path, optimizer, {"w": w})
    assert optimizer.learning_rate is schedule
    run(optimizer, w, [0.5, 0.6, 0.1])
    assert w.tolist() == expected.tolist()


def test_only_the_state_is_restored_in_place(saved):
    optimizer = rmsjit.RMSprop(plateau(8.0), momentum=0.9)
    rmsjit.load(saved[0], optimizer, {"w": np.zeros(3)})
    assert optimizer.learning_rate(2) == 4.0


@pytest.mark.parametrize("rate", [0.5, COSINE, lambda step: 0.5, lambda: 0.5])
def test_a_run_can_be_resumed_without_its_plateau(saved, rate):
    optimizer = rmsjit.RMSprop(rate, momentum=0.9)
    rmsjit.load(saved[0], optimizer, {"w": np.zeros(3)})
    assert optimizer.learning_rate is rate or optimizer.learning_rate == rate


def test_a_run_without_plateau_leaves_that_of_another_alone(tmp_path):
    rmsjit.save(tmp_path / "run.npz", rmsjit.RMSprop(0.5), {})
    schedule = with_state(ReduceOnPlateau(0.5), 2.0)
    rmsjit.load(tmp_path / "run.npz", rmsjit.RMSprop(schedule), {})
    assert schedule.state.best == 2.0


def test_every_plateau_gets_its_own_state(tmp_path):
    def nested():
        inner = ReduceOnPlateau(LinearWarmup(ReduceOnPlateau(1.0, patience=0), 1), patience=0)
        return Join([inner, Chain([ReduceOnPlateau(2.0, patience=0), 0.5])], [9])

    schedule, fresh = nested(), nested()
    for best, one in enumerate(plateaus_in(schedule)):
        with_state(one, best, best + 1.0)
    rmsjit.save(tmp_path / "run.npz", rmsjit.RMSprop(schedule), {})
    rmsjit.load(tmp_path / "run.npz", rmsjit.RMSprop(fresh), {})
    assert [one.state.best for one in plateaus_in(fresh)] == [0.0, 1.0, 2.0]
    assert fresh == schedule


@pytest.mark.parametrize("state", [None, 5, {"best": "low"}])
def test_a_damaged_state_is_refused(tmp_path, state, monkeypatch):
    config = ReduceOnPlateau(0.5).get_config() | {"state": state}
    with monkeypatch.context() as patched:
        patched.setattr(ReduceOnPlateau, "get_config", lambda schedule: config)
        rmsjit.save(tmp_path / "run.npz", rmsjit.RMSprop(ReduceOnPlateau(0.5)), {"w": np.ones(3)})
    w, optimizer = np.zeros(3), rmsjit.RMSprop(ReduceOnPlateau(0.5))
    with pytest.raises(ValueError, match=r"(?s)can't be loaded.*state must have best"):
        rmsjit.load(tmp_path / "run.npz", optimizer, {"w": w})
    assert not w.any()
    with pytest.raises(ValueError, match=r"can't be loaded.*state must have best"):
        rmsjit.load(tmp_path / "run.npz")


def test_another_number_of_plateaus_is_refused(saved):
    path, _ = saved
    schedule, w = Chain([ReduceOnPlateau(0.5), ReduceOnPlateau(1.0)]), np.zeros(3)
    with pytest.raises(ValueError, match="ReduceOnPlateau in the learning rate: saved 1, here 2"):
        rmsjit.load(path, rmsjit.RMSprop(schedule, momentum=0.9), {"w": w})
    assert not w.any()


def test_the_config_of_an_optimizer_has_the_state():
    optimizer = rmsjit.RMSprop(with_state(ReduceOnPlateau(0.5, patience=0), 1.0, 2.0))
    config = json.loads(json.dumps(optimizer.get_config()))
    assert rmsjit.RMSprop.from_config(config).learning_rate == optimizer.learning_rate
    copied = copy.deepcopy(optimizer)
    optimizer.learning_rate.update(2.0)
    assert copied.learning_rate.state.reductions == 1
