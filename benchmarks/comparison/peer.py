"""The base class of peers."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Case
from benchmarks.comparison.problem import Problem, Rule


class Peer:
    """A library, or a way of using one, that takes the steps of one case.

    A subclass sets `name` and `packages`, and defines `__init__`, `step` and `result`.
    """

    name = ""
    packages: tuple[str, ...] = ()  # besides NumPy
    warm_calls = 3  # torch.compile compiles again for the second step

    def __init__(self, problem: Problem, threads: int) -> None:
        self.case = problem.case

    @classmethod
    def supports(cls, case: Case) -> bool:
        """Whether the peer can do this case; by default float32 dense ones without clipping."""
        return not case.sparse and not case.is_half and not case.by_norm

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The versions of the packages used."""
        modules = {name: name.replace("-", "_") for name in (*cls.packages, "numpy")}
        return {
            name: importlib.import_module(module).__version__ for name, module in modules.items()
        }

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=True)

    @classmethod
    def forget(cls) -> None:
        """Free what the library keeps of finished cases."""

    def step(self) -> Any:
        raise NotImplementedError

    def finish(self) -> Any:
        """Wait for asynchronous work of the steps."""

    def result(self) -> Sequence[np.ndarray]:
        """The variables."""
        raise NotImplementedError

    def methods(self) -> dict[str, Callable[[], Any]]:
        """The functions to time, by name."""
        return {self.name: self.step}

    def method_bytes(self, problem: Problem) -> dict[str, float]:
        """The bytes that a call of each method must move."""
        return dict.fromkeys(self.methods(), problem.step_bytes())
