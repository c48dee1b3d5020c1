"""Forms of the rule: every setting, alone and in pairs, to the ulp and to the bit; and the guards.

Results are compared twice. The reference gives the number, to a few units in the last place; a
second twin below writes every order of operations down in float32, and must give the same bits.
"""

import copy
import enum
import hashlib
import inspect
import itertools
import json
import os
import pickle
import random
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import rmsjit
from form_twin import twin_step, used
from reference import initial_slots, reference_step
from rmsjit import Form, IndexedSlices, Slot
from rmsjit.checkpoints.save import load, save
from rmsjit.kernels import dense, rows
from rmsjit.kernels.scalars import load as load_element
from rmsjit.kernels.scalars import root, store
from rmsjit.rule.presets import keras_legacy, tf1
from rmsjit.rule.slot import RMS
from rmsjit.runtime.flags import INLINED
from strategies import assert_close, computing, same_bits, state_of, ulp

RHO, MOMENTUM, EPSILON, DECAY, BOUND = 0.9, 0.8, 1e-3, 0.3, 1.5  # no power of two
RATES = (0.1, 0.03, 0.05, 0.02)
STEPS_BEFORE = 20  # of filled slots
SLOT_SETS = (("rms",), ("rms", "mg"), ("rms", "momentum"), ("rms", "mg", "momentum"))
ALL_SLOTS = SLOT_SETS[-1]
# Every setting of `Form`, with every value that is not the default of its own.
SETTINGS = {
    "epsilon": ("outside", "inside"),
    "learning_rate": ("inside", "outside"),
    "nesterov": (False, True),
    "bias_correction": (False, True),
    "weight_decay": (None, "coupled", "decoupled", "subtracted", "independent"),
    "clip_weights": (False, True),
    "clamp": (True, False),
    "complex_square": ("product", "modulus"),
    "one_minus_rho": ("rounded", "exact"),
    "rms_average": ("weighted", "difference"),
    "mg_average": ("weighted", "difference"),
    "square": ("weighted", "first"),
    "quotient": ("rate_last", "rate_first", "reciprocal", "rate_over"),
    "fused": (False, True),
    "float32_numbers": ((), ("learning_rate", "rho", "momentum", "epsilon", "weight_decay")),
    "creation": ("by_slot", "by_variable"),
    "rounding": ("nearest", "stochastic"),
}
ALONE = [(name, value) for name, values in SETTINGS.items() for value in values[1:]]
# Of the reference, per step from the same state. It rounds in one order, forms in another.
ULPS = {"float16": 1, "bfloat16": 1, "float32": 4, "float64": 4, "complex64": 8, "complex128": 8}


def numbers_for(form):
    """The arguments of an optimizer, such that every setting of the form matters."""
    return {
        "rho": RHO,
        "momentum": MOMENTUM if form.has_momentum else 0.0,
        "epsilon": EPSILON,
        "weight_decay": DECAY if form.weight_decay else 0.0,
        "clip_weights": BOUND if form.clip_weights else None,
    }


def optimizer_for(form, learning_rate=RATES[0], **changes):
    return rmsjit.RMSprop(learning_rate, form=form, **(numbers_for(form) | changes))


def rule_of(form, lr, step):
    """A form and the numbers of a step in the words of the reference."""
    return {
        "lr": used(form, "learning_rate", lr),
        "rho": used(form, "rho", RHO),
        "momentum": used(form, "momentum", MOMENTUM),
        "eps": used(form, "epsilon", EPSILON),
        "eps_inside": form.epsilon == "inside",
        "lr_outside": form.learning_rate == "outside",
        "nesterov": form.nesterov,
        "bias_correction": form.bias_correction,
        "step": step,
        "modulus": form.complex_square == "modulus",
        "weight_decay": used(form, "weight_decay", DECAY),
        "decay_kind": form.weight_decay,
        "clip_weights": BOUND if form.clip_weights else None,
        "clamp": form.clamp,
        "exact_one_minus_rho": form.one_minus_rho == "exact",
    }


def values(rng, shape, dtype):
    """Numbers from 0.5 to 2 in magnitude, of which no sum or difference loses many digits."""
    size = rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)
    if np.dtype(dtype).kind == "c":
        size = size * np.exp(1j * rng.uniform(-0.3, 0.3, shape))
    return size.astype(dtype)


def slots_now(form, optimizer, variable):
    return {name: np.array(optimizer.get_slot(variable, name)) for name in form.slot_names}


def first_rms(form):
    return form.slot("rms").first_values(EPSILON, None)


def dtypes_of(form):
    return {slot.name: np.dtype(slot.dtype) for slot in form.slots if slot.dtype}


def fill(form, optimizer, variable, rng):
    """Slots as after a few steps, which leave a variance far from zero, even when corrected."""
    optimizer.iterations = STEPS_BEFORE
    mg = 0.5 * values(rng, variable.shape, variable.dtype)
    full = {"mg": mg, "momentum": values(rng, variable.shape, variable.dtype)}
    full["rms"] = mg * mg + rng.uniform(0.5, 1.0, variable.shape)
    for name in form.slot_names:
        optimizer.get_slot(variable, name).array[...] = full[name]
    return slots_now(form, optimizer, variable)


def assert_is_reference(form, dtype, check=None, size=67, compute_dtype=None, **changes):
    """Whether steps at several rates are those of the reference, each from the same state.

    `check(form, state before, gradient, rate, step, state after)` may look closer.
    """
    rng = np.random.default_rng(0)
    variable = values(rng, size, dtype)
    optimizer = optimizer_for(form, **changes)
    optimizer.build([variable])
    slots = slots_now(form, optimizer, variable)
    first = initial_slots(variable, form.slot_names, first_rms(form), dtypes_of(form))
    assert all(same_bits(slots[name], first[name]) for name in form.slot_names)
    slots = fill(form, optimizer, variable, rng)
    for step, lr in enumerate(RATES, STEPS_BEFORE + 1):
        before, gradient = variable.copy(), values(rng, size, dtype)
        optimizer.learning_rate = lr
        optimizer.apply_gradients([(gradient, variable)])
        now = slots_now(form, optimizer, variable)
        rule = rule_of(form, lr, step) | {"compute_dtype": compute_dtype or computing(dtype)}
        expected, expected_slots = reference_step(before, gradient, slots, **rule)
        ulps = ULPS[np.dtype(dtype).name]
        slack = 0.0
        if form.has_momentum:  # which can cancel, and the variable then has its rounding
            carried = np.abs(slots["momentum"]) + np.abs(expected_slots["momentum"])
            slack = 2 * np.finfo(computing(dtype)).eps * carried
        assert_close(variable, expected, before, slack=slack, ulps=ulps)
        for name, value in expected_slots.items():
            assert_close(now[name], value, slots[name], ulps=ULPS[value.dtype.name])
        if check is not None:
            check(form, (before, slots), gradient, lr, step, (variable, now))
        slots = now


