"""rmsjit against numbers that TensorFlow computed, stored in tests/golden.

Each run is compared after every step: variables, slots and the step count. What is allowed to
differ, and why, is in golden/tolerance.py; what was run, and what TensorFlow cannot run, in
golden/cases.py.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import rmsjit
from golden import cases, tolerance, vectors
from reference import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    dense_gradient,
    initial_slots,
    reference_sparse_step,
    reference_step,
)
from strategies import QUICK

DENSE = vectors.load("dense.npz", cases.DENSE_CASES + cases.UNROUNDED_CASES)
SPARSE = vectors.load("sparse.npz", cases.SPARSE_CASES)
INTERFACE = json.loads((vectors.FOLDER / "interface.json").read_text(encoding="utf-8"))
SCHEDULE_CONFIGS = json.loads((vectors.FOLDER / "schedules.json").read_text(encoding="utf-8"))
with np.load(vectors.FOLDER / "schedules.npz", allow_pickle=False) as _file:
    SCHEDULE_VALUES = dict(_file)

PLAIN_CASES = [case for case in cases.DENSE_CASES if not case.schedule]
SCHEDULED_CASES = [case for case in cases.DENSE_CASES if case.schedule]
HALF_CASES = [case for case in PLAIN_CASES if case.dtype in cases.HALF_DTYPES]


def every(case_list):
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[slow] * (case.dtype not in QUICK))
            for case in case_list
        ],
    )


def assert_agree(case, made, stored):
    initial, _ = cases.inputs(case)
    complaints = tolerance.differences(case, made, stored, initial)
    assert not complaints, "\n".join(complaints)


# --- The reference twin, run through a case --------------------------------------------------


def compute_dtype(case):
    return "float32" if case.dtype in cases.HALF_DTYPES else case.dtype


def reference_settings(case, step):
    """What the rule takes at a step: resolved hyperparameters, and the place of epsilon."""
    real = np.zeros((), compute_dtype(case)).real.dtype.type
    rate = real(cases.hyperparameter(case, "learning_rate", step))
    if case.face == "keras":
        rate = rate / (real(1) + real(case.settings.get("decay", 0)) * real(step))
    return {
        "lr": rate,
        "rho": cases.hyperparameter(case, "rho" if case.face == "keras" else "decay", step),
        "momentum": cases.hyperparameter(case, "momentum", step),
        "eps": cases.hyperparameter(case, "epsilon", step) or 1e-7,
        "eps_inside": case.face == "train" or "momentum" in cases.slot_names(case),
        "compute_dtype": compute_dtype(case),
    }


def reference_clip(case, gradients):
    dtype, settings = compute_dtype(case), case.settings
    if "clipvalue" in settings:
        gradients = [clip_by_value(g, settings["clipvalue"], dtype) for g in gradients]
    if "clipnorm" in settings:
        gradients = [clip_by_norm(g, settings["clipnorm"], dtype) for g in gradients]
    if "global_clipnorm" in settings:
        gradients = clip_by_global_norm(gradients, settings["global_clipnorm"], dtype)
    return gradients


def start_slots(case, variable):
    return initial_slots(variable, cases.slot_names(case), 1.0 if case.face == "train" else 0.0)


def reference_update(case, step, target, variable, gradient, slots, settings):
    if not (case.rows and target == 0):
        return reference_step(variable, gradient, slots, **settings)
    rows = case.rows[step]
    if case.whole_table:
        dense = dense_gradient(gradient, rows, variable.shape, settings["compute_dtype"])
        return reference_step(variable, dense, slots, **settings)
    return reference_sparse_step(variable, gradient, rows, slots, **settings)


def run_reference(case, change=None):
    """The twin's run of a case; `change` overrides arguments of the rule."""
    variables, gradients = cases.inputs(case)
    slots = [start_slots(case, variable) for variable in variables]
    run = {}
    for step in range(case.steps):
        settings = reference_settings(case, step) | (change or {})
        clipped = reference_clip(case, gradients[step])
        for target, gradient in zip(cases.targets_of(case, step), clipped, strict=True):
            variables[target], slots[target] = reference_update(
                case, step, target, variables[target], gradient, slots[target], settings
            )
        for index, variable in enumerate(variables):
            run[step, index, "variable"] = variable
            for name, slot in slots[index].items():
                run[step, index, name] = slot
    return run


