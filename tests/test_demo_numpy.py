"""The rule in hand-written NumPy is that of rmsjit."""

import copy

import numpy as np
import pytest

import rmsjit
from rmsjit.cli.bench import VARIANTS
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

SHAPES = [(17, 5), (3,), ()]
STEPS = 10


def drawn(rng, dtype):
    """An array of each shape, as complex or real as the dtype."""
    parts = [rng.normal(size=shape) + 1j * rng.normal(size=shape) for shape in SHAPES]
    return [np.array(part if np.dtype(dtype).kind == "c" else part.real, dtype) for part in parts]


def trained(variant, dtype, epsilon):
    """Variables after the same steps by rmsjit and by NumPy."""
    momentum, centered = VARIANTS[variant]
    rng = np.random.default_rng(2)
    rate = rmsjit.schedules.ExponentialDecay(0.01, decay_steps=5, decay_rate=0.5)
    ours = drawn(rng, dtype)
    theirs = copy.deepcopy(ours)
    numbers = (rate, 0.9, momentum, epsilon)
    optimizer = rmsjit.RMSprop(*numbers, centered=centered)
    by_hand = NumPyRMSprop(*numbers, centered=centered)
    for _ in range(STEPS):
        gradients = drawn(rng, dtype)
        before = copy.deepcopy(gradients)
        optimizer.apply_gradients(zip(gradients, ours, strict=True))
        by_hand.apply_gradients(zip(gradients, theirs, strict=True))
        for gradient, unchanged in zip(gradients, before, strict=True):
            np.testing.assert_array_equal(gradient, unchanged)
    assert by_hand.iterations == optimizer.iterations == STEPS
    return ours, theirs


@pytest.mark.parametrize("epsilon", [1e-7, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numpy_computes_the_same_rule(variant, dtype, epsilon):
    for one, other in zip(*trained(variant, dtype, epsilon), strict=True):
        np.testing.assert_array_max_ulp(one, other, maxulp=4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_numpy_comes_close_in_other_dtypes(variant, dtype):
    """NumPy rounds half types after every operation, rmsjit where it stores them."""
    tolerance = {"float16": 0.02, "complex64": 1e-5}[dtype]
    for one, other in zip(*trained(variant, dtype, 0.1), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
