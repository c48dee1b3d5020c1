"""Gradients of tapes, compared with central differences."""

import numpy as np

from rmsjit import GradientTape, IndexedSlices, Variable


def numeric_gradient(loss, arrays, position, step=1e-6):
    """Central differences of the real part of the sum of ``loss(*arrays)``."""
    array = arrays[position]
    gradient = np.zeros_like(array)
    directions = (1, 1j) if array.dtype.kind == "c" else (1,)
    for index in np.ndindex(array.shape):
        for direction in directions:
            values = []
            for sign in (1, -1):
                moved = [each.copy() for each in arrays]
                moved[position][index] += sign * step * direction
                values.append(float(np.sum(np.real(loss(*moved)))))
            gradient[index] += direction * (values[0] - values[1]) / (2 * step)
    return gradient


def check_gradients(loss, *arrays):
    """Check the gradients of ``loss(*arrays)`` with respect to each array."""
    variables = [Variable(array.copy()) for array in arrays]
    with GradientTape() as tape:
        target = loss(*variables)
    for position, gradient in enumerate(tape.gradient(target, variables)):
        dense = gradient.to_dense() if isinstance(gradient, IndexedSlices) else gradient
        assert type(dense) is np.ndarray
        assert dense.dtype == arrays[position].dtype
        assert dense.shape == arrays[position].shape
        expected = numeric_gradient(loss, arrays, position)
        np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-7)


def real(*shape):
    """Random numbers, the same for the same shape."""
    return np.random.default_rng(shape).normal(size=shape)


def positive(*shape):
    return np.abs(real(*shape)) + 0.1


def cplx(*shape):
    return real(*shape) + 1j * real(*shape, 1)[..., 0]