@pytest.mark.slow
@every(cases.DENSE_CASES)
def test_reference_agrees_with_tensorflow(case):
    assert_agree(case, run_reference(case), DENSE[case.name])


@every(cases.SPARSE_CASES)
def test_sparse_reference_agrees_with_tensorflow(case):
    assert_agree(case, run_reference(case), SPARSE[case.name])


@pytest.mark.parametrize("name", ["keras-float32-every-both", "train-float32-every-both"])
@pytest.mark.parametrize(
    "change", [{"eps": 1e-5}, {"rho": 0.90001}, {"momentum": 0.90001}, {"lr": 0.010001}]
)
def test_the_comparison_notices_a_slightly_wrong_rule(name, change):
    case = next(case for case in cases.DENSE_CASES if case.name == name)
    initial, _ = cases.inputs(case)
    made = run_reference(case, change)
    assert tolerance.differences(case, made, DENSE[name], initial)


@pytest.mark.parametrize("name", ["keras-float32-every-plain", "train-float64-every-centered"])
def test_the_comparison_notices_the_wrong_place_of_epsilon(name):
    case = next(case for case in cases.DENSE_CASES if case.name == name)
    initial, _ = cases.inputs(case)
    made = run_reference(case, {"eps_inside": case.face == "keras"})
    assert tolerance.differences(case, made, DENSE[name], initial)


@every(cases.UNROUNDED_CASES)
def test_tensorflow_rounds_hyperparameters_to_float32(case):
    """Why every other case gives numbers that float32 holds exactly."""
    initial, _ = cases.inputs(case)
    stored = DENSE[case.name]
    assert tolerance.differences(case, run_reference(case), stored, initial)
    rho = "rho" if case.face == "keras" else "decay"
    rounded = {
        "lr": cases.f32(case.settings["learning_rate"]),
        "rho": cases.f32(case.settings[rho]),
        "momentum": cases.f32(case.settings["momentum"]),
    }
    if case.face == "train":
        rounded["eps"] = cases.f32(case.settings["epsilon"])
    assert_agree(case, run_reference(case, rounded), stored)


# --- rmsjit, run through a case --------------------------------------------------------------


def make_optimizer(case, current, **extra):
    """rmsjit's optimizer of a case; its callables answer for the step `current["step"]`."""
    arguments = {**case.settings, **extra}
    for name, values in case.callables.items():
        arguments[name] = lambda values=values: values[current["step"]]
    if case.schedule:
        arguments["learning_rate"] = rmsjit.schedules.PiecewiseConstantDecay(**case.schedule)
    face = rmsjit.RMSprop if case.face == "keras" else rmsjit.train.RMSPropOptimizer
    return face(**arguments)


def as_gradient(case, step, target, gradient):
    if case.rows and target == 0:
        return rmsjit.IndexedSlices(gradient, np.array(case.rows[step]))
    return gradient


def steps_of(case, **extra):
    """Run a case with rmsjit; yields (step, optimizer, variables) after every step."""
    variables, gradients = cases.inputs(case)
    current = {"step": 0}
    optimizer = make_optimizer(case, current, **extra)
    global_step = np.array(0)
    for step in range(case.steps):
        current["step"] = step
        for name, values in case.assigned.items():
            setattr(optimizer, name, values[step])
        pairs = [
            (as_gradient(case, step, target, gradient), variables[target])
            for target, gradient in zip(cases.targets_of(case, step), gradients[step], strict=True)
        ]
        if case.face == "train":
            optimizer.apply_gradients(pairs, global_step)
            assert int(global_step) == step + 1
        else:
            optimizer.apply_gradients(pairs)
            assert int(optimizer.iterations) == step + 1
        yield step, optimizer, variables


