"""river: an ``optim.Optimizer`` for models that learn one example at a time.

The weights of a river model are a dictionary that grows with the features it meets.  The glue keeps
a table with a row for each of them, and a step names the rows of an example.  A small dictionary
gains nothing from compiled code; a table of a million features, or `learn_many`, does.
"""

import numpy as np
from river import linear_model, optim

import rmsjit
from comparison import report

# --- glue ---


class RiverOptimizer(optim.base.Optimizer):
    """Steps in arrays (`learn_many`) or in dictionaries (`learn_one`)."""

    def __init__(self, optimizer):
        super().__init__(lr=0.0)  # that of `optimizer` counts
        self.optimizer = optimizer
        self.rows = {}
        self.table = np.zeros(16)

    def _step_with_vector(self, w, g):
        if not isinstance(w, np.ndarray):
            raise NotImplementedError  # a VectorDict goes the way of dictionaries
        self.optimizer.apply_gradients([(g, w)])
        return w

    def _step_with_dict(self, w, g):
        rows = np.array([self.rows.setdefault(name, len(self.rows)) for name in g])
        if len(self.rows) > len(self.table):
            larger = np.concatenate([self.table, np.zeros(len(self.table))])
            self.optimizer.resize_rows(self.table, larger)
            self.table = larger
        self.table[rows] = [w[name] for name in g]
        gradient = rmsjit.IndexedSlices(list(g.values()), rows)
        self.optimizer.apply_gradients([(gradient, self.table)])
        for name, value in zip(g, self.table[rows].tolist(), strict=True):
            w[name] = value
        return w


# --- the program ---


def train(optimizer):
    """Learn from examples with few of many features; the weights by feature."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=100)
    model = linear_model.LinearRegression(optimizer=optimizer)
    for _ in range(500):
        ids = rng.choice(100, size=5, replace=False)
        values = rng.normal(size=5)
        x = {f"feature{k}": float(value) for k, value in zip(ids, values, strict=True)}
        model.learn_one(x, float(values @ true[ids]))
    return [model.weights[name] for name in sorted(model.weights)]


def main():
    ours = RiverOptimizer(rmsjit.forms.river(lr=0.1, rho=0.9, eps=1e-8))
    report("river.optim.RMSProp", train(ours), train(optim.RMSProp(lr=0.1, rho=0.9, eps=1e-8)))


if __name__ == "__main__":
    main()
