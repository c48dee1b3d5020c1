"""rmsjit, and the floor loops over the same arrays and over the same rows."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.comparison.cases import FLOOR, ROW_LOOP, Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.peers.row_loop import row_loop
from benchmarks.comparison.problem import BATCHES, Problem, Rule
from benchmarks.suite.common import EPSILON, RHO

import rmsjit
from rmsjit.cli.floor import fastest_floor
from rmsjit.runtime.threads import layer_name
from rmsjit.runtime.trials import SETTLED_AFTER

SEQUENTIAL = 16_000_000  # elements of a table that the floor loop passes over


class RMSJit(Peer):
    name = "rmsjit"
    packages = ("rmsjit", "numba")
    warm_calls = SETTLED_AFTER

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        case = self.case
        self.variables = [problem.table] if case.sparse else problem.variables
        self.optimizer = rmsjit.RMSprop(
            case.learning_rate,
            RHO,
            case.momentum,
            EPSILON,
            case.centered,
            global_clipnorm=problem.bound if case.by_norm else None,
            sparse=case.mode,
            num_threads=threads,
        )
        self.batches = problem.batches
        turns: list[list[Any]] = [problem.gradients]
        if case.sparse:
            turns = [[rmsjit.IndexedSlices(rows, where)] for where, rows in problem.batches]
        self.turns = itertools.cycle(turns)
        self.threads = threads

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {**super().versions(), "threading layer": layer_name()}

    @classmethod
    def supports(cls, case: Case) -> bool:
        return True

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=case.momentum > 0)

    def step(self) -> None:
        self.optimizer.apply_gradients(zip(next(self.turns), self.variables, strict=True))

    def result(self) -> list[np.ndarray]:
        return [variable.astype(np.float32) for variable in self.variables]

    def methods(self) -> dict[str, Callable[[], Any]]:
        if len(self.variables) > 1 or self.case.by_norm or self.case.mode == "exact":
            return {self.name: self.step}
        floors = {FLOOR: self._floor()}
        if self.case.sparse:
            floors[ROW_LOOP] = row_loop(self._memory(), self.batches, self.threads)
        return {self.name: self.step, **floors}

    def method_bytes(self, problem: Problem) -> dict[str, float]:
        step = problem.step_bytes()
        if not self.case.sparse:
            return {self.name: step, FLOOR: step}
        elements = min(SEQUENTIAL, problem.table.size)
        passed = 2 * (1 + self.case.slots) * elements * problem.table.itemsize
        return {self.name: step, FLOOR: passed, ROW_LOOP: step}

    def _memory(self) -> list[np.ndarray]:
        """The first variable and its slots."""
        variable, names = self.variables[0], self.optimizer.get_slot_names()
        return [variable, *(self.optimizer.get_slot(variable, name).array for name in names)]

    def _floor(self) -> Callable[[], Any]:
        """The floor loop over the arrays of the step; for a table, over its first rows."""
        for _ in range(BATCHES):
            self.step()  # creates the slots
        written = [array.reshape(-1)[:SEQUENTIAL] for array in self._memory()]
        gradient = written[0] if self.case.sparse else next(self.turns)[0]
        return fastest_floor(gradient, written, self.threads)