def slots_now(case, optimizer, variable):
    """Copies of the variable's slots."""
    names = cases.slot_names(case)
    return {name: np.array(np.asarray(optimizer.get_slot(variable, name))) for name in names}


def run_rmsjit(case, **extra):
    run = {}
    for step, optimizer, variables in steps_of(case, **extra):
        for index, variable in enumerate(variables):
            run[step, index, "variable"] = variable.copy()
            for name, slot in slots_now(case, optimizer, variable).items():
                run[step, index, name] = slot
    return run


@every(PLAIN_CASES)
def test_matches_tensorflow(case):
    assert_agree(case, run_rmsjit(case), DENSE[case.name])


@every(HALF_CASES)
def test_half_types_are_one_rounding_of_float32(case):
    """Every step starts from rmsjit's own state, so that what differs is that step's rounding.

    rmsjit's float32 arithmetic need not be the twin's to the last bit, so a number that lies
    next to the middle between two half floats may be rounded the other way: one unit, rarely.
    """
    variables, gradients = cases.inputs(case)
    before = [(variable.copy(), start_slots(case, variable)) for variable in variables]
    count = flips = 0
    for step, optimizer, variables in steps_of(case):
        settings = reference_settings(case, step)
        clipped = reference_clip(case, gradients[step])
        targets = cases.targets_of(case, step)
        for target, gradient in zip(targets, clipped, strict=True):
            variable, slots = before[target]
            expected, expected_slots = reference_step(variable, gradient, slots, **settings)
            got_slots = slots_now(case, optimizer, variables[target])
            results = [(variables[target], expected)]
            results += [(got_slots[name], expected_slots[name]) for name in got_slots]
            for got, wanted in results:
                flips += count_flips(case, got, wanted)
                count += wanted.size
            before[target] = (variables[target].copy(), got_slots)
    assert flips <= 1 + count // 100


def count_flips(case, got, wanted):
    """How many elements differ; none may by more than a unit in the last place."""
    assert got.dtype == wanted.dtype
    got, wanted = tolerance.wide(got), tolerance.wide(wanted)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    unit = tolerance.ulp(np.where(same, 0.0, np.abs(wanted)), case.dtype)
    with np.errstate(invalid="ignore"):
        assert np.all(same | (np.abs(got - wanted) <= unit))
    return int(np.count_nonzero(~same))


@every(SCHEDULED_CASES)
def test_matches_tensorflow_under_a_schedule(case):
    assert_agree(case, run_rmsjit(case), DENSE[case.name])


# --- Sparse gradients ------------------------------------------------------------------------


@every([case for case in cases.SPARSE_CASES if not case.whole_table])
def test_sparse_rows_match_tensorflow(case):
    assert_agree(case, run_rmsjit(case), SPARSE[case.name])


@every([case for case in cases.SPARSE_CASES if case.whole_table])
def test_sparse_exact_matches_the_whole_table_rule_of_tf_keras(case):
    assert_agree(case, run_rmsjit(case, sparse="exact"), SPARSE[case.name])


# --- Configuration and weights ---------------------------------------------------------------


def build_arguments(settings):
    """Constructor arguments, with the stand-ins of CONFIG_CASES made into what they stand for."""
    arguments = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "schedule" in value:
            value = make_schedule(value["schedule"])
        elif isinstance(value, dict):
            value = constant(value["callable"])
        arguments[name] = value
    return arguments


def constant(number):
    return lambda: number


def uses_schedule(settings):
    return any(isinstance(value, dict) and "schedule" in value for value in settings.values())


PLAIN_CONFIGS = [name for name, s in cases.CONFIG_CASES.items() if not uses_schedule(s)]
SCHEDULE_IN_CONFIG = [name for name, s in cases.CONFIG_CASES.items() if uses_schedule(s)]