# --- The same in bits ------------------------------------------------------------------------


def step_in_bits(form, state, gradient, lr, step):
    """One step in real numbers, every operation of which is rounded as the form says."""
    numbers = {"rho": RHO, "momentum": MOMENTUM, "epsilon": EPSILON, "weight_decay": DECAY}
    numbers |= {"learning_rate": lr, "clip_weights": BOUND}
    return twin_step(form, state, gradient, numbers, step)


def assert_same_state(got, expected):
    (variable, slots), (expected_variable, expected_slots) = got, expected
    for name, value in expected_slots.items():
        assert same_bits(slots[name], value), name
    assert same_bits(variable, expected_variable)


def assert_is_bits(form, before, gradient, lr, step, after):
    """For float32, and for float64 where nothing is fused; other tests are about a modulus."""
    if (gradient.dtype == np.float32 or not form.fused) and form.complex_square == "product":
        assert_same_state(after, step_in_bits(form, before, gradient, lr, step))


# --- Every setting ---------------------------------------------------------------------------


def test_every_setting_is_tested():
    assert {"slots", *SETTINGS} == {field.name for field in fields(Form)}
    for name, (default, *_) in SETTINGS.items():
        assert getattr(Form(), name) == default


@pytest.mark.parametrize("slots", SLOT_SETS, ids="-".join)
def test_every_set_of_slots(slots):
    assert_is_reference(Form.with_slots(*slots), "float32", assert_is_bits)


@pytest.mark.parametrize(("name", "value"), ALONE)
def test_every_setting_alone(name, value):
    """In float32; among the pairs each meets float64 as well."""
    form = Form.with_slots(*ALL_SLOTS, **{name: value})
    assert_is_reference(form, "float32", assert_is_bits)


@pytest.mark.parametrize("decay", SETTINGS["weight_decay"][1:])
def test_numbers_in_float32_in_double_precision(decay):
    names = SETTINGS["float32_numbers"][1]
    form = Form.with_slots(*ALL_SLOTS, weight_decay=decay, float32_numbers=names)
    assert_is_reference(form, "float64", assert_is_bits)


def test_the_decay_of_the_rate_in_float32():
    ends = []
    for names in ((), ("learning_rate", "decay")):
        w, form = np.zeros(1), Form(float32_numbers=names)
        optimizer = rmsjit.RMSprop(0.1, rho=0.0, epsilon=1e-30, decay=0.3, form=form)
        optimizer.iterations = 3
        optimizer.apply_gradients([(np.ones(1), w)])
        ends.append(-w[0])
    assert ends == [0.1 / (1 + 0.3 * 3), float(np.float32(0.1)) / (1 + float(np.float32(0.3)) * 3)]


def rows_covering_pairs(factors, allowed):
    """Rows in which every two values of different factors that may meet do so; greedily."""
    names, chooser = list(factors), random.Random(0)
    pairs = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }

    def drawn():
        while True:
            row = {name: chooser.choice(choices) for name, choices in factors.items()}
            if allowed(row):
                return row

    def met(row):
        return pairs & set(itertools.combinations(row.items(), 2))

    found, misses = [], 0
    while pairs and misses < 20:  # what is left then may not meet
        best = max((drawn() for _ in range(200)), key=lambda row: len(met(row)))
        misses = 0 if met(best) else misses + 1
        if met(best):
            found.append(best)
        pairs -= met(best)
    return found, pairs


def may_be(row):
    needs_momentum = row["nesterov"] or row["learning_rate"] == "outside"
    return "momentum" in row["slots"] or not needs_momentum


# Numbers are rounded before the rule sees them, and half types after it; `test_half_precision`.
APART = {"float32_numbers", "rounding"}
MEETING = {name: choices for name, choices in SETTINGS.items() if name not in APART}
COVERING, NEVER_MET = rows_covering_pairs(
    {
        "slots": SLOT_SETS,
        **MEETING,
        "rms_start": (0.0, 1.0, "epsilon"),
        "dtype": ("float32", "float64"),
    },
    may_be,
)


def test_pairs_that_do_not_meet_contradict_each_other():
    without = [slots for slots in SLOT_SETS if "momentum" not in slots]
    refused = [("nesterov", True), ("learning_rate", "outside")]
    assert {pair for pair, _ in NEVER_MET} == {("slots", slots) for slots in without}
    assert {pair for _, pair in NEVER_MET} == set(refused)
    assert len(COVERING) < 40


@pytest.mark.slow  # since each row has a kernel of its own
@pytest.mark.parametrize("row", COVERING, ids=range(len(COVERING)))
def test_every_pair_of_settings(row):
    settings = dict(row)
    slots, dtype = settings.pop("slots"), settings.pop("dtype")
    assert_is_reference(Form.with_slots(*slots, **settings), dtype, assert_is_bits)


# Which arrays a setting changes in the very first step from a state in which all slots are full.
CHANGES = {
    "epsilon": {"momentum", "variable"},
    "learning_rate": {"momentum", "variable"},
    "nesterov": {"variable"},
    "bias_correction": {"momentum", "variable"},
    "coupled": {"rms", "mg", "momentum", "variable"},
    "decoupled": {"variable"},
    "subtracted": {"variable"},
    "independent": {"variable"},
    "clip_weights": {"variable"},
    "one_minus_rho": {"rms", "mg", "momentum", "variable"},
    "rms_average": {"rms", "momentum", "variable"},
    "mg_average": {"mg", "momentum", "variable"},
    "square": {"rms", "momentum", "variable"},
    "quotient": {"momentum", "variable"},
    "fused": {"rms", "mg", "momentum", "variable"},
}
# Other tests are about these.
UNSEEN = {"clamp", "complex_square", "float32_numbers", "creation", "rounding"}


def stepped(form, state, gradient):
    """One step of an optimizer from a state."""
    variable, slots = state[0].copy(), state[1]
    optimizer = optimizer_for(form, RATES[1])
    optimizer.build([variable])
    for name, value in slots.items():
        optimizer.get_slot(variable, name).assign(value)
    optimizer.iterations = STEPS_BEFORE
    optimizer.apply_gradients([(gradient, variable)])
    return variable, slots_now(form, optimizer, variable)


