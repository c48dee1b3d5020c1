"""NetKet: variational Monte Carlo with complex parameters.

Use a form whose square is the modulus, ``abs(g)**2``, as optax and NetKet have it: the square
``g*g`` of TensorFlow is no measure of size for a complex gradient.  NetKet's driver compiles its
optimizer, so the loop is yours: gradients come from ``expect_and_grad``.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import netket as nk
import numpy as np
import optax

import rmsjit
from comparison import report

# --- glue ---


def step(optimizer, state, params):
    """Take a step of `params`, NumPy arrays in the structure of the state's, and set them."""
    _, gradients = state.expect_and_grad(HAMILTONIAN)
    optimizer.step(params, jax.tree.map(np.asarray, gradients))
    state.parameters = jax.tree.map(np.array, params)  # a copy, which JAX may keep


# --- the program ---

HILBERT = nk.hilbert.Spin(s=1 / 2, N=6)
HAMILTONIAN = nk.operator.Ising(HILBERT, nk.graph.Chain(6), h=1.0)
STEPS = 30


def new_state():
    """All configurations are summed, so that there is no noise to compare."""
    model = nk.models.RBM(alpha=1, param_dtype=complex)
    return nk.vqs.FullSumState(HILBERT, model, seed=0)


def with_rmsjit():
    state = new_state()
    params = jax.tree.map(np.array, state.parameters)
    optimizer = rmsjit.forms.optax(learning_rate=0.01)
    for _ in range(STEPS):
        step(optimizer, state, params)
    return rmsjit.nest.flatten(params)


def with_optax():
    state, transform = new_state(), optax.rmsprop(learning_rate=0.01)
    memory = transform.init(state.parameters)
    for _ in range(STEPS):
        _, gradients = state.expect_and_grad(HAMILTONIAN)
        updates, memory = transform.update(gradients, memory)
        state.parameters = optax.apply_updates(state.parameters, updates)
    return rmsjit.nest.flatten(state.parameters)


def main():
    report("optax.rmsprop", with_rmsjit(), with_optax())


if __name__ == "__main__":
    main()
