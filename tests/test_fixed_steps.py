"""`rmsjit.steps.fixed`: steps of variables whose slots belong to the caller."""

import numpy as np
import pytest

from reference import initial_slots, reference_step
from rmsjit import IndexedSlices
from rmsjit.arrays.layout import address_of
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers
from rmsjit.steps.fixed import FixedStep

FORM = Form.with_slots("rms", "momentum", "mg")
NUMBERS = StepNumbers(0.1, 0.9, 0.5, 1e-7)
RULE = {"lr": 0.1, "rho": 0.9, "momentum": 0.5, "eps": 1e-7, "eps_inside": False}
SHAPES = ((5, 7), (3,), (), (0, 2))


def variables(dtype="float32", shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [np.array(rng.normal(size=shape), dtype) for shape in shapes]


def slots_for(arrays):
    return [initial_slots(array, FORM.slot_names) for array in arrays]


def expected_after(arrays, slots, gradients):
    """Each variable with its slots one step later."""
    pairs = zip(arrays, gradients, slots, strict=True)
    return [
        reference_step(array, gradient, held, compute_dtype=array.dtype, **RULE)
        for array, gradient, held in pairs
    ]


def assert_are(arrays, slots, expected):
    for array, held, (value, values) in zip(arrays, slots, expected, strict=True):
        np.testing.assert_allclose(array, value, rtol=1e-5, atol=1e-6)
        for name in held:
            np.testing.assert_allclose(held[name], values[name], rtol=1e-5, atol=1e-7)


def by_address(step, gradients, scale=1.0):
    return step.at(np.array([*map(address_of, gradients)], np.int64), gradients, NUMBERS, scale)


WAYS = {
    "by address": by_address,
    "as arrays": lambda step, gradients, scale=1.0: step.of(gradients, NUMBERS, scale),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_variables_and_slots_are_updated_in_place(way, scale, dtype):
    arrays = variables(dtype)
    slots = slots_for(arrays)
    step = FixedStep(arrays, slots, FORM, num_threads=1)
    for seed in (1, 2, 3):
        gradients = variables(dtype, seed=seed)
        expected = expected_after(arrays, slots, [scale * g for g in gradients])
        way(step, gradients, scale).run()
        assert_are(arrays, slots, expected)


def test_nothing_is_written_before_the_step_is_run():
    arrays = variables()
    before, slots = [a.copy() for a in arrays], slots_for(arrays)
    step = FixedStep(arrays, slots, FORM)
    ready = step.of(variables(seed=1), NUMBERS)
    for array, old, held in zip(arrays, before, slots, strict=True):
        np.testing.assert_array_equal(array, old)
        assert not any(value.any() for value in held.values())
    ready.run()
    assert not np.array_equal(arrays[0], before[0])


def test_the_same_memory_twice_is_updated_in_turn():
    array = variables(shapes=[(4,)])[0]
    arrays, gradients = [array, array[...]], variables(shapes=[(4,), (4,)], seed=1)
    slots = slots_for(arrays)
    first = reference_step(array, gradients[0], slots[0], compute_dtype="float32", **RULE)
    second = reference_step(first[0], gradients[1], slots[1], compute_dtype="float32", **RULE)
    FixedStep(arrays, slots, FORM).of(gradients, NUMBERS).run()
    assert_are(arrays, slots, [(second[0], first[1]), second])


@pytest.mark.parametrize("meets", ["its variable", "another variable", "a slot"])
def test_a_gradient_in_written_memory_is_not_read_in_place(meets):
    arrays = variables(shapes=[(4,), (4,)])
    slots = slots_for(arrays)
    step = FixedStep(arrays, slots, FORM)
    other = {"its variable": arrays[0], "another variable": arrays[1], "a slot": slots[1]["rms"]}
    gradients = [other[meets], np.ones(4, "float32")]
    assert by_address(step, gradients) is None
    assert by_address(step, gradients) is None  # also when these are the last addresses
    for _ in range(2):
        expected = expected_after(arrays, slots, gradients)
        ready = by_address(step, gradients) or step.of(gradients, NUMBERS)
        ready.run()
        assert_are(arrays, slots, expected)


@pytest.mark.parametrize("offset", range(-12, 13))
def test_gradients_around_written_memory(offset):
    """A gradient may end where written memory begins, and begin where that ends."""
    memory = np.ones(40, "float32")
    variable, gradient = memory[16:20], memory[16 + offset : 20 + offset]
    slots = slots_for([variable])
    step = FixedStep([variable], slots, FORM)
    expected = expected_after([variable], slots, [gradient])
    ready = by_address(step, [gradient])
    assert (ready is None) == (abs(offset) < 4)
    (ready or step.of([gradient], NUMBERS)).run()
    assert_are([variable], slots, expected)


def test_sparse_and_dense_gradients_in_turn():
    arrays = variables(shapes=[(5, 2), (3,)])
    slots = slots_for(arrays)
    step = FixedStep(arrays, slots, FORM)
    for kind in ("sparse", "dense", "sparse"):
        dense = variables(shapes=[(5, 2), (3,)], seed=1)
        expected = expected_after(arrays, slots, dense)
        rows = IndexedSlices(dense[0], np.arange(5))
        step.of([rows if kind == "sparse" else dense[0], dense[1]], NUMBERS).run()
        assert_are(arrays, slots, expected)


def test_slots_in_the_order_of_a_transposed_variable():
    arrays = [variables(shapes=[(3, 4)])[0].T]
    slots = [{name: np.zeros((3, 4), "float32").T for name in FORM.slot_names}]
    gradients = [np.ones((4, 3), "float32")]
    expected = expected_after(arrays, slots, gradients)
    FixedStep(arrays, slots, FORM).of(gradients, NUMBERS).run()
    assert_are(arrays, slots, expected)
    wrong = [{name: np.zeros((4, 3), "float32") for name in FORM.slot_names}]
    with pytest.raises(ValueError, match="the slot rms of variable 0 must be in the order"):
        FixedStep(arrays, wrong, FORM)


def test_memory_that_overlaps_is_refused():
    array = np.zeros(10, "float32")
    with pytest.raises(ValueError, match=r"variable 0 of shape .* and variable 1 of shape"):
        FixedStep([array[:6], array[4:]], slots_for([array[:6], array[4:]]), FORM)
    slots = slots_for([array])
    slots[0]["mg"] = slots[0]["rms"]
    with pytest.raises(ValueError, match="slots must have their own memory, but the slot"):
        FixedStep([array], slots, FORM)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (NUMBERS._replace(epsilon=1e-60), "epsilon must not vanish"),
        (NUMBERS._replace(learning_rate=1e60), "learning_rate must be finite"),
    ],
)
def test_numbers_that_do_not_fit_the_dtype(numbers, message):
    arrays = variables(shapes=[(3,)])
    before, slots = arrays[0].copy(), slots_for(arrays)
    with pytest.raises(ValueError, match=message):
        FixedStep(arrays, slots, FORM).of([np.ones(3, "float32")], numbers)
    np.testing.assert_array_equal(arrays[0], before)


def test_threads_give_the_same_bits(always_parallel):
    results = []
    for threads in (1, 2, 4):
        arrays = variables(shapes=[(10_007,), (300, 7)])
        slots = slots_for(arrays)
        step = FixedStep(arrays, slots, FORM, num_threads=threads)
        for seed in (1, 2):
            step.of(variables(shapes=[(10_007,), (300, 7)], seed=seed), NUMBERS).run()
        results.append([a.tobytes() for a in arrays] + [h["rms"].tobytes() for h in slots])
    assert results[0] == results[1] == results[2]
