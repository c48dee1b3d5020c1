"""Gradient accumulation: sums of gradients over several calls, before the step.

It comes before the engine, which gets the sum of the calls of a round as if it came from one
call.  So clipping, weight decay and strategies see only sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, array_key
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizers.arguments import check_aggregate
from rmsjit.optimizers.sums import Sum
from rmsjit.rule.form import Form
from rmsjit.state.entries import Entry, key_of
from rmsjit.state.meeting import held_homes
from rmsjit.state.slots import SlotStore
from rmsjit.steps.additions import Adder, Additions
from rmsjit.steps.entering import known_or_new
from rmsjit.steps.nonfinite import PROPAGATE, RAISE, accepts, finite_gradients
from rmsjit.steps.pairs import (
    Pairs,
    check_indices,
    naming,
    no_gradient,
    split_pairs,
    warn_of_missing,
)
from rmsjit.variables import Variable, array_of


class Summed(NamedTuple):
    """A variable and the sum of its gradients.

    Attributes
    ----------
    variable : object or None
        As it was given last.  None in a copy, until its variable is found.
    sums : dict of Key to Sum
        By the memory of the variable.  In a copy, there is a sum for each array that may be it.
    """

    variable: Any
    sums: Mapping[Key, Sum]

    def at(self, entry: Entry) -> Sum:
        """The sum beside the memory of an entry."""
        found = self.sums.get(entry.key)
        return next(iter(self.sums.values())).for_other(entry.owner) if found is None else found

    def divided(self, calls: int, additions: Additions) -> Summed:
        """With the mean over so many calls; see `Sum.divided`."""
        means = {key: one.divided(calls, additions) for key, one in self.sums.items()}
        return self._replace(sums=means)


class Round(NamedTuple):
    """The calls since the last step.

    It is never changed but replaced, so that a signal handler finds all of a call in it or nothing.

    Attributes
    ----------
    step : int
        How many steps came before it.  The step that uses the sums counts this up in its act,
        which makes the round void at the same moment.
    calls : int
    summed : dict of str to Summed
        By the name of the variable in the store.
    still : tuple of (gradient, variable)
        Those of the last call that are of variables that do not move.
    met : dict of Key to variable
        The variables of all calls, with or without a gradient, in the order of their first calls.
        Empty in a copy.
    aggregate : bool or None
        Whether a strategy reduces the sums; None before the first call.
    """

    step: int = 0
    calls: int = 0
    summed: Mapping[str, Summed] = {}
    still: Pairs = ()
    met: Mapping[Key, Any] = {}
    aggregate: bool | None = None


class Accumulator:
    """Adds up gradients until there are enough calls for a step.

    Parameters
    ----------
    store : SlotStore or None
        That of the optimizer, in which copies find their variables; None for one of its own.
    calls_per_step : int
    reduction : {"mean", "sum"}
        What the step gets of the gradients of its calls.
    nonfinite : {"propagate", "skip", "raise"}
        With "raise", calls are checked; otherwise it is left to the step.
    num_threads : int or None
        The maximum number of threads; None for as many as the process may keep busy.
    """

    def __init__(
        self,
        store: SlotStore | None,
        calls_per_step: int,
        reduction: str = "mean",
        nonfinite: str = PROPAGATE,
        num_threads: int | None = None,
    ) -> None:
        self._store = store or SlotStore("accumulator", Form())
        self._shares = store is None  # its steps with other ranks
        self.calls_per_step, self.reduction = calls_per_step, reduction
        self._nonfinite = nonfinite
        self._adder = Adder(num_threads)
        self._round = Round()

    def current(self, step: int) -> Round:
        """The round that the next step ends, where `step` steps have been taken."""
        return self._round if self._round.step == step else Round(step)

    def add(
        self, pairs: Pairs, still: Pairs, counter: NDArray[Any], aggregate: bool
    ) -> Pairs | None:
        """Add the gradients of one call.

        Parameters
        ----------
        pairs : tuple of (gradient, variable)
        still : tuple of (gradient, variable)
            Those of variables that do not move, whose gradients are not read.
        counter : integer 0-d array
            How many steps have been taken.
        aggregate : bool
            Whether a strategy is to reduce the sums; the same in all calls of a round.

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
        checked, missing = self._checked(pairs)  # here other Python code may run
        if missing and not checked and not still:
            raise no_gradient(missing)
        while True:
            known, step = self._round, int(counter)
            before = self.current(step)
            check_aggregate(before.aggregate, aggregate)
            calls, met = before.calls + 1, _with_met(before.met, pairs)
            ends = calls >= self.calls_per_step
            summed = self._added(before.summed, checked, self._divisor(calls) if ends else 1)
            after = Round(step, calls, summed, still, met, aggregate)
            if self._round is known and counter == step:  # nothing has come between
                break
        if ends:
            return self._reduced(after)
        self._round = after
        return None

    def partial(self, step: int, is_still: Callable[[Any], bool]) -> Pairs | None:
        """The pairs for a step with the calls that there are, None without any.

        Of the variables that did not move in the last call, some may do so by now.
        """
        current = self.current(step)
        if not current.calls:
            return None
        still = tuple(pair for pair in current.still if is_still(pair[1]))
        summed = self._added(current.summed, [], self._divisor(current.calls))
        return self._reduced(current._replace(still=still, summed=summed))

    def clear(self) -> None:
        """Begin a new round."""
        self._round = Round()

    def end(self, ended: Round) -> None:
        """Begin a new round after the step of one, unless another has begun meanwhile."""
        if self._round is ended:
            self._round = Round()
        self._adder.memory.turn()

    @property
    def latest(self) -> Round:
        """The last round that has begun, which may have ended."""
        return self._round

    def restore(self, step: int, calls: int, sums: Sequence[tuple[Any, Any]]) -> None:
        """Continue with the sums of a round, pairs of a variable and its summed gradients."""
        pairs = [(gradient, variable) for variable, gradient in sums]
        self._round = Round(step, calls, self._added({}, pairs))

    # --- sums -------------------------------------------------------------------------------

    def _checked(self, given: Pairs) -> tuple[list[tuple[Any, Any]], list[str]]:
        """The pairs of a call that have a gradient, and the names of the other variables."""
        pairs, missing = split_pairs(given)
        for position, (gradient, variable) in enumerate(pairs):
            if isinstance(gradient, IndexedSlices):
                check_indices(gradient, variable, position)
        if self._nonfinite == RAISE:
            finite = finite_gradients([gradient for gradient, _ in pairs])
            accepts(RAISE, finite, lambda k: naming(pairs[k][1], k))
        return pairs, missing

    def _divisor(self, calls: int) -> int:
        """What the sums of so many calls are divided by for the step."""
        return calls if self.reduction == "mean" else 1

    @np.errstate(all="ignore")  # sums that are not finite are for the step to judge
    def _added(
        self, summed: Mapping[str, Summed], pairs: Sequence[tuple[Any, Any]], divisor: int = 1
    ) -> dict[str, Summed]:
        """Sums with the gradients of one call, all divided, in new memory where they change."""
        if self._shares and not summed and self._store.sweeps.are_due(self._store):
            self._store.sweeps.sweep(self._store)
        new, additions = dict(summed), self._adder.begin()
        for entry, (gradient, variable) in zip(self._entered(pairs), pairs, strict=True):
            known = new.get(entry.name)
            before = None if known is None else known.at(entry)
            total = Sum.with_gradient(before, gradient, variable, additions)
            if known is not None and isinstance(known.variable, Variable):
                variable = known.variable  # it may have a constraint
            new[entry.name] = Summed(variable, {entry.key: total})
        if divisor != 1:
            new = {name: one.divided(divisor, additions) for name, one in new.items()}
        additions.run(divisor)
        return new

    def _entered(self, pairs: Sequence[tuple[Any, Any]]) -> list[Entry]:
        """The entries of variables, which are entered if they are new."""
        variables = [variable for _, variable in pairs]
        kinds = [type(gradient) for gradient, _ in pairs]
        with self._store.lock.lock:
            known = self._known(variables, kinds)
            if known is not None:
                return known
            while True:
                found = known_or_new(self._store, variables, kinds)
                entries = [entry for entry in found if entry is not None]
                if self._store.enter(entries, []):  # no signal handler has entered others
                    return entries

    def _known(self, variables: Sequence[Any], kinds: Sequence[type]) -> list[Entry] | None:
        """The entries of known variables with dense gradients, which need no further check.

        None if there are others, or in a copy that has not met all of its variables.
        """
        if self._store.unmet or IndexedSlices in kinds:
            return None
        entries = []
        for variable in variables:
            entry = self._store.find(variable)
            if entry is None:
                return None
            entry.saw(variable)
            entries.append(entry)
        return entries

    def _reduced(self, current: Round) -> Pairs:
        """The pairs for the step that ends a round, whose sums are divided already."""
        entries = self.entries_of(current)
        pairs = []
        for name, (variable, _) in current.summed.items():
            entry = entries.get(name)
            if entry is not None and variable is None:
                variable = _variable_of(entry)
            if entry is None or variable is None:
                self._store.tell("sum", f"{name} was not copied with its sum, which is dropped")
                continue
            total = current.summed[name].at(entry)
            pairs.append((total.for_view(array_of(variable)), variable))
        if not pairs:
            return tuple((_zeros_of(variable), variable) for _, variable in current.still)
        missing = _without_sums(pairs, current.met)
        if self._shares:
            others = ((None, variable) for variable in missing.values())
            return _in_order([*pairs, *others], current.met)
        if missing:
            warn_of_missing([naming(variable, place) for place, variable in missing.items()])
        return tuple(pairs)

    def entries_of(self, current: Round) -> dict[str, Entry]:
        """The entries of the variables with a sum, by name, in the order of the sums."""
        self._store.settle()
        entries = list(self._store.entries.values())  # in one call, as other threads may add some
        found = {entry.name: entry for entry in entries if entry.name in current.summed}
        return {name: found[name] for name in current.summed if name in found}

    # --- variables that move ----------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, in which variables are found by the store."""
        step, calls, summed, _, _, aggregate = self._round
        entries = {entry.name: entry for entry in list(self._store.entries.values())}
        sums = {n: _original(one, entries[n]) for n, one in summed.items() if n in entries}
        return {**vars(self), "_round": (step, calls, sums, aggregate)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        step, calls, sums, aggregate = state["_round"]
        homes = {entry.name: entry.homes for entry in self._store.entries.values()}
        summed = {
            name: Summed(None, {home.key: one.in_copy(home) for home in homes[name]} or {(): one})
            for name, one in sums.items()
            if name in homes
        }
        self._round = Round(step, calls, summed, aggregate=aggregate)

    def forget(self, key: Key) -> None:
        """Drop the sum of a variable."""
        entry = self._store.entries.get(key)
        if entry is not None:
            kept = {name: one for name, one in self._round.summed.items() if name != entry.name}
            met = {other: one for other, one in self._round.met.items() if other != key}
            self._round = self._round._replace(summed=kept, met=met)


def _with_met(met: Mapping[Key, Any], pairs: Pairs) -> Mapping[Key, Any]:
    """The variables of a round, those of one more call included."""
    variables = [variable for _, variable in pairs]
    if len(variables) == len(met) and all(map(is_, variables, met.values())):
        return met
    return {**met, **{key_of(variable): variable for variable in variables}}


def _without_sums(pairs: Sequence[tuple[Any, Any]], met: Mapping[Key, Any]) -> dict[int, Any]:
    """The variables without a gradient in any call, by their places among all."""
    known = {key_of(variable) for _, variable in pairs}
    return {k: variable for k, (key, variable) in enumerate(met.items()) if key not in known}


def _in_order(pairs: Sequence[tuple[Any, Any]], met: Mapping[Key, Any]) -> Pairs:
    """The pairs of a step in the order of the calls, which is the same on all ranks."""
    places = {key: place for place, key in enumerate(met)}
    return tuple(sorted(pairs, key=lambda pair: places.get(key_of(pair[1]), -1)))


def _zeros_of(variable: Any) -> NDArray[Any]:
    """In place of the gradient of a variable that does not move."""
    array = array_of(variable)
    return np.zeros(array.shape, array.dtype)


def _original(summed: Summed, entry: Entry) -> Sum:
    """The sum beside the variable, or beside the original of a copy that no step has used."""
    if not entry.homes:
        return summed.at(entry)
    home = entry.homes[0]
    return summed.sums[home.key].in_original(home)


def _variable_of(entry: Entry) -> Any:
    """A variable of a copy: the object that was given, or a view of its memory.

    None if nobody holds it.
    """
    if entry.is_nowhere:
        return None
    if entry.homes:  # more than one may be it, or none
        homes = {home.key: home.view for _, home in held_homes([entry])}
        given = [thing for thing in entry.remembered() if isinstance(thing, Variable)]
        held = [thing for thing in given if array_key(thing.array) in homes]
        return next(iter([*held, *homes.values()]), None)
    given = [thing for thing in entry.objects() if isinstance(thing, Variable)]
    return given[0] if given else entry.owner
