"""Keras 3 on PyTorch: the variables of a model share their memory with NumPy arrays.

Call `arrays_of` once the model is built, and whenever it has moved its variables, as `load_weights`
does not but a change of device would.  `model.fit` can't be used; write the loop.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

import rmsjit
from comparison import report

# --- glue ---


def arrays_of(model):
    """The trainable variables as arrays over the same memory."""
    return [v.value.detach().numpy() for v in model.trainable_variables]


def gradients_of(model):
    """Their gradients after ``loss.backward()``, without a copy."""
    return [v.value.grad.numpy() for v in model.trainable_variables]


# --- the program ---


def train(make_step):
    """Fit a sum; `make_step` makes the function that is called after ``loss.backward()``."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 4)).astype("float32"))
    y = x.sum(dim=1, keepdim=True)
    step = make_step(model)
    for _ in range(100):
        model.zero_grad()
        torch.mean((model(x) - y) ** 2).backward()
        step()
    return arrays_of(model)


def with_rmsjit(model):
    optimizer, arrays = rmsjit.forms.keras(0.01, momentum=0.9), arrays_of(model)
    return lambda: optimizer.step(arrays, gradients_of(model))


def with_keras(model):
    optimizer, variables = keras.optimizers.RMSprop(0.01, momentum=0.9), model.trainable_variables

    def step():
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in variables], variables)

    return step


def main():
    report("keras.optimizers.RMSprop", train(with_rmsjit), train(with_keras))


if __name__ == "__main__":
    main()