@pytest.fixture(scope="module")
def full_state():
    """A variable, its slots, and a gradient; enough elements for every difference in rounding."""
    rng, form = np.random.default_rng(1), Form.with_slots(*ALL_SLOTS)
    variable, optimizer = np.float32(0.05) * values(rng, 4099, "float32"), optimizer_for(form)
    optimizer.build([variable])  # a small variable, in which no bit of the step is lost
    return (variable, fill(form, optimizer, variable, rng)), values(rng, 4099, "float32")


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, value in ALONE if name not in UNSEEN]
)
def test_every_setting_changes_the_bits_that_it_speaks_of(full_state, name, value):
    state, gradient = full_state
    base = Form.with_slots(*ALL_SLOTS)
    form = replace(base, **{name: value})
    (variable, slots), (other, other_slots) = (stepped(f, state, gradient) for f in (form, base))
    assert_same_state(
        (variable, slots), step_in_bits(form, state, gradient, RATES[1], STEPS_BEFORE + 1)
    )
    changed = {key for key in slots if not same_bits(slots[key], other_slots[key])}
    changed |= set() if same_bits(variable, other) else {"variable"}
    assert changed == CHANGES[value if name == "weight_decay" else name]


@pytest.mark.parametrize("name", ["rms_average", "square", "mg_average", "quotient", "fused"])
def test_orders_of_operations_change_rounding_only(full_state, name):
    state, gradient = full_state
    results = [
        stepped(Form.with_slots(*ALL_SLOTS, **{name: value}), state, gradient)
        for value in SETTINGS[name]
    ]
    for (one, slots), (other, other_slots) in itertools.combinations(results, 2):
        assert not same_bits(one, other)
        assert_close(one, other, state[0], ulps=4)
        for key in slots:
            assert_close(slots[key], other_slots[key], state[1][key], ulps=4)


def test_the_clamp_is_what_keeps_the_variance_from_falling_below_zero():
    """A constant gradient: rounding leaves a variance of about -1e-7 or a little more than 0."""
    start = np.linspace(1.0, 4.0, 97, dtype=np.float32)
    ends = {}
    for clamp in (True, False):
        form = Form.with_slots("rms", "mg", clamp=clamp)
        variable, optimizer = start.copy(), rmsjit.RMSprop(1e-9, epsilon=1e-7, form=form)
        for _ in range(400):
            optimizer.apply_gradients([(start, variable)])
        ends[clamp] = np.isnan(variable).any()
    assert ends == {True: False, False: True}


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("complex64", {"complex_square": "modulus"}),
        ("complex128", {"complex_square": "modulus", "epsilon": "inside", "square": "first"}),
        ("complex64", {"quotient": "reciprocal", "weight_decay": "decoupled", "nesterov": True}),
        ("complex128", {"quotient": "rate_over", "rms_average": "difference", "fused": True}),
        ("complex64", {"learning_rate": "outside", "weight_decay": "coupled", "fused": True}),
    ],
    ids=str,
)
def test_complex_numbers(dtype, settings):
    assert_is_reference(Form.with_slots("rms", "momentum", **settings), dtype)


@pytest.mark.parametrize("kind", ["product", "modulus"])
def test_centered_complex_numbers(kind):
    form = Form.with_slots("rms", "mg", complex_square=kind, bias_correction=True)
    assert_is_reference(form, "complex64")


def test_the_modulus_changes_nothing_for_real_numbers(full_state):
    state, gradient = full_state
    base = Form.with_slots(*ALL_SLOTS)
    modulus = replace(base, complex_square="modulus")
    assert_same_state(stepped(modulus, state, gradient), stepped(base, state, gradient))


def test_the_modulus_descends_where_the_product_does_not():
    """Along the imaginary axis g*g is negative, so its root turns the step by 90 degrees."""
    ends = {}
    for kind in SETTINGS["complex_square"]:
        z = np.array([2j])
        optimizer = rmsjit.RMSprop(0.1, form=Form(complex_square=kind))
        for _ in range(10):
            optimizer.apply_gradients([(z.copy(), z)])
        ends[kind] = abs(z[0])
    assert ends["modulus"] < 1 < 2 < ends["product"]


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float16", {"learning_rate": "outside", "weight_decay": "coupled", "fused": True}),
        ("bfloat16", {"epsilon": "inside", "nesterov": True, "bias_correction": True}),
    ],
    ids=["float16", "bfloat16"],
)
def test_half_types(dtype, settings):
    assert_is_reference(Form.with_slots(*ALL_SLOTS, **settings), dtype)


# --- Slots of their own ----------------------------------------------------------------------


def form_with(*names, **slot_settings):
    """A form whose rms has settings of its own."""
    form = Form.with_slots(*names)
    return replace(form, slots=(replace(form.slots[0], **slot_settings), *form.slots[1:]))


