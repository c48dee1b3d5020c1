"""What both optimizers share: their state, and one step through stepper and strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.optimizers.arguments import (
    checked_name,
    checked_nonfinite,
    checked_sparse,
    checked_threads,
)
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import StepNumbers
from rmsjit.state.slots import SlotAllocator, SlotStore
from rmsjit.steps.engine import Stepper
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable


class Optimizer:
    """The common part of `rmsjit.RMSprop` and `rmsjit.train.RMSPropOptimizer`.

    Attributes
    ----------
    skipped_steps : int
        How many steps were skipped for a gradient that was not finite (``nonfinite="skip"``).
    """

    def __init__(
        self,
        name: str,
        form: Form,
        sparse: str,
        nonfinite: str,
        num_threads: int | None,
        slot_allocator: SlotAllocator | None,
        strategy: Strategy | None,
    ) -> None:
        self._name = checked_name(name)
        self._store = SlotStore(self._name, form, slot_allocator)
        self._stepper = Stepper(
            self._store,
            checked_threads(num_threads),
            checked_sparse(sparse),
            checked_nonfinite(nonfinite),
        )
        self.skipped_steps = 0
        self._strategy = strategy
        self._constant: StepNumbers | None = None  # made again after a setting has changed

        self._watch_gathers()

    def _watch_gathers(self) -> None:
        """Have rows brought up to date before `rmsjit.gather` reads them."""
        if self._stepper.exact:
            hooks.before_gather(self.sync)

    def _step(
        self,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        aggregate: bool,
    ) -> bool:
        """Take one step; False, and `skipped_steps` one higher, if it was skipped."""
        if self._strategy is None:
            taken = self._stepper.step(gradients, variables, clipping, self._numbers)
        else:
            taken = self._strategy.step(
                self._stepper,
                gradients,
                variables,
                clipping,
                self._numbers,
                aggregate=aggregate,
                counter=self._counter(),
            )
        if gradients and not taken:
            self.skipped_steps += 1
        return taken

    def _counter(self) -> NDArray[Any] | None:
        """The memory of the number of steps, where there is one."""
        return None

    def _numbers(self) -> StepNumbers:
        """The hyperparameters at this step; the same object as long as none of them can change."""
        if self._constant is not None:
            return self._constant
        numbers = self._numbers_now()
        if not self._numbers_vary():
            self._constant = numbers
        return numbers

    def _numbers_now(self) -> StepNumbers:
        raise NotImplementedError

    def _numbers_vary(self) -> bool:
        raise NotImplementedError

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the slots of `var_list` ahead of the first step.

        Parameters
        ----------
        var_list : sequence of ndarray or Variable

        Raises
        ------
        TypeError, ValueError
            If one of them can't be trained, or two share a part of their memory.
        """
        self._stepper.build(list(var_list))

    def sync(self, var: Any = None, indices: Any = None) -> None:
        """Bring rows of a table up to date before they are read or set (``sparse="exact"``).

        A row that is overwritten without it still gets what it had missed, at its next step.

        Parameters
        ----------
        var : ndarray or Variable, optional
            The table; all tables if left out.
        indices : array_like of integers, optional
            Its rows; all of them if left out.

        Raises
        ------
        IndexError
            If an index is no row.
        """
        self._stepper.sync(var, indices)

    def _slot(self, var: Any, slot_name: str) -> Variable | None:
        self._stepper.sync(var)
        return self._store.slot_of(var, slot_name)

    def _created(self) -> list[Variable]:
        self._stepper.sync()
        return list(self._store.created.values())

    def _copied_state(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all rows up to date."""
        self._stepper.sync()
        return vars(self).copy()

    def __getstate__(self) -> dict[str, Any]:
        return self._copied_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_gathers()

    @property
    def _names_of_slots(self) -> list[str]:
        """The rule's slots, then those that were added, each once."""
        names = [*self._store.form.slots, *self._store.added_slot_names()]
        return list(dict.fromkeys(names))


def is_integer_scalar(array: Any) -> bool:
    """Whether an array can count steps."""
    return isinstance(array, np.ndarray) and array.ndim == 0 and array.dtype.kind in "iu"
