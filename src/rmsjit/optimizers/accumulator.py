"""Gradient accumulation: sums of gradients over several calls, before the step.

It comes before the engine, which gets the sum of the calls of a round as if it came from one
call.  So clipping, weight decay and strategies see only sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.layout import Key
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.checks import positive_integer
from rmsjit.rule.form import Form
from rmsjit.state.entries import Entry
from rmsjit.state.slots import SlotStore
from rmsjit.steps.entering import entries_of
from rmsjit.steps.nonfinite import PROPAGATE, RAISE, accepts, finite_gradients
from rmsjit.steps.pairs import Pairs, check_indices, naming, present_pairs
from rmsjit.variables import Variable, array_of

Gradient = NDArray[Any] | IndexedSlices


class Sum(NamedTuple):
    """The sum of the gradients of one variable."""

    variable: Any  # as it was given
    gradient: Gradient


class Round(NamedTuple):
    """The calls since the last step.

    It is never changed but replaced, so that a signal handler finds all of a call in it or nothing.

    Attributes
    ----------
    step : int
        How many steps came before it.  The step that uses the sums counts this up in its act,
        which makes the round void at the same moment.
    calls : int
    sums : dict of str to Sum
        By the name of the variable in the accumulator's store.
    """

    step: int = 0
    calls: int = 0
    sums: Mapping[str, Sum] = {}


class Accumulator:
    """Adds up gradients until there are enough calls for a step.

    Parameters
    ----------
    calls_per_step : int
    reduction : {"mean", "sum"}
        What the step gets of the gradients of its calls.
    nonfinite : {"propagate", "skip", "raise"}
        With "raise", calls are checked; otherwise it is left to the step.

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type or out of range.
    """

    def __init__(
        self, calls_per_step: int, reduction: str = "mean", nonfinite: str = PROPAGATE
    ) -> None:
        self.calls_per_step: int = positive_integer(
            "gradient_accumulation_steps", calls_per_step, "an integer or None"
        )
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f'gradient_accumulation_reduction must be "mean" or "sum", got {reduction!r}'
            )
        self.reduction = reduction
        self._nonfinite = nonfinite
        # Finds the variables of sums as an optimizer's store does, also in copies.
        self.store: SlotStore = SlotStore("accumulator", Form())
        self._round = Round()

    def current(self, step: int) -> Round:
        """The round that the next step ends, where `step` steps have been taken."""
        return self._round if self._round.step == step else Round(step)

    def add(self, pairs: Pairs, step: int) -> Pairs | None:
        """Add the gradients of one call.

        Parameters
        ----------
        pairs : tuple of (gradient, variable)
        step : int
            How many steps have been taken.

        Returns
        -------
        tuple of (gradient, variable) or None
            The pairs for the step, if this call completes the round; then they are not kept, so
            that the call can be repeated if the step fails.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            As a step with these pairs would; see `rmsjit.steps.pairs`.
        """
        before = self.current(step)
        after = Round(step, before.calls + 1, self._added(before.sums, pairs))
        if after.calls >= self.calls_per_step:
            return self._reduced(after)
        self._round = after
        return None

    def partial(self, step: int) -> Pairs | None:
        """The pairs for a step with the calls that there are, None without any."""
        current = self.current(step)
        return self._reduced(current) if current.calls else None

    def clear(self) -> None:
        """Begin a new round."""
        self._round = Round()

    def restore(self, step: int, calls: int, sums: Sequence[tuple[Any, Gradient]]) -> None:
        """Go on with the sums of a round, given for each variable."""
        entries = self._entries([(gradient, variable) for variable, gradient in sums])
        found = zip(entries, sums, strict=True)
        self._round = Round(step, calls, {e.name: Sum(v, g) for e, (v, g) in found})

    # --- sums -------------------------------------------------------------------------------

    def _added(self, sums: Mapping[str, Sum], given: Pairs) -> dict[str, Sum]:
        """Sums with the gradients of one call, in new memory where they change."""
        pairs = present_pairs(given)
        for position, (gradient, variable) in enumerate(pairs):
            if isinstance(gradient, IndexedSlices):
                check_indices(gradient, variable, position)
        if self._nonfinite == RAISE:
            finite = finite_gradients([gradient for gradient, _ in pairs])
            accepts(RAISE, finite, lambda k: naming(pairs[k][1], k))
        if not sums and self.store.is_due_for_a_sweep:
            self.store.sweep()
        new = dict(sums)
        for entry, (gradient, variable) in zip(self._entries(pairs), pairs, strict=True):
            own, known = _own(gradient, variable), new.get(entry.name)
            new[entry.name] = Sum(variable, own if known is None else _sum(known.gradient, own))
        return new

    def _entries(self, pairs: Sequence[tuple[Any, Any]]) -> list[Entry]:
        """The entries of variables, which are entered if they are new."""
        variables = [variable for _, variable in pairs]
        kinds = [type(gradient) for gradient, _ in pairs]
        with self.store.lock.lock:
            entries = [e for e in entries_of(self.store, variables, kinds) if e is not None]
            self.store.enter(entries, [])
        return entries

    def _reduced(self, current: Round) -> Pairs:
        """The pairs for the step that ends a round."""
        if self.reduction == "sum":
            return tuple((gradient, variable) for variable, gradient in current.sums.values())
        return tuple(
            (_divided(gradient, current.calls), variable)
            for variable, gradient in current.sums.values()
        )

    # --- variables that move ----------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, in which variables are found by the store."""
        step, calls, sums = self._round
        gradients = {name: gradient for name, (_, gradient) in sums.items()}
        return {**vars(self), "_round": (step, calls, gradients)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        step, calls, gradients = state["_round"]
        sums = {name: Sum(_variable_of(self.store, name), g) for name, g in gradients.items()}
        self._round = Round(step, calls, sums)

    def forget(self, key: Key) -> None:
        """Drop the sum of a variable."""
        entry = self.store.entries.get(key)
        if entry is not None:
            step, calls, sums = self._round
            kept = {name: one for name, one in sums.items() if name != entry.name}
            self._round = Round(step, calls, kept)
            self.store.drop([entry])


def dtype_of_sum(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the gradients of a variable are added up."""
    return dtype_named("float32") if dtype.itemsize == 2 else dtype


def _own(gradient: Any, variable: Any) -> Gradient:
    """A copy of a gradient in the dtype of the sum, float32 for half types."""
    array = array_of(variable)
    dtype = dtype_of_sum(array.dtype)
    if isinstance(gradient, IndexedSlices):
        rows = gradient.indices.astype(np.int64)
        return IndexedSlices(gradient.values.astype(dtype), rows, gradient.dense_shape).coalesce()
    own = np.empty_like(array, dtype, subok=False)  # in the order of the variable
    own[...] = gradient
    return own


@np.errstate(all="ignore")  # sums that are not finite are for the step to judge
def _sum(left: Gradient, right: Gradient) -> Gradient:
    """The sum of two gradients in new memory; dense unless both are sparse."""
    if isinstance(left, IndexedSlices) and isinstance(right, IndexedSlices):
        values = np.concatenate([left.values, right.values])
        indices = np.concatenate([left.indices, right.indices])
        return IndexedSlices(values, indices, right.dense_shape).coalesce()
    if isinstance(left, IndexedSlices):
        left, right = right, left
    if not isinstance(right, IndexedSlices):
        return np.asarray(left + right)
    total = np.array(left)
    total[right.indices] += right.values
    return total


@np.errstate(all="ignore")
def _divided(gradient: Gradient, calls: int) -> Gradient:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values / calls, gradient.indices, gradient.dense_shape)
    return np.asarray(gradient / calls)


def _variable_of(store: SlotStore, name: str) -> Any:
    """A variable of a copy: the object that was given, or a view of its memory."""
    entry = store.named(name)
    given = [thing for thing in entry.objects() if isinstance(thing, Variable)]
    return given[0] if given else entry.owner