@pytest.mark.parametrize(
    ("variable", "rms", "compute_dtype"),
    [
        ("float32", "float64", "float64"),
        ("float32", "bfloat16", "float32"),
        ("float64", "float32", "float64"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_slot_with_a_dtype_of_its_own(variable, rms, compute_dtype):
    form = form_with(*ALL_SLOTS, dtype=rms)
    assert_is_reference(form, variable, compute_dtype=compute_dtype)


@pytest.mark.parametrize("rms", ["float64", "bfloat16"])
def test_slot_with_a_dtype_of_its_own_in_tables(rms):
    rng = np.random.default_rng(0)
    form = form_with("rms", "momentum", dtype=rms)
    table = values(rng, (6, 5), "float32")
    part = table[[4, 1]]
    exact, single = optimizer_for(form, sparse="exact"), optimizer_for(form)
    for _ in range(3):
        gradient = values(rng, (2, 5), "float32")
        exact.apply_gradients([(IndexedSlices(gradient, [4, 1]), table)])
        single.apply_gradients([(gradient, part)])
    slot = exact.get_slot(table, "rms").numpy()
    assert slot.dtype == np.dtype(rms)
    assert same_bits(slot[[4, 1]], single.get_slot(part, "rms").numpy())
    assert same_bits(table[[4, 1]], part)


@pytest.mark.parametrize("start", [0.0, 1.0, 0.25, "epsilon"])
def test_start_of_rms(start):
    form = Form.with_slots("rms", rms_start=start)
    w, number = np.ones(3), EPSILON if start == "epsilon" else start
    optimizer = optimizer_for(form)
    optimizer.build([w])
    assert (optimizer.get_slot(w, "rms").numpy() == number).all()
    assert_is_reference(form, "float64", assert_is_bits)


def test_epsilon_as_a_start_is_that_of_the_first_step_of_each_variable():
    optimizer = rmsjit.RMSprop(epsilon=0.5, form=Form.with_slots("rms", rms_start="epsilon"))
    first, second = np.ones(2), np.ones(2)
    optimizer.build([first])
    optimizer.epsilon = 0.25
    optimizer.build([second])
    assert optimizer.get_slot(first, "rms").tolist() == [0.5, 0.5]
    assert optimizer.get_slot(second, "rms").tolist() == [0.25, 0.25]


# --- Tables ----------------------------------------------------------------------------------

ROWS_FORMS = {
    "torch": Form.with_slots(
        *ALL_SLOTS, learning_rate="outside", weight_decay="coupled", fused=True
    ),
    "optax": Form.with_slots(
        *ALL_SLOTS, epsilon="inside", nesterov=True, bias_correction=True, quotient="reciprocal"
    ),
    "keras 3": Form.with_slots("rms", epsilon="inside", weight_decay="subtracted", square="first"),
    "mxnet": Form.with_slots("rms", clip_weights=True, weight_decay="independent"),
}


def assert_named_rows_are_dense(form):
    """Bit for bit; one of the rows is named twice."""
    rng = np.random.default_rng(0)
    table = values(rng, (9, 7), "float32")
    named, start = [5, 0, 7], table.copy()
    part = table[named]
    sparse, dense_optimizer = optimizer_for(form), optimizer_for(form)
    for lr in RATES:
        gradient = values(rng, (4, 7), "float32")
        summed = np.stack([gradient[0] + gradient[3], gradient[1], gradient[2]])
        sparse.learning_rate = dense_optimizer.learning_rate = lr
        sparse.apply_gradients([(IndexedSlices(gradient, [5, 0, 7, 5]), table)])
        dense_optimizer.apply_gradients([(summed, part)])
    others = np.delete(np.arange(9), named)
    assert same_bits(table[named], part)
    assert same_bits(table[others], start[others])
    for name in form.slot_names:
        slot = np.asarray(sparse.get_slot(table, name))
        assert same_bits(slot[named], dense_optimizer.get_slot(part, name).numpy())
        assert (slot[others] == form.slot(name).first_values(EPSILON, None)).all()


@pytest.mark.parametrize("form", ROWS_FORMS.values(), ids=ROWS_FORMS)
def test_named_rows_are_those_of_the_dense_rule(form):
    assert_named_rows_are_dense(form)


CLOSED_FORMS = {
    "lr outside, a slot that stays": Form(
        (*Form.with_slots(*ALL_SLOTS).slots, Slot("unused", 3.0, zero_gradient="stay")),
        learning_rate="outside",
    ),
    "lr outside, nesterov": Form.with_slots(
        "rms", "momentum", learning_rate="outside", nesterov=True, rms_start=1.0
    ),
    "nesterov, corrected": Form.with_slots(*ALL_SLOTS, nesterov=True, bias_correction=True),
    "decoupled": Form.with_slots("rms", weight_decay="decoupled", rms_start="epsilon"),
    "decoupled, nesterov": Form.with_slots(*ALL_SLOTS, weight_decay="decoupled", nesterov=True),
    "subtracted": Form.with_slots("rms", "momentum", weight_decay="subtracted", fused=True),
    "independent": Form.with_slots(
        *ALL_SLOTS, weight_decay="independent", rms_average="difference", mg_average="difference"
    ),
}


def assert_exact_is_dense(form):
    """Within two units per step in float64; rows come back after gaps, by sync, and densely."""
    rng = np.random.default_rng(0)
    table = values(rng, (8, 3), "float64")
    twin, scale = table.copy(), np.ones((8, 3)) * 2
    exact, plain = optimizer_for(form, sparse="exact"), optimizer_for(form)

    def step(count, gradient):
        for optimizer in (exact, plain):
            optimizer.learning_rate = RATES[count % 4]
            optimizer.rho = (0.9, 0.8)[count % 2]
            optimizer.momentum = (0.8, 0.6, 0.7)[count % 3] if form.has_momentum else 0.0
        exact.apply_gradients([(gradient, table)])
        if isinstance(gradient, IndexedSlices):
            gradient = IndexedSlices(gradient.values, gradient.indices, (8, 3)).to_dense()
        plain.apply_gradients([(gradient, twin)])
        np.maximum(scale, np.abs(twin), out=scale)

    def check(count, rows_to_check=slice(None)):
        limit = 2 * count * ulp(scale, "float64")
        assert np.all(np.abs(table - twin)[rows_to_check] <= limit[rows_to_check])

    for count in range(60):
        named = [0] if count % 7 else rng.integers(0, 8, 3)  # gaps of up to dozens of steps
        step(count, IndexedSlices(values(rng, (len(named), 3), "float64"), named))
        check(count + 1, named)
    assert np.abs(table - twin).max() > 1e-3 or form.weight_decay is None
    exact.sync(table, [2, 5])
    check(60, [2, 5])
    for name in form.slot_names:  # which brings all rows up to date
        got, expected = (o.get_slot(v, name).numpy() for o, v in ((exact, table), (plain, twin)))
        assert np.all(np.abs(got - expected) <= 120 * ulp(np.abs(expected).max(), "float64"))
    check(60)
    for count in range(60, 70):
        step(count, IndexedSlices(values(rng, (1, 3), "float64"), [3]))
    step(70, values(rng, (8, 3), "float64"))
    check(71)


QUICK = {"lr outside, a slot that stays", "subtracted"}  # each form needs three kernels


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.slow] * (name not in QUICK), id=name)
        for name, form in CLOSED_FORMS.items()
    ],
)
def test_exact_tables_are_those_of_the_dense_rule_with_zero_gradients(form):
    assert_exact_is_dense(form)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(weight_decay="coupled"), "coupled weight decay makes every gradient differ"),
        (Form(clip_weights=True), "clipping of weights depends on every step"),
        (Form((Form().slots[0], Slot("peak"))), "the slot 'peak' has no closed form"),
    ],
)
def test_forms_without_a_closed_form_are_refused_where_exact_is_asked_for(form, reason):
    with pytest.raises(ValueError, match=f'^this form can.t have sparse="exact": {reason}'):
        optimizer_for(form, sparse="exact")
    optimizer_for(form)


