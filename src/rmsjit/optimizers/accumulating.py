"""Gradient accumulation, in the interface of Keras 3."""

from __future__ import annotations

from rmsjit.optimizers.accumulation import Accumulator
from rmsjit.optimizers.averages import AveragingOptimizer
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.state.entries import Entry
from rmsjit.steps.pairs import Pairs, check_counter
from rmsjit.variables import Variable


class AccumulatingOptimizer(AveragingOptimizer):
    """The part of `rmsjit.RMSprop` that takes one step for several calls."""

    _accumulator: Accumulator | None = None

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
            pairs = self._accumulator.partial(int(self._counter))
            if pairs is not None:
                self._step_of_round(pairs, aggregate=True)
        return self._iterations

    def _accumulate(self, accumulator: Accumulator, pairs: Pairs, aggregate: bool) -> None:
        """Add one call, and take the step if it completes the round."""
        try:
            check_counter(self._counter)
            total = accumulator.add(pairs, int(self._counter))
        except BaseException as error:
            self._refuse(error)
        if total is not None:
            self._step_of_round(total, aggregate)

    def _step_of_round(self, pairs: Pairs, aggregate: bool) -> None:
        """Take a step, and begin a new round unless it fails."""
        assert self._accumulator is not None
        self._step_with(pairs, aggregate)
        self._accumulator.clear()  # a step that was skipped has not counted

    def _step_with(self, pairs: Pairs, aggregate: bool) -> None:
        """Take a step, through the hooks if there are any."""
        raise NotImplementedError

    # --- variables that move ----------------------------------------------------------------

    def _forget_sums(self, entry: Entry) -> None:
        if self._accumulator is not None:
            self._accumulator.forget(entry.key)

    def _refuse_to_move(self, what: str) -> None:
        """Raise `RuntimeError` where sums of gradients can't be taken along."""
        if self.accumulated_calls:
            raise RuntimeError(
                f"{what} must come after a step, got {self.accumulated_calls} calls that wait for "
                f"it: flush them first"
            )
