"""State to and from `optax.rmsprop`; live where optax is installed."""

import re
from collections import namedtuple

import numpy as np
import pytest

import rmsjit
from rmsjit.interop import from_optax_state, to_optax_state
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

KINDS = {
    name: namedtuple(name, fields)
    for name, fields in {
        "ScaleByRmsState": "nu",
        "ScaleByRmsWithCountState": "count nu",
        "ScaleByRStdDevState": "mu nu",
        "ScaleByRStdDevWithCountState": "count mu nu",
        "TraceState": "trace",
        "ScaleByScheduleState": "count",
        "ScaleByAdamState": "count mu nu",
        "EmptyState": "",
    }.items()
}
SETTINGS = [
    {},
    {"centered": True, "eps_in_sqrt": False},
    {"momentum": 0.9},
    {"momentum": 0.9, "centered": True, "nesterov": True, "bias_correction": True},
    {"bias_correction": True},
]


def like_optax(rate=LEARNING_RATE, momentum=None, centered=False, eps_in_sqrt=True, **form):
    """An optimizer of optax's form, written down apart from what is tested."""
    slots = ["rms", *["mg"] * centered, *["momentum"] * (momentum is not None)]
    settings = {
        "epsilon": "inside" if eps_in_sqrt else "outside",
        "one_minus_rho": "exact",
        "square": "first",
        "quotient": "reciprocal",
        "complex_square": "modulus",
    }
    form = rmsjit.Form.with_slots(*slots, **settings | form)
    return rmsjit.RMSprop(rate, momentum=momentum or 0.0, epsilon=1e-8, form=form)


def nested(arrays):
    """A tree of arrays, of dictionaries, by their paths."""
    tree = {}
    for path, array in arrays.items():
        *branches, leaf = path.split("/")
        branch = tree
        for key in branches:
            branch = branch.setdefault(key, {})
        branch[leaf] = array
    return tree


def recorded():
    """The state that optax had, the variables then by their paths, and those five steps later."""
    settings, arrays = golden("optax")
    before, after, parts = {}, {}, {}
    for key, array in arrays.items():
        part, name = key.split("/", 1)
        if part == "state":
            number, kind, field, *path = name.split("/")
            fields = parts.setdefault((number, kind), {})
            if path:
                fields.setdefault(field, {})["/".join(path)] = array
            else:
                fields[field] = array
        else:
            (before if part == "before" else after)[name] = array
    state = tuple(
        KINDS[kind](**{f: nested(v) if isinstance(v, dict) else v for f, v in fields.items()})
        for (_, kind), fields in sorted(parts.items())
    )
    return settings, state, before, after


def of_record(**changes):
    settings, _, _, _ = recorded()
    del settings["decay"], settings["eps"]
    schedule = rmsjit.schedules.CosineDecay(LEARNING_RATE, 20)
    return like_optax(schedule, **settings | changes)


# --- without optax --------------------------------------------------------------------------


def test_a_recorded_run_goes_on():
    _, state, variables, after = recorded()
    optimizer = of_record()
    assert from_optax_state(state, variables, optimizer) is optimizer
    assert int(optimizer.iterations) == 5
    np.testing.assert_array_equal(
        optimizer.get_slot(variables["layer/w"], "momentum"), -state[2].trace["layer"]["w"]
    )
    train(optimizer, variables, MORE)
    assert_close(after.values(), variables)


def test_a_recorded_state_comes_back():
    _, state, variables, _ = recorded()
    optimizer = from_optax_state(state, variables, of_record())
    zeros = tuple(
        type(part)(*(np.zeros_like(v) if f == "count" else v for f, v in part._asdict().items()))
        for part in state
    )
    again = to_optax_state(optimizer, variables, zeros)
    np.testing.assert_equal(again, state)
    assert [type(part) for part in again] == [type(part) for part in state]
    again[0].nu["layer"]["w"][...] = 7  # a copy
    assert not (optimizer.get_slot(variables["layer/w"], "rms").numpy() == 7).any()


def test_chains_in_chains_lists_and_steps_that_are_not_counted():
    variables = {"0": np.ones(3), "1/a": np.ones(2)}
    nu = [np.full(3, 2.0), {"a": np.full(2, 3.0)}]
    state = (KINDS["EmptyState"](), (KINDS["ScaleByRmsState"](nu), KINDS["EmptyState"]()))
    optimizer = like_optax()
    optimizer.iterations = 4
    from_optax_state(state, variables, optimizer)
    assert int(optimizer.iterations) == 4
    assert optimizer.get_slot(variables["1/a"], "rms").numpy().tolist() == [3, 3]
    np.testing.assert_equal(to_optax_state(optimizer, variables, state), state)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"momentum": None, "nesterov": False}, "the momentum, which is there only"),
        ({"centered": False}, "by which the form there is centered"),
        ({"bias_correction": False}, "bias correction: False here, True there"),
        ({"learning_rate": "outside"}, "it is outside of the momentum here, inside there"),
    ],
)
def test_what_would_be_lost_is_named(changes, lost):
    _, state, variables, _ = recorded()
    optimizer = of_record(**changes)
    optimizer.build(list(variables.values()))
    for act in (
        lambda: from_optax_state(state, variables, optimizer),
        lambda: to_optax_state(optimizer, variables, state),
    ):
        with pytest.raises(ValueError, match=re.escape(lost)):
            act()


