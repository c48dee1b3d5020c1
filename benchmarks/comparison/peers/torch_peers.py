"""PyTorch's RMSprop in its three forms, and its fused and sparse Adam."""

from typing import Any

import numpy as np
import torch
import torch._dynamo
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import BATCHES, Problem, Rule
from benchmarks.suite.common import EPSILON, RHO

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TorchPeer(Peer):
    """Parameters in PyTorch's own memory, with gradients that stay."""

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        torch.set_num_threads(threads)
        self.parameters = [torch.nn.Parameter(self._tensor(v)) for v in problem.variables]
        for parameter, gradient in zip(self.parameters, problem.gradients, strict=True):
            parameter.grad = self._tensor(gradient)
        self.bound = problem.bound

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array.astype(np.float32)).to(_DTYPES[self.case.dtype])

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"torch": torch.__version__, "numpy": np.__version__}

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
        # Every case is one more compilation of the same code.  Beyond a limit that is lower than
        # our number of cases, PyTorch would go on uncompiled, without a word.
        torch._dynamo.config.recompile_limit = 100
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._compiled = torch.compile(super().step)

    @classmethod
    def forget(cls) -> None:
        torch._dynamo.reset()

    def step(self) -> None:
        self._compiled()


class FusedAdam(TorchPeer):
    """Another rule, but the only kind of fused kernel that PyTorch has for CPUs."""

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
    """PyTorch's only optimizer for sparse gradients that keeps averages."""

    name = "torch-sparseadam"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        torch.set_num_threads(threads)
        self.table = torch.nn.Parameter(torch.tensor(problem.table))
        self.gradients = [
            torch.sparse_coo_tensor(
                torch.tensor(indices)[None], torch.tensor(rows), self.table.shape
            )
            for indices, rows in problem.batches
        ]
        self.optimizer = torch.optim.SparseAdam(
            [self.table], self.case.learning_rate, betas=(RHO, RHO), eps=EPSILON
        )
        self.turn = 0

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.sparse and case.variant == "momentum" and case.mode == "rows"

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=False, adam=True)

    @classmethod
    def versions(cls) -> dict[str, str]:
        return TorchPeer.versions()

    def step(self) -> Any:
        self.table.grad = self.gradients[self.turn % BATCHES]
        self.turn += 1
        self.optimizer.step()

    def result(self) -> list[np.ndarray]:
        return [self.table.detach().numpy()]
