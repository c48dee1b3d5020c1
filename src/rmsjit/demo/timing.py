"""The cost of the optimizer in a training run, compared with hand-written NumPy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import rmsjit
from rmsjit.runtime import numba_internals

Array = NDArray[np.float32]

STEPS_IN_A_ROUND = 10


class Optimizer(Protocol):
    """An optimizer of either kind."""

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]], /) -> Any: ...


class Model(Protocol):
    """A model with variables and their gradients."""

    @property
    def variables(self) -> Sequence[Any]: ...

    def loss_and_gradients(self, *batch: Any) -> tuple[float, Sequence[Any]]: ...


class Comparison(NamedTuple):
    """Median seconds of the update by each optimizer, and of the rest of a step."""

    update: float
    numpy_update: float
    rest: float

    def __str__(self) -> str:
        return (
            f"The optimizer took {self.of_all}. The same rule in hand-written NumPy takes "
            f"{self.beside}."
        )

    @property
    def of_all(self) -> str:
        """The share of the first optimizer in the training, and its time."""
        share = 100 * self.update / (self.update + self.rest)
        return f"{share:.2g} % of the training time ({self.update * 1e6:,.0f} µs a step)"

    @property
    def beside(self) -> str:
        """The time of the second optimizer, and how it compares with the first."""
        ratio = self.numpy_update / self.update
        return f"{self.numpy_update * 1e6:,.0f} µs a step, {ratio:.2g} times as long"


def compare(
    optimizer: Optimizer,
    numpy_optimizer: Optimizer,
    models: tuple[Model, Model],
    batches: Sequence[tuple[Any, ...]],
) -> Comparison:
    """Train equal models on the same batches, one with each optimizer, and time the steps.

    The optimizers take turns in short rounds and alternate in going first, so that other load on
    the machine affects both alike.  A round has several steps, so that most of them find the caches
    as undisturbed training would leave them.

    Parameters
    ----------
    optimizer, numpy_optimizer : Optimizer
    models : pair of Model
        One for each optimizer.
    batches : sequence of tuple
        The arguments of `loss_and_gradients`.
    """
    updates: tuple[list[float], list[float]] = ([], [])
    rest: list[float] = []
    turns = list(zip((optimizer, numpy_optimizer), models, updates, strict=True))
    for first in range(0, len(batches), STEPS_IN_A_ROUND):
        for rival, model, times in turns:
            for batch in batches[first : first + STEPS_IN_A_ROUND]:
                start = time.perf_counter()
                _, gradients = model.loss_and_gradients(*batch)
                middle = time.perf_counter()
                rival.apply_gradients(zip(gradients, model.variables, strict=True))
                end = time.perf_counter()
                rest.append(middle - start)
                times.append(end - middle)
        turns.reverse()
    return Comparison(*(float(np.median(times)) for times in (*updates, rest)))


def compile_ahead(variables: Sequence[Array], gradients: Sequence[Any] | None = None) -> str:
    """Take a step on copies of `variables` to compile all kernels that training needs.

    Parameters
    ----------
    variables : sequence of ndarray
    gradients : sequence, optional
        Gradients of the kinds used in training; dense by default.

    Returns
    -------
    str
        The time taken, and whether the kernels were compiled or came from the cache.
    """
    copies = [variable.copy() for variable in variables]
    if gradients is None:
        gradients = [np.zeros_like(copy) for copy in copies]
    start = time.perf_counter()
    with numba_internals.compilations() as compiled:
        rmsjit.RMSprop().apply_gradients(zip(gradients, copies, strict=True))
    seconds = time.perf_counter() - start
    if compiled:
        return f"Compiled the kernels in {seconds:.1f} s"
    return f"Loaded the compiled kernels from the cache in {seconds:.1f} s"