# --- As values -------------------------------------------------------------------------------

FORMS = [
    Form(),
    Form.with_slots(*ALL_SLOTS),
    Form.with_slots("rms", "momentum", rms_start=1.0, learning_rate="outside", nesterov=True),
    Form.with_slots("momentum", "rms", rms_start="epsilon", quotient="reciprocal"),
    form_with("rms", "mg", dtype="float64", start=0.5),
    Form((Slot("rms", 1.0, "bfloat16", "decay"), Slot("mine", zero_gradient="stay"))),
    keras_legacy(centered=True, momentum=True),
    tf1(centered=False),
    *(Form.with_slots(*ALL_SLOTS, **{name: value}) for name, value in ALONE),
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_form_is_a_value(form):
    assert eval(repr(form), {"Form": Form, "Slot": Slot}) == form
    assert Form.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    for other in (pickle.loads(pickle.dumps(form)), copy.deepcopy(form), replace(form)):
        assert other == form
        assert hash(other) == hash(form)
        assert list(form.differences(other)) == []
    assert [other for other in FORMS if other == form] == [form]
    with pytest.raises(FrozenInstanceError):
        form.epsilon = "inside"


def test_slot_is_a_value():
    slot = Slot("mine", 0.5, "float64", "stay")
    assert eval(repr(slot)) == slot == pickle.loads(pickle.dumps(slot))
    assert len({slot, Slot("mine", 0.5, "float64", "stay"), Slot("mine")}) == 2
    with pytest.raises(FrozenInstanceError):
        slot.start = 1.0
    variable = np.ones(2)
    assert Slot("mine", "epsilon").first_values(0.25, variable) == 0.25
    assert Slot("mine", "variable").first_values(0.25, variable) is variable
    assert slot.first_values(0.25, variable) == 0.5


def test_kernels_are_shared_by_forms_of_one_arithmetic():
    forms = [
        Form.with_slots("rms", "momentum"),
        Form.with_slots("momentum", "rms", rms_start=1.0, creation="by_variable"),
        Form.with_slots("rms", "momentum", rms_start="epsilon", one_minus_rho="exact"),
    ]
    assert len({form.arithmetic for form in forms}) == 1
    decays = [Form(weight_decay=kind).arithmetic for kind in ("decoupled", "independent")]
    assert decays[0] == decays[1]


def test_differences_name_the_settings():
    one, other = Form(), Form.with_slots("rms", "mg", epsilon="inside", rms_start=1.0)
    found = {name: (ours, theirs) for name, ours, theirs in one.differences(other)}
    assert found == {"slots": (one.slots, other.slots), "epsilon": ("outside", "inside")}


@pytest.mark.parametrize(
    "name", [name for name, values in SETTINGS.items() if isinstance(values[0], str)]
)
def test_unknown_value_of_a_setting_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name} must be one of .*, got 'other'"):
        Form(**{name: "other"})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Form(nesterov=1), "nesterov must be one of False, True, got 1"),
        (lambda: Form(weight_decay="other"), "weight_decay must be one of None, 'coupled', "),
        (lambda: Form(nesterov=True), 'nesterov .* need a slot "momentum"'),
        (lambda: Form(learning_rate="outside"), 'learning_rate="outside" need a slot "momentum"'),
        (lambda: Form(()), 'slots must have different names, "rms" among them'),
        (lambda: Form((Slot("mg"),)), 'slots must have different names, "rms" among them'),
        (lambda: Form((Slot("rms"), Slot("rms"))), "slots must have different names"),
        (lambda: Slot("rms", "ones"), "start must be a finite number, .* got 'ones'"),
        (lambda: Slot("rms", zero_gradient="grows"), "zero_gradient must be one of 'decay', "),
        (lambda: Form(fused="no"), "fused"),
        (lambda: Form(float32_numbers=("lr",)), "float32_numbers must be some of 'learning_rate'"),
        (lambda: Form(float32_numbers="rho"), "float32_numbers must be some of .*, got 'rho'"),
        (lambda: Form.with_slots("rms", "velocity"), "names"),
        (lambda: Slot("rms", start=None), "start"),
        (lambda: Slot("rms", start=float("nan")), "start"),
        (lambda: Slot("rms", dtype="int32"), "dtype"),
        (lambda: Slot("rms", dtype="complex64"), "dtype"),
        (lambda: Slot("rms", dtype="8bit"), 'rounding must be "stochastic" in 8 bits'),
        (lambda: Form((RMS, Slot("momentum", zero_gradient="decay"))), "zero_gradient"),
    ],
)
def test_contradictions_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"form": Form(), "momentum": 0.9}, "momentum needs a form that has it"),
        ({"form": Form(), "centered": True}, "centered=True needs a form that has it"),
        ({"form": Form(), "weight_decay": 0.1}, "weight_decay needs a form that has it"),
        ({"form": Form(), "clip_weights": 0.1}, "clip_weights needs a form that has it"),
        ({"form": Form(clip_weights=True)}, "a form that clips weights needs clip_weights"),
        ({"form": Form(clip_weights=True), "clip_weights": 0.0}, "clip_weights must be positive"),
        (
            {"form": Form(weight_decay="coupled"), "weight_decay": -0.1},
            "weight_decay must not be negative",
        ),
    ],
)
def test_arguments_that_the_form_does_not_have_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        rmsjit.RMSprop(**arguments)


def test_weight_decay_that_is_set_on_a_form_without_it_is_refused():
    optimizer = rmsjit.RMSprop()
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.weight_decay = 0.1


def test_clipping_of_complex_weights_is_refused():
    z = np.array([3 + 4j])
    optimizer = rmsjit.RMSprop(form=Form(clip_weights=True), clip_weights=0.5)
    with pytest.raises(TypeError, match="clip_weights"):
        optimizer.apply_gradients([(z.copy(), z)])


def test_bias_correction_without_an_average_is_refused():
    w = np.ones(2)
    optimizer = rmsjit.RMSprop(rho=1.0, form=Form(bias_correction=True))
    with pytest.raises(ValueError, match="rho"):
        optimizer.apply_gradients([(np.ones(2), w)])
    assert w.tolist() == [1, 1]


# --- In an optimizer -------------------------------------------------------------------------

OWN = Form(  # of nobody, with a slot that no kernel touches
    (
        Slot("rms", "epsilon", zero_gradient="decay"),
        Slot("mg", zero_gradient="decay"),
        Slot("momentum", zero_gradient="carry"),
        Slot("unused", 2.0, zero_gradient="stay"),
    ),
    epsilon="inside",
    learning_rate="outside",
    nesterov=True,
    bias_correction=True,
    weight_decay="decoupled",
    one_minus_rho="exact",
    rms_average="difference",
    creation="by_variable",
)


