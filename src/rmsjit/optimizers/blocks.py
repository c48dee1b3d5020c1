"""The calls that make one step, for programs that update one parameter at a time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizers.arguments import check_aggregate
from rmsjit.steps.pairs import (
    Pairs,
    check_is_array,
    check_variable,
    checked_pairs,
    dense_gradient,
    sparse_gradient,
)


class Block:
    """The pairs of the calls of one step, in order.

    Gradients are copied, because a program that updates one parameter at a time may use the memory
    of a gradient for the next one.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self.aggregate: bool | None = None  # None before the first call

    def add(self, pairs: Pairs, aggregate: bool) -> None:
        """Check the pairs of one call and add them.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As a step with these pairs would.
        ValueError
            If earlier calls had another value of `aggregate`.
        """
        check_aggregate(self.aggregate, aggregate)
        held = [
            (_held(gradient, variable, position), variable)
            for position, (gradient, variable) in enumerate(
                checked_pairs(pairs), start=len(self.pairs)
            )
        ]
        self.pairs += held
        self.aggregate = aggregate


def _held(gradient: Any, variable: Any, position: int) -> Any:
    """A copy of a gradient that has been checked."""
    if gradient is None:
        check_is_array(variable, position)
        return None
    check_variable(variable, position)
    if isinstance(gradient, IndexedSlices):
        values, indices = sparse_gradient(gradient, variable, position)
        return IndexedSlices(values.copy(), indices, gradient.dense_shape)
    return np.array(dense_gradient(gradient, variable, position))


class Blocks(dict[int, Block]):
    """The blocks that threads are in, by the number of the thread; a copy has none."""

    def current(self) -> Block | None:
        """The block that this thread is in."""
        return self.get(threading.get_ident())

    def enter(self, block: Block) -> None:
        """Let this thread be in a block."""
        self[threading.get_ident()] = block

    def leave(self) -> None:
        """Let this thread be in no block."""
        self.pop(threading.get_ident(), None)

    def __reduce__(self) -> tuple[type[Blocks], tuple[()]]:
        return Blocks, ()
