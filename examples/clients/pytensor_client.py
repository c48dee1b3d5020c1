"""pytensor: shared variables that a compiled function reads, and rmsjit updates.

``get_value(borrow=True)`` is the memory of a shared variable on a CPU, so a step changes what the
function computes next.  ``set_value(new)`` gives it other memory: use ``borrow=True`` arrays of
your own, or `opt.rebind`.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

import rmsjit
from comparison import report

# --- glue ---


def arrays_of(shared):
    """The memory of shared variables."""
    return [variable.get_value(borrow=True) for variable in shared]


# --- the program ---


def model():
    rng = np.random.default_rng(0)
    shared = [pytensor.shared(rng.normal(size=(4, 8))), pytensor.shared(rng.normal(size=8))]
    x = pytensor.shared(rng.normal(size=(64, 4)))
    loss = pt.mean((pt.tanh(x @ shared[0]) @ shared[1] - x.sum(axis=1)) ** 2)
    return shared, pt.grad(loss, shared)


def with_rmsjit():
    shared, gradients = model()
    gradients_of, optimizer = pytensor.function([], gradients), rmsjit.forms.lasagne(0.01)
    for _ in range(100):
        optimizer.step(arrays_of(shared), gradients_of())
    return arrays_of(shared)


def with_pytensor():
    """Updates in the graph, as Lasagne wrote them."""
    shared, gradients = model()
    updates = {}
    for variable, gradient in zip(shared, gradients, strict=True):
        rms = pytensor.shared(np.zeros_like(variable.get_value()))
        updates[rms] = 0.9 * rms + 0.1 * gradient**2
        updates[variable] = variable - 0.01 * gradient / pt.sqrt(updates[rms] + 1e-6)
    step = pytensor.function([], [], updates=updates)
    for _ in range(100):
        step()
    return arrays_of(shared)


def main():
    report("updates in pytensor", with_rmsjit(), with_pytensor())


if __name__ == "__main__":
    main()
