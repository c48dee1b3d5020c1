"""How close the forms of `rmsjit.forms` come to their libraries: the measurement.

Tests hold the figures against the promises below, and ``docs/make_forms.py`` prints them.  A figure
is that of single steps, each of which starts from the library's own state.
"""

from typing import NamedTuple

import numpy as np

import rmsjit
from form_twin import twin_step
from golden import form_cases, form_transcriptions, form_vectors
from rmsjit.forms.table import BY_NAME


class Figure(NamedTuple):
    """How far a step is from the library's.

    Attributes
    ----------
    units : float
        The most, in units in the last place of the largest number in the sum that a step is.
    equal : float
        The share of all numbers that have every bit.
    """

    units: float
    equal: float


class Promise(NamedTuple):
    """What a form keeps of its library's numbers, where it does not keep every bit.

    It is of steps: of `momentum` and the variable.  The averages have every bit in any case.

    Attributes
    ----------
    units : float
        At most.
    equal : dict
        The share of numbers with every bit, by dtype, at least.
    why : str
    """

    units: float
    equal: dict
    why: str


BITS = Promise(0.0, {"float32": 1.0, "float64": 1.0}, "")
_ROOT = "the square root of PyTorch on a CPU is not always the nearest number"
_RECIPROCAL = "the library multiplies by an approximate reciprocal root"
_PROMISES = {
    "torch": Promise(3, {"float32": 0.86, "float64": 0.97}, _ROOT),
    "timm": Promise(3, {"float32": 0.86, "float64": 0.97}, _ROOT),
    "stable_baselines3": Promise(3, {"float32": 0.86, "float64": 0.97}, _ROOT),
    "pfrl": Promise(2, {"float32": 0.86, "float64": 0.97}, _ROOT),
    "torchopt": Promise(2, {"float32": 0.9, "float64": 0.98}, _ROOT),
    "tf_keras": Promise(2, {"float32": 0.75, "float64": 0.85}, _RECIPROCAL),
}


def promise_of(case):
    """What is promised of a case; every bit where nothing stands above or here."""
    if case.form == "optax":
        return _promise_of_optax(case.arguments)
    if case.form == "torchopt" and "momentum" in case.arguments:
        why = f"{_ROOT}, and the step is not fused there, only the averages are"
        return Promise(3, {"float32": 0.8, "float64": 0.8}, why)
    if case.form == "paddle" and case.dtype == "float32":
        return Promise(4, {"float32": 0.6}, "Paddle's square root in float32 is approximate")
    if case.form == "flashlight" and "weightDecay" in case.arguments:
        why = "`p - wd*p` is computed as `p*(1 - wd)`"
        return Promise(1, {"float32": 0.9, "float64": 0.9}, why)
    return _PROMISES.get(case.form, BITS)


def _promise_of_optax(arguments):
    if arguments.get("bias_correction"):
        why = "`1 - rho**t` is computed in the dtype of the variable there"
        return Promise(2, {"float32": 0.75, "float64": 0.95}, why)
    if arguments.get("eps_in_sqrt", True):
        return Promise(2, {"float32": 0.84, "float64": 1.0}, _RECIPROCAL)
    return BITS


def cases_of(form):
    """All cases of a form, live or transcribed."""
    variants = form_cases.LIVE.get(form)
    if variants is None:
        variants = form_transcriptions.RUNS[form].variants
    return form_cases.cases_of(form, variants)


def expected_states(case):
    """The library's states, by step: stored, or written down in NumPy."""
    if case.form in form_cases.LIVE:
        return form_vectors.load(case)
    return list(form_transcriptions.RUNS[case.form](case))


def chosen(case, library=None):
    """The form and the numbers of a case; of another row of the table if one is given."""
    library = library or BY_NAME[case.form]
    rate = library.numbers["learning_rate"].name
    return library.chosen({rate: form_cases.RATES[0], **case.arguments})


def optimizer_of(case):
    form, numbers = chosen(case)
    return rmsjit.RMSprop(**{k: v for k, v in numbers.items() if v is not None}, form=form)


def take_step(optimizer, variable, rate, gradient):
    """The state after a step, as the libraries' states are."""
    optimizer.learning_rate = rate
    optimizer.apply_gradients([(gradient, variable)])
    slots = {name: optimizer.get_slot(variable, name) for name in optimizer.get_slot_names()}
    return {"variable": variable.copy(), **{k: np.array(v) for k, v in slots.items()}}


def whole_run(case):
    """The states of a run from start to end."""
    optimizer = optimizer_of(case)
    variable, gradients = form_cases.inputs(case)
    return [
        take_step(optimizer, variable, rate, gradient)
        for rate, gradient in zip(form_cases.RATES, gradients, strict=True)
    ]


def single_steps(case):
    """The states of steps each of which starts from the library's state before."""
    optimizer = optimizer_of(case)
    variable, gradients = form_cases.inputs(case)
    optimizer.build([variable])
    for step, before in enumerate([None, *expected_states(case)[:-1]]):
        if before is not None:
            variable[...] = before["variable"]
            for name in before.keys() - {"variable"}:
                optimizer.get_slot(variable, name).assign(before[name])
        yield take_step(optimizer, variable, form_cases.RATES[step], gradients[step])


def twin_steps(case, library=None):
    """The same as `single_steps` by the twin, without kernels, and of any row of the table."""
    form, numbers = chosen(case, library)
    variable, gradients = form_cases.inputs(case)
    slots = {
        slot.name: np.full_like(variable, slot.first_values(numbers["epsilon"], variable))
        for slot in form.slots
    }
    if numbers.get("clipvalue") is not None:
        bound = variable.dtype.type(numbers["clipvalue"])
        gradients = [np.clip(gradient, -bound, bound) for gradient in gradients]
    for step, before in enumerate([None, *expected_states(case)[:-1]]):
        if before is not None:
            variable = before["variable"]
            slots |= {name: before[name] for name in before.keys() & slots.keys()}
        rule = numbers | {"learning_rate": form_cases.RATES[step]}
        variable, slots = twin_step(form, (variable, slots), gradients[step], rule, step + 1)
        yield {"variable": variable, **slots}


def figures_of(case, made):
    """How far states are from the library's, over all steps, by name.

    Raises
    ------
    KeyError
        If they do not have the arrays that the library's have; "rms" there always is.
    """
    units = {}
    before = {"variable": form_cases.inputs(case)[0]}
    for got, expected in zip(made, expected_states(case), strict=True):
        if got.keys() != expected.keys() | {"rms"}:
            raise KeyError(f"{sorted(got)} instead of {sorted(expected)}")
        for name, array in expected.items():
            start = before.get(name, np.zeros_like(array))
            found = form_vectors.units(got[name], array, start)
            units.setdefault(name, []).append(np.where(np.isnan(found), np.inf, found))
        before = expected
    return {name: _figure(np.array(each, float)) for name, each in units.items()}


def _figure(units):
    return Figure(float(units.max()), float((units == 0).mean()))


def broken(case, found):
    """The figures that are not what is promised of a case, by name."""
    promise = promise_of(case)
    return {
        name: figure
        for name, figure in found.items()
        if figure != Figure(0.0, 1.0)
        and (
            name in ("rms", "mg")
            or figure.units > promise.units
            or figure.equal < promise.equal[case.dtype]
        )
    }
