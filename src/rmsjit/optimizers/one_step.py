"""Several calls in one step, for programs that update one parameter at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizers.loss_scaling import ScalingOptimizer
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
        if self.aggregate not in (None, aggregate):
            raise ValueError(
                "experimental_aggregate_gradients must be the same in all calls of one step, got "
                "both values"
            )
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


class BlockOptimizer(ScalingOptimizer):
    """The part of `rmsjit.RMSprop` that takes one step for the calls of a block."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._blocks: dict[int, Block] = {}  # by thread

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """A context in which all calls of `apply_gradients` make one step, taken at its end.

        For programs that update one parameter at a time.  The step is that of one call with all
        pairs: `iterations` counts one, schedules and `global_clipnorm` see one step, a variable
        that occurs twice is updated twice, and with `gradient_accumulation_steps` the block is one
        call.  Variables do not change before the end.  Gradients are copied.

        If the block raises an error, nothing is changed.  Each thread has blocks of its own.  With
        a strategy, all ranks must enter the block together; one in which it fails tells the others.

        Raises
        ------
        RuntimeError
            If the block is within another one of the same optimizer.
        TypeError, ValueError, RuntimeError, IndexError, FloatingPointError
            At the end, as `apply_gradients` does; nothing is changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> W, b = np.zeros(2), np.zeros(1)
        >>> opt = rmsjit.RMSprop(0.1, global_clipnorm=1.0)
        >>> with opt.one_step():
        ...     for gradient, variable in [(np.array([3.0, 0.0]), W), (np.array([4.0]), b)]:
        ...         _ = opt.apply_gradients([(gradient, variable)])
        >>> opt.iterations.numpy(), opt.last_gradient_norm
        (np.int64(1), 5.0)
        """
        thread, block = threading.get_ident(), Block()
        if thread in self._blocks:
            raise RuntimeError("one_step must not be within another one_step of the same optimizer")
        try:
            self._blocks[thread] = block
            yield
        except BaseException as error:
            self._blocks.pop(thread, None)
            self._refuse(error)
        del self._blocks[thread]
        self._apply(tuple(block.pairs), block.aggregate is not False)

    @property
    def _block(self) -> Block | None:
        """The block that this thread is in."""
        return self._blocks.get(threading.get_ident())

    def _apply(self, pairs: Pairs, aggregate: bool) -> None:
        """Take a step with these pairs, or add them to the round of accumulated calls."""
        raise NotImplementedError

    def _refuse_to_move(self, what: str) -> None:
        super()._refuse_to_move(what)
        if self._blocks:
            raise RuntimeError(f"{what} must come after the block of one_step, not within it")

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, which is in no block."""
        return super().__getstate__() | {"_blocks": {}}
