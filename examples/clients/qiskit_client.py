"""qiskit-algorithms: an ``Optimizer`` for VQE and its like, by `rmsjit.optimize`.

A circuit gives no gradient that autograd could find: pass a `gradient` to VQE, or, as here, the
glue takes gradients by the differences that qiskit-algorithms has.
"""

import numpy as np
from qiskit.circuit.library import efficient_su2
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from qiskit_algorithms import VQE
from qiskit_algorithms.optimizers import Optimizer, OptimizerResult, OptimizerSupportLevel

import rmsjit
from comparison import report
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

# --- glue ---


class QiskitOptimizer(Optimizer):
    """Minimises with an rmsjit optimizer, of which a copy takes the steps."""

    def __init__(self, optimizer, maxiter):
        super().__init__()
        self.optimizer = optimizer
        self.maxiter = maxiter

    def get_support_level(self):
        supported = OptimizerSupportLevel.supported
        return {"gradient": supported, "bounds": supported, "initial_point": supported}

    def minimize(self, fun, x0, jac=None, bounds=None):
        jac = jac or (lambda x: Optimizer.gradient_num_diff(x, fun, epsilon=1e-6))
        found = rmsjit.optimize(
            fun, x0, jac=jac, bounds=bounds, optimizer=self.optimizer, maxiter=self.maxiter
        )
        result = OptimizerResult()
        result.x, result.fun, result.nit = found.x, found.fun, found.nit
        result.nfev, result.njev = found.nfev, found.njev
        return result


# --- the program ---

STEPS = 40


class NumPyOptimizer(QiskitOptimizer):
    """The same with the rule in NumPy."""

    def minimize(self, fun, x0, jac=None, bounds=None):
        x, best, optimizer = np.array(x0), (np.inf, x0), NumPyRMSprop(lambda step: 0.05)
        for step in range(STEPS + 1):
            best = min(best, (fun(x), x.copy()), key=lambda found: found[0])
            if step < STEPS:
                gradient = Optimizer.gradient_num_diff(x, fun, epsilon=1e-6)
                optimizer.apply_gradients([(gradient, x)])
        result = OptimizerResult()
        result.fun, result.x, result.nfev = *best, STEPS + 1
        return result


def train(optimizer):
    """The angles of the ground state of two coupled spins."""
    ansatz = efficient_su2(2, reps=1)
    start = np.random.default_rng(0).uniform(size=ansatz.num_parameters)
    energy = SparsePauliOp.from_list([("ZZ", 1.0), ("XI", 0.5), ("IX", 0.5)])
    solver = VQE(StatevectorEstimator(), ansatz, optimizer, initial_point=start)
    return [solver.compute_minimum_eigenvalue(energy).optimal_point]


def main():
    ours = QiskitOptimizer(rmsjit.RMSprop(0.05), maxiter=STEPS)
    report("NumPy", train(ours), train(NumPyOptimizer(None, STEPS)))


if __name__ == "__main__":
    main()
