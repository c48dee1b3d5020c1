"""dezero: an ``Optimizer`` whose `update` takes one step of all parameters.

dezero's own optimizers update one parameter after the other; the glue overrides `update` instead of
`update_one`, and calls hooks as they do.  dezero 0.0.13 needs a name that NumPy has no longer.
"""

import numpy as np

import rmsjit
from comparison import report
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

vars(np).setdefault("int", int)

from dezero import Variable, functions, optimizers  # noqa: E402
from dezero.models import MLP  # noqa: E402

# --- glue ---


class DezeroOptimizer(optimizers.Optimizer):
    """Updates the parameters of a model by their gradients."""

    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    def update(self):
        params = [p for p in self.target.params() if p.grad is not None]
        for hook in self.hooks:
            hook(params)
        self.optimizer.apply_gradients([(p.grad.data, p.data) for p in params])


# --- the program ---


def train(optimizer):
    """Fit a sine; the parameters by name."""
    np.random.seed(0)  # noqa: NPY002  # dezero draws its weights from it
    x = np.linspace(0, 1, 64).reshape(-1, 1)
    y = np.sin(2 * np.pi * x)
    model = MLP((16, 1), activation=functions.tanh)
    glue = DezeroOptimizer(optimizer).setup(model)
    for _ in range(50):
        loss = functions.mean_squared_error(model(Variable(x)), Variable(y))
        model.cleargrads()
        loss.backward()
        glue.update()
    return [layer.W.data for layer in model.layers] + [layer.b.data for layer in model.layers]


def main():
    report("NumPy", train(rmsjit.RMSprop(0.01)), train(NumPyRMSprop(lambda step: 0.01)))


if __name__ == "__main__":
    main()
