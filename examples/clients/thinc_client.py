"""thinc (and spaCy): an optimizer for ``Model.finish_update``.

thinc calls its optimizer once for each parameter.  `one_step` makes one step of these calls, so
that a schedule and a global norm are those of the whole model.
"""

import numpy as np
from thinc.api import Relu, Softmax, chain, fix_random_seed

import rmsjit
from comparison import report
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

# --- glue ---


class ThincOptimizer:
    """What thinc calls with a parameter and its gradient, which it wants back as zeros."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __call__(self, key, weights, gradient, *, lr_scale=1.0):
        self.optimizer.apply_gradients([(gradient, weights)])
        gradient[...] = 0
        return weights, gradient


# --- the program ---


def train(update):
    """Train a small classifier; `update` is called with it after each batch."""
    fix_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    truth = np.eye(3, dtype="float32")[rng.integers(3, size=64)]
    model = chain(Relu(16), Softmax()).initialize(x, truth)
    for _ in range(50):
        guesses, backprop = model.begin_update(x)
        backprop((guesses - truth) / len(x))
        update(model)
    return [node.get_param(name) for node in model.walk() for name in node.param_names]


def with_rmsjit():
    optimizer = rmsjit.RMSprop(rmsjit.schedules.CosineDecay(0.01, 50))
    glue = ThincOptimizer(optimizer)

    def update(model):
        with optimizer.one_step():
            model.finish_update(glue)

    return train(update)


def with_numpy():
    """thinc has no RMSprop; this one gets all parameters at once."""
    optimizer = NumPyRMSprop(rmsjit.schedules.CosineDecay(0.01, 50))

    def update(model):
        pairs = []
        model.finish_update(lambda key, w, g: pairs.append((g.copy(), w)) or (w, g.fill(0)))
        optimizer.apply_gradients(pairs)

    return train(update)


def main():
    report("NumPy", with_rmsjit(), with_numpy())


if __name__ == "__main__":
    main()
