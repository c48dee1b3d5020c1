"""scikit-learn: ``MLPClassifier`` and ``MLPRegressor`` with rmsjit instead of Adam.

`partial_fit` keeps the optimizer that the estimator has, so it can be put there beforehand.  The
attribute `_optimizer` is private to scikit-learn and may change.
"""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier

import rmsjit
from comparison import report
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

# --- glue ---


class SklearnOptimizer:
    """What the estimator calls after each batch."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def update_params(self, params, grads):
        self.optimizer.apply_gradients(zip(grads, params, strict=True))

    def iteration_ends(self, time_step):
        pass

    def trigger_stopping(self, message, verbose):
        return True


# --- the program ---


def train(optimizer):
    """Train on Iris for 20 epochs; weights and biases."""
    x, y = load_iris(return_X_y=True)
    model = MLPClassifier((16,), random_state=0)
    model._optimizer = SklearnOptimizer(optimizer)
    for _ in range(20):
        model.partial_fit(x, y, classes=np.unique(y))
    return [*model.coefs_, *model.intercepts_]


def main():
    report("NumPy", train(rmsjit.RMSprop(0.01)), train(NumPyRMSprop(lambda step: 0.01)))


if __name__ == "__main__":
    main()
