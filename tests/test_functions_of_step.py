"""Hyperparameters that are functions of the step, told from functions without arguments."""

import functools
import json

import numpy as np
import pytest

import rmsjit
from rmsjit.rule.functions import takes_step
from rmsjit.schedules import ExponentialDecay


class Halving:
    def __call__(self, step):
        return 0.5**step

    def method(self, step):
        return 0.5**step

    def own(self):
        return 0.5


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: 1, False),
        (lambda step: 1, True),
        (lambda step, /: 1, True),
        (lambda step=0: 1, False),
        (lambda *steps: 1, False),
        (lambda step, scale=2: 1, True),
        (lambda step, *more, **others: 1, True),
        (functools.partial(pow, 0.5), True),
        (functools.partial(pow, 0.5, 2), False),
        (Halving(), True),
        (Halving().method, True),
        (Halving().own, False),
        (np.random.default_rng(0).random, False),
        (iter([1.0]).__next__, False),
        (dict.fromkeys("ab").get, True),
    ],
)
def test_the_signature_tells(function, expected):
    assert takes_step("rho", function) is expected


@pytest.mark.parametrize("function", [lambda a, b: 1, lambda *, step: 1, pow])
@pytest.mark.parametrize("name", ["learning_rate", "rho", "momentum", "weight_decay"])
def test_a_function_of_more_is_refused(name, function):
    message = f"^{name} must be a function without arguments or of the step, got .*takes"
    with pytest.raises(TypeError, match=message):
        rmsjit.RMSprop(**{name: function})
    optimizer = rmsjit.RMSprop(0.5)
    if name != "weight_decay":
        with pytest.raises(TypeError, match=message):
            setattr(optimizer, name, function)
        assert isinstance(getattr(optimizer, name), float)


def trained(optimizer, steps=4, **arguments):
    w = np.array([1.0, -2.0])
    for step in range(steps):
        optimizer.apply_gradients([(w * (step + 1), w)], **arguments)
    return w.tolist()


def by_hand(name, function, steps=4):
    """The same run with the number set before each step."""
    w = np.array([1.0, -2.0])
    optimizer = rmsjit.RMSprop(**{"learning_rate": 0.1, "momentum": 0.5, name: function(0)})
    for step in range(steps):
        setattr(optimizer, name, function(step))
        optimizer.apply_gradients([(w * (step + 1), w)])
    return w.tolist()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("learning_rate", lambda step: 0.1 / (step + 1)),
        ("learning_rate", lambda step: np.float32(0.1) * 0.5**step),
        ("rho", lambda step: 0.9 - 0.1 * step),
        ("momentum", lambda step: 0.5 + 0.1 * step),
    ],
)
def test_a_function_gets_the_iterations_before_the_step(name, function):
    arguments = {"learning_rate": 0.1, "momentum": 0.5, name: function}
    assert trained(rmsjit.RMSprop(**arguments)) == by_hand(name, function)


def test_weight_decay_of_the_step():
    form = rmsjit.Form.with_slots("rms", weight_decay="coupled")
    w, steps = np.ones(2), []
    optimizer = rmsjit.RMSprop(0.1, form=form, weight_decay=lambda step: steps.append(step) or 0.1)
    for _ in range(3):
        optimizer.apply_gradients([(w, w)])
    assert steps == [0, 1, 2]


def test_a_function_is_as_good_as_a_schedule():
    schedule = ExponentialDecay(0.1, 2, 0.5)
    for make in (rmsjit.RMSprop, rmsjit.forms.torch, rmsjit.forms.tf_keras_legacy):
        assert trained(make(schedule.__call__)) == trained(make(schedule))


def test_another_function_may_be_set_later():
    optimizer = rmsjit.RMSprop(lambda: 0.1)
    trained(optimizer, 2)
    seen = []
    optimizer.learning_rate = lambda step: seen.append(step) or 0.1
    trained(optimizer, 1)
    optimizer.learning_rate = lambda: seen.append("none") or 0.1
    trained(optimizer, 1)
    assert seen == [2, "none"]


def test_the_config_has_what_the_last_step_used():
    optimizer = rmsjit.RMSprop(lambda step: 0.5**step, rho=lambda step: 0.9 - 0.1 * step)
    assert optimizer.get_config()["learning_rate"] == 1.0
    trained(optimizer, 3)
    config = json.loads(json.dumps(optimizer.get_config()))
    assert (config["learning_rate"], config["rho"]) == (0.25, 0.7)


def test_what_is_returned_is_checked_and_named():
    optimizer = rmsjit.RMSprop(lambda step: "fast")
    with pytest.raises(
        TypeError, match=r"^learning_rate \(from .*<lambda>\(0\)\) must be a number"
    ):
        trained(optimizer)
    with pytest.raises(ValueError, match="rho must be between 0 and 1, got 2"):
        trained(rmsjit.RMSprop(rho=lambda step: 2.0))


# TensorFlow 1 counts steps outside of the optimizer -----------------------------------------------


def test_the_global_step_is_the_step_of_every_function():
    steps = {"learning_rate": [], "decay": [], "momentum": [], "epsilon": []}
    arguments = {
        name: lambda step, seen=seen: seen.append(int(step)) or 0.5 for name, seen in steps.items()
    }
    optimizer = rmsjit.train.RMSPropOptimizer(**arguments)
    trained(optimizer, 2, global_step=np.array(7))
    assert set(map(tuple, steps.values())) == {(7, 8)}


def test_the_global_step_counts_on():
    seen, counter = [], np.array(7)
    optimizer = rmsjit.train.RMSPropOptimizer(lambda step: seen.append(step) or 0.5)
    trained(optimizer, 3, global_step=counter)
    assert (seen, int(counter)) == ([7, 8, 9], 10)


def test_without_a_global_step_nothing_counts():
    optimizer, w = rmsjit.train.RMSPropOptimizer(0.1, decay=lambda step: 0.5), np.ones(2)
    with pytest.raises(ValueError, match=r"^decay must not be a function of the step where"):
        optimizer.apply_gradients([(w, w)])
    assert w.tolist() == [1.0, 1.0]
    assert not optimizer.variables()


# Functions of other libraries ---------------------------------------------------------------------


@pytest.mark.live
def test_schedules_of_optax_are_functions_of_the_step():
    optax = pytest.importorskip("optax")
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=2, decay_steps=6)
    optimizer = rmsjit.RMSprop(theirs, momentum=0.5)
    assert trained(optimizer) == by_hand("learning_rate", lambda step: float(theirs(step)))


@pytest.mark.live
def test_functions_that_jax_compiled_are_functions_of_the_step():
    jax = pytest.importorskip("jax")
    compiled = jax.jit(lambda step: 0.1 / (step + 1))
    assert trained(rmsjit.RMSprop(compiled, momentum=0.5)) == by_hand(
        "learning_rate", lambda step: float(compiled(step))
    )