def run_of(form=OWN, steps=3, **arguments):
    """A few steps of two variables, one of them a view with strides."""
    rng = np.random.default_rng(2)
    variables = {
        "w": values(rng, (4, 3), "float32"),
        "b": np.repeat(values(rng, (2, 5), "float32"), 2, axis=1)[:, ::2],
    }
    optimizer = optimizer_for(form, **arguments)
    go_on(optimizer, variables, range(steps))
    return optimizer, variables


def go_on(optimizer, variables, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        optimizer.apply_gradients([(values(rng, v.shape, v.dtype), v) for v in variables.values()])


def assert_go_on_alike(run, *others):
    expected = state_of(run[0], run[1].values())
    for other in others:
        assert state_of(other[0], other[1].values()) == expected
    for each in (run, *others):
        go_on(*each, range(5, 8))
    for other in others:
        assert state_of(other[0], other[1].values()) == state_of(run[0], run[1].values())


def test_config_holds_the_form():
    optimizer, _ = run_of(weight_decay=0.5)
    config = json.loads(json.dumps(optimizer.get_config()))
    made = rmsjit.RMSprop.from_config(config)
    assert made.form == optimizer.form == OWN
    assert made.get_config() == optimizer.get_config()
    assert made.weight_decay == 0.5
    clipping = rmsjit.RMSprop(form=Form(clip_weights=True), clip_weights=0.5)
    assert rmsjit.RMSprop.from_config(clipping.get_config()).get_config()["clip_weights"] == 0.5
    assert repr(OWN.to_dict()) in repr(optimizer)


def test_config_of_keras_forms_is_that_of_keras():
    for momentum, centered in itertools.product((0.0, 0.9), (False, True)):
        form = keras_legacy(centered=centered, momentum=momentum > 0)
        plain = rmsjit.RMSprop(momentum=momentum, centered=centered)
        given = rmsjit.RMSprop(momentum=momentum, form=form)
        assert given.get_config() == plain.get_config()
        assert given.form == plain.form


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_config_of_a_form_with_momentum_and_epsilon_outside(momentum):
    form = Form.with_slots("rms", "momentum")
    config = rmsjit.RMSprop(momentum=momentum, form=form).get_config()
    assert rmsjit.RMSprop.from_config(config).form == form


def test_copies_and_pickles_go_on_alike():
    run = run_of()
    assert_go_on_alike(run, copy.deepcopy(run), pickle.loads(pickle.dumps(run)))


WIDE = replace(OWN, slots=(replace(OWN.slots[0], dtype="float64"), *OWN.slots[1:]))


def test_copies_of_a_slot_with_a_dtype_of_its_own_go_on_alike():
    run = run_of(WIDE)
    assert_go_on_alike(run, copy.deepcopy(run), pickle.loads(pickle.dumps(run)))
    assert run[0].get_slot(run[1]["w"], "rms").dtype == np.float64


def test_weights_are_in_the_order_of_creation():
    optimizer, _ = run_of(WIDE)
    names = [w.name.rpartition("/")[2].partition(":")[0] for w in optimizer.weights[1:]]
    assert names == 2 * ["rms", "mg", "momentum", "unused"]
    weights = optimizer.get_weights()
    assert [weight.dtype for weight in weights[1:5]] == ["float64", *3 * ["float32"]]
    other, variables = run_of(WIDE, steps=0)
    other.build(list(variables.values()))
    other.set_weights(weights)
    assert all(map(same_bits, other.get_weights(), weights))


@pytest.mark.parametrize("form", [OWN, WIDE], ids=["own slots", "own dtypes"])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_checkpoints(tmp_path, ending, form):
    path, run = tmp_path / f"run{ending}", run_of(form)
    save(path, *run)
    fresh = run_of(form, steps=1)
    load(path, *fresh)
    assert_go_on_alike(run, fresh, load(path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": "outside"}, "place of epsilon: saved inside, here outside"),
        ({"nesterov": False}, "nesterov: saved True, here False"),
        ({"weight_decay": "independent"}, "weight_decay: saved decoupled, here independent"),
        ({"one_minus_rho": "rounded"}, "one_minus_rho: saved exact, here rounded"),
        ({"creation": "by_slot"}, "order of slots: saved by_variable, here by_slot"),
        ({"slots": OWN.slots[:3]}, "slots: saved .*unused from 2.0, here mg, momentum, rms from"),
        (
            {"slots": WIDE.slots},
            "slots: saved .*rms from epsilon, .*, here .*rms from epsilon in float64,",
        ),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_checkpoint_of_another_form_is_refused(tmp_path, change, match):
    run = run_of()
    save(tmp_path / "run.npz", *run)
    other, variables = run_of(replace(OWN, **change), steps=0)
    other.build(list(variables.values()))
    before = state_of(other, variables.values())
    with pytest.raises(ValueError, match=f"it does not fit; nothing was changed:\n- {match}"):
        load(tmp_path / "run.npz", other, variables)
    assert state_of(other, variables.values()) == before


def test_clipping_with_a_form():
    """Clipped first, then the rule, coupled weight decay within it."""
    form = Form.with_slots("rms", "momentum", weight_decay="coupled")
    rng = np.random.default_rng(0)
    start, gradient = values(rng, 19, "float64"), values(rng, 19, "float64")
    norm = np.linalg.norm(gradient)
    for clipping, clipped in (
        ({"clipvalue": 0.7}, np.clip(gradient, -0.7, 0.7)),
        ({"clipnorm": 0.5}, gradient * 0.5 / norm),
        ({"global_clipnorm": 0.5}, gradient * 0.5 / norm),
    ):
        variable, twin = start.copy(), start.copy()
        optimizer_for(form, **clipping).apply_gradients([(gradient, variable)])
        optimizer_for(form).apply_gradients([(clipped, twin)])
        assert_close(variable, twin, start, ulps=4)


def test_schedules_and_functions_with_a_form():
    decay = iter([0.1, 0.2, 0.3])
    schedule = rmsjit.schedules.PiecewiseConstantDecay([0, 1], [0.1, 0.05, 0.02])
    form = Form.with_slots("rms", weight_decay="decoupled")
    rng = np.random.default_rng(0)
    variable = values(rng, 9, "float64")
    optimizer = rmsjit.RMSprop(
        schedule, RHO, 0.0, EPSILON, form=form, weight_decay=lambda: next(decay)
    )
    slots = initial_slots(variable, ["rms"])
    expected = variable.copy()
    for step, (lr, wd) in enumerate(((0.1, 0.1), (0.05, 0.2), (0.02, 0.3)), 1):
        gradient = values(rng, 9, "float64")
        rule = rule_of(form, lr, step) | {"weight_decay": wd, "compute_dtype": "float64"}
        expected, slots = reference_step(expected, gradient, slots, **rule)
        optimizer.apply_gradients([(gradient, variable)])
    assert_close(variable, expected, expected, ulps=3 * 4)


def test_skipped_steps_do_not_count_in_the_bias_correction():
    optimizer, variables = run_of(nonfinite="skip")
    other = run_of()
    before = state_of(optimizer, variables.values())
    optimizer.apply_gradients([(np.full_like(v, np.nan), v) for v in variables.values()])
    assert state_of(optimizer, variables.values()) == before
    assert optimizer.skipped_steps == 1
    assert_go_on_alike(other, (optimizer, variables))


def test_threads_give_the_same_bits(always_parallel):
    results = []
    for threads in (1, 2, 3):
        variable = values(np.random.default_rng(0), 5000, "float32")
        optimizer = optimizer_for(ROWS_FORMS["torch"], num_threads=threads)
        for step in range(3):
            gradient = values(np.random.default_rng(step), 5000, "float32")
            optimizer.apply_gradients([(gradient, variable)])
        results.append(state_of(optimizer, [variable]))
    assert results[0] == results[1] == results[2]
    assert True in always_parallel


# --- Numbers at the ends of their range ------------------------------------------------------


def steps_of(gradients, form, dtype="float32", **arguments):
    variable = np.ones(2, dtype)
    optimizer = rmsjit.RMSprop(form=form, **arguments)
    for gradient in gradients:
        optimizer.apply_gradients([(np.full(2, gradient, dtype), variable)])
    return variable


@pytest.mark.parametrize("slots", [("rms",), ALL_SLOTS], ids="-".join)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"square": "first"},
        {"fused": True},
        {"quotient": "rate_over"},
        {"rms_average": "difference"},
    ],
    ids=str,
)
def test_gradients_whose_squares_overflow_give_no_nan(settings, slots):
    gradients = (3e38, -3e38, 1.0, 0.0, 1e20, -1e-30)
    momentum = 0.9 if "momentum" in slots else 0.0
    variable = steps_of(gradients, Form.with_slots(*slots, **settings), momentum=momentum)
    assert np.isfinite(variable).all()