def test_the_square_of_complex_gradients():
    z = np.ones(2, np.complex64)
    optimizer = like_optax(complex_square="product")
    optimizer.build([z])
    state = (KINDS["ScaleByRmsState"]({"z": z}),)
    with pytest.raises(ValueError, match="square of complex gradients: product here, modulus"):
        to_optax_state(optimizer, {"z": z}, state)


def test_states_that_do_not_fit():
    _, state, variables, _ = recorded()
    optimizer = of_record()
    for wrong, match in (
        (state[1:], "state must be of optax.rmsprop, got one without nu"),
        ((*state, state[0]), "state must be of one rmsprop, got mu twice"),
        ({"nu": 1}, "state must be of optax.rmsprop, got dict, which would be lost"),
        ((KINDS["ScaleByAdamState"](*state[0]), *state[1:]), "got ScaleByAdamState, which would"),
        ((state[0]._replace(nu={"layer": 3}), *state[1:]), "layer must be an array, got int"),
    ):
        with pytest.raises(ValueError, match=match):
            from_optax_state(wrong, variables, optimizer)
    fewer = {"layer/w": variables["layer/w"], "other": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="only here: other; only there: layer/b, scale"):
        from_optax_state(state, fewer, optimizer)
    assert not optimizer.variables_seen
    with pytest.raises(ValueError, match="lacking slots: 'layer/b', 'layer/w', 'scale'"):
        to_optax_state(optimizer, dict(sorted(variables.items())), state)
    from_optax_state(state, variables, optimizer)
    state[0].mu["scale"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"mu of 'scale' must be float32 of shape \(2,\), got"):
        to_optax_state(optimizer, variables, state)


# --- live -----------------------------------------------------------------------------------


@pytest.fixture
def optax():
    return pytest.importorskip("optax", reason="optax is not installed")


def train_optax(optax, rule, params, state, steps):
    for step in steps:
        gradients = dict(zip(params, gradients_of(params, step), strict=True))
        updates, state = rule.update(gradients, state, params)
        params = {name: np.asarray(v) for name, v in optax.apply_updates(params, updates).items()}
    return params, state


@pytest.mark.live
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_the_form_of_a_momentum_has_the_slots_of_its_state(optax, momentum):
    params = new_variables("float32")
    rule = optax.rmsprop(LEARNING_RATE, momentum=momentum)
    params, state = train_optax(optax, rule, params, rule.init(params), STEPS)
    variables = {name: np.array(value) for name, value in params.items()}
    optimizer = rmsjit.forms.optax(LEARNING_RATE, momentum=momentum)
    from_optax_state(state, variables, optimizer)
    again = to_optax_state(optimizer, variables, rule.init(params))
    assert len(again) == len(state)
    params, _ = train_optax(optax, rule, params, state, MORE)
    train(optimizer, variables, MORE)
    assert_close(params.values(), variables)


@pytest.mark.live
@pytest.mark.parametrize("settings", SETTINGS)
def test_runs_travel_both_ways(optax, settings):
    rule = optax.chain(optax.clip(10.0), optax.rmsprop(LEARNING_RATE, **settings))
    params = new_variables("float32")
    params, state = train_optax(optax, rule, params, rule.init(params), STEPS)
    variables = {name: np.array(value) for name, value in params.items()}
    optimizer = like_optax(**settings)
    optimizer.iterations = 5  # which only bias correction counts there
    from_optax_state(state, variables, optimizer)
    params, _ = train_optax(optax, rule, params, state, MORE)
    train(optimizer, variables, MORE)
    assert_close(params.values(), variables)

    params = {name: np.array(value) for name, value in variables.items()}
    state = to_optax_state(optimizer, variables, rule.init(params))
    again = from_optax_state(state, params, like_optax(**settings))
    np.testing.assert_equal(slots_of(again, params), slots_of(optimizer, variables))
    params, _ = train_optax(optax, rule, params, state, range(10, 15))
    train(optimizer, variables, range(10, 15))
    assert_close(params.values(), variables)
