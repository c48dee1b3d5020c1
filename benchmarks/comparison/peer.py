"""What a peer is: something that can take the step of a case."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Case
from benchmarks.comparison.problem import Problem, Rule


class Peer:
    """A library, or a way of using one, at work on one case.

    A subclass sets `name` and gives `__init__`, `step` and `result`.
    """

    name = ""

    def __init__(self, problem: Problem, threads: int) -> None:
        self.case = problem.case

    @classmethod
    def supports(cls, case: Case) -> bool:
        """Whether the peer can take this step; plain dense ones unless a subclass says more."""
        return not case.sparse and not case.is_half and not case.by_norm

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Of the packages that do the work."""
        return {"numpy": np.__version__}

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=True)

    @classmethod
    def forget(cls) -> None:
        """Drop what the library keeps of cases that are done."""

    def step(self) -> Any:
        raise NotImplementedError

    def finish(self) -> Any:
        """Wait for what steps have started."""

    def result(self) -> Sequence[np.ndarray]:
        """The variables."""
        raise NotImplementedError

    def methods(self) -> dict[str, Callable[[], Any]]:
        """What is timed in this process."""
        return {self.name: self.step}

    def method_bytes(self, problem: Problem) -> dict[str, float]:
        """What a call of each method must move."""
        return dict.fromkeys(self.methods(), problem.step_bytes())