def after_an_overflow(name, steps=600, **arguments):
    """The variable and rms after an infinite mean of squares, then gradients of 1."""
    optimizer, variable = getattr(rmsjit.forms, name)(0.1, **arguments), np.ones(1, np.float32)
    yield step_with(optimizer, variable, 3e20)
    for _ in range(steps):
        yield step_with(optimizer, variable, 1.0)


def step_with(optimizer, variable, gradient):
    optimizer.apply_gradients([(np.full_like(variable, gradient), variable)])
    return variable.item(), optimizer.get_slot(variable, "rms").numpy().item()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch", {}),
        ("keras", {}),
        ("tf_keras_legacy", {}),
        ("optax", {}),
        ("tf1", {}),
        ("timm", {}),
        ("tf_keras_legacy", {"momentum": 0.9}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mean_of_squares_that_overflows_stays_infinite(name, arguments, centered):
    found = list(after_an_overflow(name, 20, centered=centered, **arguments))
    assert found == [(1.0, np.inf)] * 21


@pytest.mark.parametrize("sparse", ["rows", "exact"])
def test_a_table_of_differences_stays_at_rest_after_an_overflow(sparse):
    """Also over the steps that a row has missed."""
    form = Form.with_slots("rms", "mg", rms_average="difference")
    table, optimizer = np.ones((4, 2), np.float32), rmsjit.RMSprop(0.1, form=form, sparse=sparse)
    for gradient, row in ((3e20, 1), (1.0, 2), (1.0, 2), (1.0, 1)):
        values = np.full((1, 2), gradient, np.float32)
        optimizer.apply_gradients([(IndexedSlices(values, [row]), table)])
    assert table[1].tolist() == [1.0, 1.0]
    assert (table[2] < 1).all()
    assert np.isinf(optimizer.get_slot(table, "rms").numpy()[1]).all()


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arguments", "finite"),
    [
        ("tf1", {}, False),
        ("tf_keras_legacy", {}, True),
        ("tf_keras_legacy", {"momentum": 0.9}, False),
        ("tf_keras_legacy", {"centered": True}, False),
    ],
)
def test_live_tensorflow_after_an_overflow(name, arguments, finite):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    if name == "tf1":
        optimizer = tf.compat.v1.train.RMSPropOptimizer(0.1, **arguments)
    else:
        keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")
        optimizer = keras.optimizers.legacy.RMSprop(0.1, **arguments)
    variable = tf.Variable(np.ones(1, np.float32))
    for gradient in (3e20, 1.0, 1.0):
        optimizer.apply_gradients([(tf.constant([gradient], tf.float32), variable)])
    assert np.array_equal(variable.numpy(), [1.0 if finite else np.nan], equal_nan=True)


def test_duplicates_whose_sum_overflows_give_no_nan_beside_a_wider_slot():
    table = np.ones((2, 1), np.float32)
    optimizer = rmsjit.RMSprop(form=form_with("rms", dtype="float64"))
    gradient = IndexedSlices(np.full((2, 1), 3e38, np.float32), [0, 0])
    optimizer.apply_gradients([(gradient, table)])
    assert np.isfinite(table).all()


def test_wider_slots_are_fused_as_well():
    rng, results = np.random.default_rng(0), []
    start, gradient = values(rng, 99, "float32"), values(rng, 99, "float32")
    for fused in (False, True):
        form = replace(form_with("rms", dtype="float64", start=0.7), fused=fused)
        optimizer, variable = optimizer_for(form), start.copy()
        optimizer.apply_gradients([(gradient, variable)])
        results.append(optimizer.get_slot(variable, "rms").numpy().tobytes())
    assert results[0] != results[1]


# --- The guards: what it takes to add a form, and to add a slot ------------------------------


