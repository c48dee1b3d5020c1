"""The rule in hand-written NumPy."""

import numpy as np
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem, Rule
from benchmarks.suite.common import EPSILON, RHO


class HandWritten(Peer):
    """The state of the rule, with epsilon outside the root."""

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.gradients, self.variables = problem.gradients, problem.variables
        self.rms, self.mg, self.momentum, self.scratch = (
            [np.zeros_like(variable) for variable in self.variables] for _ in range(4)
        )
        self.bound = problem.bound
        self.rate = np.float32(self.case.learning_rate)

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=False)

    def result(self) -> list[np.ndarray]:
        return self.variables


class Plain(HandWritten):
    """The plain expression: every operation allocates an array."""

    name = "numpy"

    def step(self) -> None:
        for k, (g, variable) in enumerate(zip(self.gradients, self.variables, strict=True)):
            self.rms[k] = RHO * self.rms[k] + (1 - RHO) * g**2
            variance = self.rms[k]
            if self.case.centered:
                self.mg[k] = RHO * self.mg[k] + (1 - RHO) * g
                variance = np.maximum(variance - self.mg[k] ** 2, 0)
            step = self.rate * g / (np.sqrt(variance) + EPSILON)
            if self.case.momentum:
                step = self.momentum[k] = self.case.momentum * self.momentum[k] + step
            variable -= step


class InPlace(HandWritten):
    """Tuned: no allocations."""

    name = "numpy-inplace"

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.sparse and not case.is_half

    def step(self) -> None:
        if self.case.by_norm:
            norm = np.sqrt(sum(np.vdot(g, g) for g in self.gradients))
            factor = self.bound * min(1 / norm, 1 / self.bound)
        for k, g in enumerate(self.gradients):
            if self.case.by_norm:
                g = np.multiply(g, factor, out=self.mg[k])  # unused, since the case is not centered
            self._update(k, g)

    def _update(self, k: int, g: np.ndarray) -> None:
        scratch, rms = self.scratch[k], self.rms[k]
        np.multiply(g, g, out=scratch)
        scratch *= 1 - RHO
        rms *= RHO
        rms += scratch
        if self.case.centered:
            self._variance(g, rms, self.mg[k], scratch)
            np.sqrt(scratch, out=scratch)
        else:
            np.sqrt(rms, out=scratch)
        scratch += EPSILON
        np.divide(g, scratch, out=scratch)
        scratch *= self.rate
        if self.case.momentum:
            self.momentum[k] *= self.case.momentum
            self.momentum[k] += scratch
            scratch = self.momentum[k]
        self.variables[k] -= scratch

    @staticmethod
    def _variance(g: np.ndarray, rms: np.ndarray, mg: np.ndarray, out: np.ndarray) -> None:
        np.multiply(g, 1 - RHO, out=out)
        mg *= RHO
        mg += out
        np.multiply(mg, mg, out=out)
        np.subtract(rms, out, out=out)
        np.maximum(out, 0, out=out)
