"""JAX and optax: gradients from a jitted function, parameters in NumPy.

JAX's arrays can't be changed, so the parameters are NumPy arrays, which the jitted function copies
in and whose gradients come out as NumPy arrays.  Nothing of the step is within `jit`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsjit
from comparison import report

jax.config.update("jax_enable_x64", True)  # for the comparison

# --- glue ---


def step(optimizer, params, gradients):
    """Take a step with gradients of JAX in the structure of `params`."""
    optimizer.step(params, jax.tree.map(np.asarray, gradients))


# --- the program ---


@jax.jit
def gradients_of(params, x, y):
    def loss(params):
        hidden = jnp.tanh(x @ params["in"]["W"] + params["in"]["b"])
        return jnp.mean((hidden @ params["out"] - y) ** 2)

    return jax.grad(loss)(params)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4))
    params = {
        "in": {"W": rng.normal(size=(4, 8)), "b": np.zeros(8)},
        "out": rng.normal(size=8),
    }
    return params, x, x.sum(axis=1)


def with_rmsjit():
    params, x, y = data()
    optimizer = rmsjit.forms.optax(learning_rate=0.01, decay=0.9, momentum=0.9)
    for _ in range(100):
        step(optimizer, params, gradients_of(params, x, y))
    return rmsjit.nest.flatten(params)


def with_optax():
    params, x, y = data()
    transform = optax.rmsprop(learning_rate=0.01, decay=0.9, momentum=0.9)
    state = transform.init(params)
    for _ in range(100):
        updates, state = transform.update(gradients_of(params, x, y), state)
        params = optax.apply_updates(params, updates)
    return rmsjit.nest.flatten(params)


def main():
    report("optax.rmsprop", with_rmsjit(), with_optax())


if __name__ == "__main__":
    main()