def test_to_add_a_form_is_to_write_a_value(tmp_path):
    """The recipe: a value, here of settings that nobody ships, and a case of the reference.

    Nothing else is touched: dense gradients, tables, exact tables and checkpoints all follow.
    """
    form = Form.with_slots(
        "rms",
        "mg",
        "momentum",
        rms_start=0.5,
        epsilon="inside",
        learning_rate="outside",
        nesterov=True,
        bias_correction=True,
        weight_decay="independent",
        complex_square="modulus",
        one_minus_rho="exact",
        rms_average="difference",
        fused=True,
    )
    # 1. One case of the reference, dense.
    assert_is_reference(form, "float32", assert_is_bits)
    # 2. Rows of a table, and rows that catch up.
    assert_named_rows_are_dense(form)
    assert_exact_is_dense(form)
    # 3. A checkpoint, which holds the form.
    run = run_of(form)
    save(tmp_path / "run.npz", *run)
    assert_go_on_alike(run, load(tmp_path / "run.npz"), copy.deepcopy(run))


PEAK = Slot("peak", zero_gradient="stay")  # a zero gradient is no new maximum


def rule_with_a_peak(form, rounds=True):
    """The rule of the toy slot: steps are divided by the largest gradient so far.

    As `rmsjit.kernels.rule.element_rule`, it gives what is compiled for one element.
    """
    assert rounds  # for forms without master weights
    RMS, PEAK_AT = form.index("rms"), form.index("peak")

    @njit(**INLINED)
    def update_element(i, g, variable, slots, h, noise):
        peak = max(load_element(slots[PEAK_AT], i), abs(g))
        store(slots[PEAK_AT], i, peak)
        mean_square = h.rho * load_element(slots[RMS], i) + h.one_minus_rho * g * g
        store(slots[RMS], i, mean_square)
        step = h.lr * (g / (root(mean_square) + peak + h.eps))
        store(variable, i, load_element(variable, i) - step)

    return update_element


def step_with_a_peak(variable, gradient, slots, lr):
    """The same in NumPy: the one reference case that a slot needs."""
    number = np.dtype(computing(variable.dtype)).type
    p, g, rms, peak = (
        np.asarray(a).astype(number) for a in (variable, gradient, slots["rms"], slots["peak"])
    )
    peak = np.maximum(peak, np.abs(g))
    rms = number(RHO) * rms + (number(1) - number(RHO)) * g * g
    p = p - number(lr) * g / (np.sqrt(rms) + peak + number(EPSILON))
    new = {"rms": rms, "peak": peak}
    stored = {name: value.astype(slots[name].dtype) for name, value in new.items()}
    return p.astype(variable.dtype), stored


@pytest.fixture
def peak_form(monkeypatch, tmp_path):
    """The recipe: a `Slot` in a form, and its arithmetic in `element_rule`. Nothing else."""
    # Kernels are kept by the sources of the package, and this rule is none of them.
    digest = hashlib.sha256(inspect.getsource(rule_with_a_peak).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("RMSJIT_CACHE_DIR", tmp_path)) / f"peak-{digest}"
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(folder))
    monkeypatch.setattr(dense, "element_rule", rule_with_a_peak)
    monkeypatch.setattr(rows, "element_rule", rule_with_a_peak)
    return Form((Form().slot("rms"), PEAK))


def assert_has_peak_steps(form, variable, steps=3):
    rng = np.random.default_rng(0)
    optimizer = optimizer_for(form)
    optimizer.build([variable])
    slots = slots_now(form, optimizer, variable)
    for lr in RATES[:steps]:
        before, gradient = variable.copy(), values(rng, variable.shape, variable.dtype)
        expected, expected_slots = step_with_a_peak(variable, gradient, slots, lr)
        optimizer.learning_rate = lr
        optimizer.apply_gradients([(gradient, variable)])
        now = slots_now(form, optimizer, variable)
        assert_close(variable, expected, before, ulps=ULPS[variable.dtype.name])
        for name, value in expected_slots.items():
            assert_close(now[name], value, slots[name], ulps=ULPS[value.dtype.name])
        slots = now


@pytest.mark.slow
def test_to_add_a_slot_is_to_name_it_and_to_write_its_arithmetic(peak_form, tmp_path):
    form, rng = peak_form, np.random.default_rng(0)
    # Dense variables of every layout, in several dtypes.
    for dtype in ("float32", "float64", "bfloat16"):
        assert_has_peak_steps(form, values(rng, 19, dtype))
    assert_has_peak_steps(form, np.repeat(values(rng, (3, 8), "float32"), 2, axis=1)[:, ::2])
    assert_has_peak_steps(form, np.asfortranarray(values(rng, (3, 5), "float32"))[::-1])
    # Tables, whose other rows stay, or catch up: rms decays and the peak stays.
    assert_named_rows_are_dense(form)
    assert_exact_is_dense(form)
    # It is a slot like any other: by its name, among weights, in copies and in files.
    run = run_of(form)
    optimizer, variables = run
    peak = optimizer.get_slot(variables["b"], "peak")
    assert peak.shape == (2, 5)
    assert (peak.numpy() >= 0.5).all()
    assert optimizer.get_slot_names() == ["rms", "peak"]
    other = run_of(form, steps=1)
    other[0].set_weights(optimizer.get_weights())
    assert all(map(same_bits, other[0].get_weights(), optimizer.get_weights()))
    save(tmp_path / "run.npz", *run)
    in_place = run_of(form, steps=1)
    load(tmp_path / "run.npz", *in_place)
    copied, pickled = copy.deepcopy(run), pickle.loads(pickle.dumps(run))
    assert_go_on_alike(run, load(tmp_path / "run.npz"), in_place, copied, pickled)


class Word(enum.StrEnum):
    INSIDE, STOCHASTIC, EXACT = "inside", "stochastic", "exact"


@pytest.mark.parametrize("text", [np.str_, lambda word: Word(word)], ids=["numpy", "enum"])
def test_settings_may_be_other_kinds_of_text(text):
    form = Form.with_slots("rms", "momentum", epsilon=text("inside"), nesterov=np.True_)
    assert repr(form) == repr(Form.with_slots("rms", "momentum", epsilon="inside", nesterov=True))
    opt = rmsjit.RMSprop(rounding=text("stochastic"), state_dtype=np.str_("bfloat16"))
    plain = rmsjit.RMSprop(rounding="stochastic", state_dtype="bfloat16")
    assert repr(opt.form) == repr(plain.form)
    assert repr(opt.get_config()) == repr(plain.get_config())
    assert rmsjit.RMSprop(sparse=text("exact")).get_config() == (
        rmsjit.RMSprop(sparse="exact").get_config()
    )
