"""From calls of `apply_gradients` to steps: blocks, then accumulation, then hooks, then the engine.

Each stage is skipped where it is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, Any

from rmsjit.optimizers.blocks import Block, Blocks
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.optimizers.keras_hooks import Hooks
from rmsjit.optimizers.keras_weights import KerasWeights
from rmsjit.steps.pairs import Pairs, check_counter, checked_pairs, pairs_of, warn_if_used_up
from rmsjit.variables import Variable

if TYPE_CHECKING:
    from rmsjit.optimizers.accumulator import Accumulator


class Calls(Hooks, KerasWeights):
    """Calls, each of which is a step, or a part of one."""

    _blocks: Blocks
    _accumulator: Accumulator | None

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable:
        """Update variables in place, given their gradients.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A variable is a writeable array or a `Variable`.  Its gradient is an array, `Variable`
            or nested list of the same shape, an `IndexedSlices` of some of its rows, or None,
            which leaves the variable unchanged.
            A variable may occur more than once; the updates are then applied in order.
        name : str, optional
            Accepted for compatibility and ignored, since there is no graph.
        experimental_aggregate_gradients : bool, default True
            Whether a strategy sums the gradients over replicas.  No effect without a strategy.

        Returns
        -------
        Variable
            `iterations`, increased by one.  An empty list changes nothing.

        Raises
        ------
        TypeError
            If the pairs are malformed, or a gradient or variable is of a wrong type or dtype.
        ValueError
            If no variable has a gradient, shapes differ, a variable is read-only, or two
            variables partly overlap in memory.

        Notes
        -----
        Everything is checked before the first write: an error leaves variables, slots and
        `iterations` unchanged.
        """
        aggregate = bool(experimental_aggregate_gradients)
        block = self._blocks.current() if self._blocks else None
        if block is not None:
            block.add(pairs_of(grads_and_vars), aggregate)
            return self._iterations
        try:
            pairs = pairs_of(grads_and_vars)
        except BaseException as error:
            self._refuse(error)
        if not pairs:
            warn_if_used_up(grads_and_vars)
        counter, strategy = self._counter, self._settings.strategy
        if pairs and strategy is None and not counter.flags.writeable:
            check_counter(counter)
        if self._accumulator is None:
            if pairs or strategy is not None:
                self._step(pairs, aggregate)
        elif pairs:
            self._accumulate(self._accumulator, pairs, aggregate)
        return self._iterations

    def _step(self, pairs: Pairs, aggregate: bool) -> None:
        """Take a step, through the hooks if there are any."""
        hooked = self.gradient_transformers or self.gradient_aggregator is not None
        if pairs and (hooked or self._is_hooked):
            self._step_through_hooks(pairs, self._counter, aggregate)
        else:
            clipping, counter = self._clipping, self._counter
            self._engine.step(pairs, self._hyperparameters, clipping, counter, aggregate)

    # --- one step for the calls of a block --------------------------------------------------

    @property
    def _takes_calls_together(self) -> bool:
        return self._blocks.current() is not None

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
        if self._takes_calls_together:
            raise RuntimeError("one_step must not be within another one_step of the same optimizer")
        block = Block()
        try:
            self._blocks.enter(block)
            yield
            self._blocks.leave()
        except BaseException as error:
            self._blocks.leave()
            self._refuse(error)
        # Not of a subclass, whose method has seen each of the calls.
        Calls.apply_gradients(self, block.pairs, None, block.aggregate is not False)

    # --- one step for a number of calls -----------------------------------------------------

    @fixed_at_construction
    def gradient_accumulation_steps(self) -> int | None:
        """How many calls of `apply_gradients` make a step; None for one."""
        return None if self._accumulator is None else self._accumulator.calls_per_step

    @fixed_at_construction
    def gradient_accumulation_reduction(self) -> str:
        """Whether a step takes the "mean" or the "sum" of the gradients of its calls."""
        return "mean" if self._accumulator is None else self._accumulator.reduction

    @property
    def accumulated_calls(self) -> int:
        """The number of calls since the last step whose gradients wait for the next one."""
        if self._accumulator is None:
            return 0
        return self._accumulator.current(int(self._counter)).calls

    def flush(self) -> Variable:
        """Take a step with the calls that there are, such as at the end of an epoch.

        The mean is over these calls.  Without any, nothing is changed.  With a strategy, all ranks
        must call it together.

        Returns
        -------
        Variable
            `iterations`.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> w = np.zeros(2)
        >>> opt = rmsjit.RMSprop(0.1, gradient_accumulation_steps=4)
        >>> for gradient in (1.0, 3.0):
        ...     _ = opt.apply_gradients([(np.full(2, gradient), w)])
        >>> opt.accumulated_calls, opt.flush().numpy()
        (2, np.int64(1))
        >>> print(w.round(3))
        [-0.316 -0.316]
        """
        if self._accumulator is not None:
            with self._store.lock.lock:
                pairs = self._accumulator.partial(int(self._counter), self._is_still)
                if pairs is not None:
                    aggregate = self._accumulator.latest.aggregate is not False
                    self._step_of_round(pairs, aggregate)
        return self._iterations

    def _accumulate(self, accumulator: Accumulator, pairs: Pairs, aggregate: bool) -> None:
        """Add one call, and take the step if it completes the round."""
        with self._store.lock.lock:  # calls of other threads come before or after
            try:
                check_counter(self._counter)
                pairs = checked_pairs(pairs)
                still = [self._is_still(variable) for _, variable in pairs]
                moving = tuple(compress(pairs, map(not_, still)))
                total = accumulator.add(
                    moving, tuple(compress(pairs, still)), self._counter, aggregate
                )
            except BaseException as error:
                self._refuse(error)
            if total is not None:
                self._step_of_round(total, aggregate)

    def _step_of_round(self, pairs: Pairs, aggregate: bool) -> None:
        """Take a step, and begin a new round unless it fails."""
        assert self._accumulator is not None
        latest = self._accumulator.latest
        if pairs:
            self._step(pairs, aggregate)
        elif not latest.summed:  # only variables that did not move, and could now
            self._engine.count(self._counter)
        self._accumulator.end(latest)  # a step that was skipped has not counted
