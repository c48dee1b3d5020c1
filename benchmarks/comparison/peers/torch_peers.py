"""PyTorch's three forms of RMSprop, and its fused and sparse Adam."""

import itertools
from typing import Any

import numpy as np
import torch
import torch._dynamo
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem, Rule
from benchmarks.suite.common import EPSILON, RHO

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TorchPeer(Peer):
    """Parameters in PyTorch's own memory, with constant gradients."""

    packages = ("torch",)

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        torch.set_num_threads(threads)
        self.parameters = [torch.nn.Parameter(self._tensor(v)) for v in problem.variables]
        for parameter, gradient in zip(self.parameters, problem.gradients, strict=True):
            parameter.grad = self._tensor(gradient)
        self.bound = problem.bound

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array.astype(np.float32)).to(_DTYPES[self.case.dtype])

    def result(self) -> list[np.ndarray]:
        return [parameter.detach().float().numpy() for parameter in self.parameters]


class RMSprop(TorchPeer):
    """One tensor after the other."""

    name = "torch"
    foreach = False

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.optimizer = torch.optim.RMSprop(
            self.parameters,
            lr=self.case.learning_rate,
            alpha=RHO,
            eps=EPSILON,
            momentum=self.case.momentum,
            centered=self.case.centered,
            foreach=self.foreach,
        )

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=False)

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.sparse and (cls.foreach or not case.is_half) and not case.by_norm

    def step(self) -> None:
        self.optimizer.step()


class Foreach(RMSprop):
    """All tensors in each operation."""

    name = "torch-foreach"
    foreach = True

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.sparse

    def step(self) -> None:
        if self.case.by_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.bound, foreach=True)
        self.optimizer.step()


class Compiled(Foreach):
    """The foreach form, fused by torch.compile."""

    name = "torch-compile"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        # Each case compiles the same code again.  Beyond a limit that is lower than our number of
        # cases, PyTorch would silently run uncompiled code.
        torch._dynamo.config.recompile_limit = 100
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._compiled = torch.compile(super().step)

    @classmethod
    def forget(cls) -> None:
        torch._dynamo.reset()

    def step(self) -> None:
        self._compiled()


class FusedAdam(TorchPeer):
    """Another rule, but the only one with a fused CPU kernel in PyTorch."""

    name = "torch-adam"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.optimizer = torch.optim.Adam(
            self.parameters, self.case.learning_rate, betas=(RHO, RHO), eps=EPSILON, fused=True
        )

    @classmethod
    def supports(cls, case: Case) -> bool:
        return super().supports(case) and not case.centered

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=False, adam=True)

    def step(self) -> None:
        self.optimizer.step()

    def method_bytes(self, problem: Problem) -> dict[str, float]:
        size = self.case.variables * self.case.size
        return {self.name: 7 * size * problem.gradients[0].itemsize}


class SparseAdam(Peer):
    """PyTorch's only optimizer with moving averages for sparse gradients."""

    name = "torch-sparseadam"
    packages = ("torch",)

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        torch.set_num_threads(threads)
        self.table = torch.nn.Parameter(torch.tensor(problem.table))
        gradients = [
            torch.sparse_coo_tensor(
                torch.tensor(indices)[None], torch.tensor(rows), self.table.shape
            )
            for indices, rows in problem.batches
        ]
        self.gradients = itertools.cycle(gradients)
        self.optimizer = torch.optim.SparseAdam(
            [self.table], self.case.learning_rate, betas=(RHO, RHO), eps=EPSILON
        )

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.sparse and case.variant == "momentum" and case.mode == "rows"

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=False, adam=True)

    def step(self) -> Any:
        self.table.grad = next(self.gradients)
        self.optimizer.step()

    def result(self) -> list[np.ndarray]:
        return [self.table.detach().numpy()]
