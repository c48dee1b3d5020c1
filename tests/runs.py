"""Short runs on a few variables, for the tests of state that travels to other libraries."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "exchange"
LEARNING_RATE = 0.05
STEPS, MORE = range(5), range(5, 10)


def new_variables(dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (4,), "scale": ()}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def gradients_of(variables, step):
    rng = np.random.default_rng([1, step])
    return [rng.standard_normal(v.shape).astype(v.dtype) for v in variables.values()]


def train(optimizer, variables, steps):
    for step in steps:
        gradients = gradients_of(variables, step)
        optimizer.apply_gradients(zip(gradients, variables.values(), strict=True))


def assert_close(trained, variables, ulps=2):
    """Whether arrays are those of `variables`, to units in the last place of the largest."""
    for values, variable in zip(trained, variables.values(), strict=True):
        values = np.asarray(values).astype(np.float64)
        tolerance = ulps * float(ml_dtypes.finfo(variable.dtype).eps)
        tolerance *= max(1.0, np.abs(values).max())
        np.testing.assert_allclose(variable.astype(np.float64), values, rtol=0, atol=tolerance)


def slots_of(optimizer, variables):
    """Copies of the slots of all variables, by slot and name."""
    return {
        slot: {name: optimizer.get_slot(v, slot).numpy().copy() for name, v in variables.items()}
        for slot in optimizer.get_slot_names()
    }


def golden(name):
    """The recorded run of a library: its settings, and its arrays by name."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("settings"))), arrays