def assert_config(name):
    config = rmsjit.RMSprop(**build_arguments(cases.CONFIG_CASES[name])).get_config()
    assert json.loads(json.dumps(config)) == INTERFACE["keras"]["configs"][name]


@pytest.mark.parametrize("name", PLAIN_CONFIGS)
def test_config_is_that_of_tf_keras(name):
    assert_config(name)


@pytest.mark.parametrize("name", SCHEDULE_IN_CONFIG)
def test_config_with_a_schedule_is_that_of_tf_keras(name):
    assert_config(name)


def step_once(form, wrap):
    """An optimizer after one step, and its variables by name."""
    variables = {name: wrap(np.ones(shape), name) for name, shape in cases.WEIGHT_VARIABLES}
    optimizer = rmsjit.RMSprop(**{**cases.KERAS, **cases.FORMS[form]})
    # Gradients of different sizes, so that no two weights hold the same numbers.
    sizes = enumerate(cases.WEIGHT_VARIABLES, start=2)
    gradients = [np.full(shape, float(size)) for size, (_, shape) in sizes]
    optimizer.apply_gradients(zip(gradients, variables.values(), strict=True))
    return optimizer, variables


@pytest.mark.parametrize("form", cases.FORMS)
def test_get_weights_has_the_order_of_tf_keras(form):
    stored = INTERFACE["keras"]["weights"][form]
    optimizer, variables = step_once(form, lambda array, name: array)
    weights = optimizer.get_weights()
    assert [list(np.shape(weight)) for weight in weights] == stored["shapes"]
    assert [np.asarray(weight).dtype.name for weight in weights] == stored["dtypes"]
    assert int(weights[0]) == 1
    for weight, name in zip(weights[1:], stored["names"][1:], strict=True):
        # "RMSprop/W/rms:0"
        _, variable, slot = name.removesuffix(":0").split("/")
        np.testing.assert_array_equal(weight, optimizer.get_slot(variables[variable], slot))


@pytest.mark.parametrize("form", cases.FORMS)
def test_slot_names_are_those_of_tf_keras(form):
    optimizer, _ = step_once(form, lambda array, name: array)
    assert list(optimizer.get_slot_names()) == INTERFACE["keras"]["weights"][form]["slot_names"]


@pytest.mark.parametrize("form", cases.FORMS)
def test_weights_are_named_as_in_tf_keras(form):
    optimizer, _ = step_once(form, lambda array, name: rmsjit.Variable(array, name=name))
    names = [weight.name for weight in optimizer.weights]
    assert names == INTERFACE["keras"]["weights"][form]["names"]


# --- Schedules -------------------------------------------------------------------------------


def make_schedule(name):
    class_name, arguments, keywords = cases.SCHEDULE_CASES[name]
    return getattr(rmsjit.schedules, class_name)(*arguments, **keywords)


@pytest.mark.parametrize("name", cases.SCHEDULE_CASES)
def test_schedule_values_are_those_of_tf_keras(name):
    schedule, expected = make_schedule(name), SCHEDULE_VALUES[name]
    values = np.array([float(schedule(step)) for step in cases.SCHEDULE_STEPS])
    assert np.abs(values - expected).max() <= tolerance.schedule_limit(expected)


@pytest.mark.parametrize("name", cases.SCHEDULE_CASES)
def test_schedule_config_is_that_of_tf_keras(name):
    config = make_schedule(name).get_config()
    assert json.loads(json.dumps(config)) == SCHEDULE_CONFIGS[name]["config"]


# --- Live ------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.skipif(
    not (importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tf_keras")),
    reason="needs tensorflow and tf-keras",
)
def test_live_tensorflow_still_makes_these_vectors():
    # In a process of its own: TensorFlow brings threads and warnings that are not ours.
    script = pathlib.Path(__file__).parent / "golden" / "make_golden.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
