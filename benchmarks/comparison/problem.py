"""The arrays of a case, and a slow float64 reference for the result of its steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Case
from benchmarks.suite.common import EPSILON, RHO, row_indices, sparse_bytes, values

BATCHES = 4  # sparse gradients used in turn, so that rows leave the caches


class Problem:
    """The arrays of a case, the same for every peer.

    Attributes
    ----------
    variables, gradients : list of ndarray
        Of a dense case.
    table : ndarray
        Of a sparse case.
    batches : list of (indices, values)
        Its gradients.
    bound : float
        The bound of `Case.by_norm`: half of the gradients' norm.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.variables: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        self.bound = 0.0
        if case.sparse:
            self._make_table(case)
        else:
            self._make_variables(case)

    def _make_table(self, case: Case) -> None:
        self.table = values((case.rows, case.width), case.dtype, seed=0)
        for seed in range(1, BATCHES + 1):
            indices = row_indices(case.rows, case.count, case.duplication, seed)
            self.batches.append((indices, values((case.count, case.width), case.dtype, seed)))

    def _make_variables(self, case: Case) -> None:
        for k in range(case.variables):
            self.gradients.append(values(case.size, case.dtype, seed=2 * k))
            self.variables.append(values(case.size, case.dtype, seed=2 * k + 1))
        squares = sum(np.sum(np.square(g, dtype=np.float64)) for g in map(_wide, self.gradients))
        self.bound = 0.5 * float(np.sqrt(squares))

    def step_bytes(self) -> float:
        """The bytes that a step must move."""
        case = self.case
        if not case.sparse:
            return case.dense_bytes(self.gradients[0].itemsize)
        itemsize = self.table.itemsize
        batches = [
            sparse_bytes(len(np.unique(indices)), case.count, case.width, itemsize, case.slots)
            for indices, _ in self.batches
        ]
        return sum(batches) / len(batches)


@dataclass(frozen=True)
class Rule:
    """The rule of a peer.

    Attributes
    ----------
    eps_in_root : bool
    start : float
        Initial value of the mean square.
    adam : bool
        Whether it is Adam (with both betas `RHO`) instead of RMSprop.
    decays_all : bool
        Whether a sparse gradient makes the mean square of all rows decay.
    """

    eps_in_root: bool
    start: float = 0.0
    adam: bool = False
    decays_all: bool = False


def expected(problem: Problem, rule: Rule, steps: int) -> list[np.ndarray]:
    """The variables after a number of steps."""
    case = problem.case
    if case.sparse:
        table = _Twin(problem.table, case, rule)
        for step in range(steps):
            indices, rows = problem.batches[step % BATCHES]
            named, places = np.unique(indices, return_inverse=True)
            gradient = np.zeros((len(named), case.width))
            np.add.at(gradient, places.reshape(-1), rows)
            if rule.decays_all:
                others = np.setdiff1d(np.arange(case.rows), named)
                table.rms[others] *= RHO
            table.update(gradient, named)
        return [table.variable]
    twins = [_Twin(variable, case, rule) for variable in problem.variables]
    factor = 0.5 if case.by_norm else 1.0
    for _ in range(steps):
        for twin, gradient in zip(twins, problem.gradients, strict=True):
            twin.update(_wide(gradient) * factor, ...)
    return [twin.variable for twin in twins]


class _Twin:
    """A variable and its state in float64."""

    def __init__(self, variable: np.ndarray, case: Case, rule: Rule) -> None:
        self.case, self.rule = case, rule
        self.variable = _wide(variable)
        self.rms = np.full_like(self.variable, rule.start)
        self.mg = np.zeros_like(self.variable)
        self.momentum = np.zeros_like(self.variable)
        self.steps = 0

    def update(self, g: np.ndarray, rows: Any) -> None:
        self.steps += 1
        self.rms[rows] = RHO * self.rms[rows] + (1 - RHO) * g * g
        self.mg[rows] = RHO * self.mg[rows] + (1 - RHO) * g
        if self.rule.adam:
            correction = 1 - RHO**self.steps
            # PyTorch's sparse Adam adds epsilon before the correction.
            eps = EPSILON / np.sqrt(correction) if self.case.sparse else EPSILON
            denominator = np.sqrt(self.rms[rows] / correction) + eps
            step = self.case.learning_rate * self.mg[rows] / correction / denominator
        else:
            variance = self.rms[rows] - self.mg[rows] ** 2 * self.case.centered
            root, outside = (EPSILON, 0.0) if self.rule.eps_in_root else (0.0, EPSILON)
            step = self.case.learning_rate * g / (np.sqrt(variance + root) + outside)
            step += self.case.momentum * self.momentum[rows]
            self.momentum[rows] = step
        self.variable[rows] -= step


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
