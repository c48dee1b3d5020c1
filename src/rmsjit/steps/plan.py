"""A plan: a list of variables checked and laid out once, and the kernel calls that update them.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks at the same time, and runs one act.  A plan of small plain arrays serves for any others
of the same shapes and dtypes: its bindings move from place to place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of, layout_of
from rmsjit.kernels import headers, loader, overlap
from rmsjit.rule.form import Form
from rmsjit.runtime import trials
from rmsjit.runtime.once import computed_once
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.state.grouping import Assignment
from rmsjit.state.slots import Member, SlotStore
from rmsjit.steps.act import DONE, Act, Call
from rmsjit.steps.binding import Binding
from rmsjit.steps.dense import DenseGroup
from rmsjit.steps.exact import refuse_other_views, settling_calls
from rmsjit.steps.groups import Group, rounds_of
from rmsjit.steps.noise import NO_NOISE
from rmsjit.steps.norms import NormPass, Norms
from rmsjit.steps.occurrences import Occurrences
from rmsjit.steps.pairs import Pairs, dense_gradient
from rmsjit.steps.place import Place
from rmsjit.steps.plans import structure_of
from rmsjit.steps.roaming import Locator
from rmsjit.steps.sparse import SparseGroup
from rmsjit.variables import Variable

_NORM_ACTS = 8  # kept for later steps


class Plan:
    """One list of variables, and how they are updated.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    members : sequence of Member or None
        Their memory and slots; None where there is no gradient.
    form : Form
    exact : bool
        Whether rows that a sparse gradient does not name are updated as by a zero gradient.
    epoch : int64 array, shape (1,)
        See `rmsjit.state.slots.SlotStore.epoch`.
    assignment : Assignment
        Which variables have settings of their own.
    noise : int64 array, shape (1 + 2 * pairs,)
        What stochastic rounding reads; see `rmsjit.steps.noise`.

    Attributes
    ----------
    place : Place
        The first one.
    structure : tuple or None
        The dtypes and shapes of the variables: the key under which other memory can use the plan;
        None if it can't.
    slot_names : tuple of str
        In the order of the form's `arithmetic`.
    count : int
        The number of pairs.
    group_count : int
        How many rows of numbers it needs: one for variables without a group, and one for each.
    rounds : list of list of Group
        In the order of their updates; constraints are applied after each round.
    groups : list of Group
        Those of all rounds.
    complex_dtype : str
        The dtype of a complex variable, empty if there is none.
    free : list of Binding
        Those that no step is using, each at the place of its last step.
    is_tried : bool
        Whether steps may be large enough for trials of how to run them.
    is_noisy : bool
        Whether a step needs its number for stochastic rounding.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        members: Sequence[Member | None],
        form: Form,
        exact: bool,
        epoch: NDArray[np.int64],
        assignment: Assignment,
        noise: NDArray[np.int64] = NO_NOISE,
    ) -> None:
        self._assignment, self._noise = assignment, noise
        self.is_noisy = noise is not NO_NOISE
        self.form, self.exact, self.epoch = form, exact, epoch
        self._valid_epoch = int(epoch[0])
        self.slot_names = form.arithmetic.slot_names
        self.count, self.group_count = len(variables), assignment.groups
        self.place = Place(variables, kinds, members, self.slot_names, assignment.frozen)
        constrained = self.place.constrained
        self.rounds = rounds_of(variables, kinds, members, constrained, form, assignment)
        self.groups = [group for groups in self.rounds for group in groups]
        self._dense = [group for group in self.groups if isinstance(group, DenseGroup)]
        self.sparse = [group for group in self.groups if isinstance(group, SparseGroup)]
        if exact:
            refuse_other_views(self.sparse)
        self._computing = {group.kinds.computing for group in self.groups}
        self._dense_nbytes = sum(group.nbytes for group in self._dense)
        self.is_tried = bool(self.sparse) or self._dense_nbytes >= trials.LEAST_BYTES
        complex_names = [g.precision.name for g in self.groups if g.precision.components == 2]
        self.complex_dtype = complex_names[0] if complex_names else ""
        self._copies = any(group.copied for group in self._dense)
        has_clock = exact and any(m.entry.clock is not None for m in members if m)
        self._same_calls = not (self.sparse or self._copies or has_clock)
        self._dense_passes = [
            NormPass(group.sizes, group.precision, group.positions) for group in self._dense
        ]
        self.free: list[Binding] = []
        grouped = self.group_count > 1  # and what is moved may be in another group
        fixed = exact or self.is_tried or grouped or self.is_noisy
        movable = self._same_calls and not fixed
        self.structure = structure_of(variables, kinds) if movable else None

    @property
    def is_valid(self) -> bool:
        """Whether nothing that the plan depends on has changed since it was made."""
        return bool(self._valid_epoch == self.epoch[0])

    def moved(self, arrays: Sequence[NDArray[Any]], members: Sequence[Member]) -> Place:
        """A place for other memory of the plan's structure."""
        return self.place.moved(arrays, members, self.slot_names)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The group of each variable, 0 for those in none."""
        return self._assignment.rows

    # --- one step ---------------------------------------------------------------------------

    def bind(
        self, pairs: Pairs, place: Place | None = None, binding: Binding | None = None
    ) -> Binding | None:
        """Check the gradients of a step, writing nothing.

        Parameters
        ----------
        pairs : tuple
        place : Place, optional
            Where the variables are; by default, where they were in some last step.
        binding : Binding, optional
            One that no step is using; by default, any.

        Returns
        -------
        Binding or None
            None if another plan or place is needed: if variables or types of gradients are not
            those of this one, or a variable has moved or become read-only.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            If a gradient is not valid; see `rmsjit.steps.pairs`.
        """
        if binding is None:
            try:  # written out, as all that a small step enters
                binding = self.free.pop()
            except IndexError:
                binding = self._new_binding(place)
        if place is not None and place is not binding.place:
            binding.move(place)
        binding.known = None
        reader = binding.place.reader
        if reader.compiled is not None:
            others = reader.compiled(id(pairs), binding.read_address)
        else:
            others = reader.read_in_python(pairs, binding.gradients)
        if others == headers.NOT_AS_EXPECTED or self._valid_epoch != self.epoch[0]:
            if binding.place.draft is None:
                self.free.append(binding)
            return None
        binding.alive = pairs
        if others or self.sparse:
            self._bind_others(pairs, binding)
        return binding

    def bind_unmoved(self, pairs: Pairs) -> Binding | None:
        """`bind` to pairs whose arrays have not moved since they were bound here, if they were.

        The caller has checked the variables, and makes the gradients itself.
        """
        binding = self._free_binding()
        if binding.known is pairs and self._valid_epoch == self.epoch[0]:
            binding.alive = pairs
            return binding
        bound = self.bind(pairs, binding=binding)
        if bound is not None and bound.alive is pairs:  # no gradient was copied
            bound.known = pairs
        return bound

    def bind_again(self, pairs: Pairs, store: SlotStore) -> Binding | None:
        """`bind` to variables that an earlier `bind_known` has recorded.

        None if it has not, or if there was no such step.
        """
        if store.unmet or self._valid_epoch != self.epoch[0]:
            return None
        try:
            binding = self.free.pop()
        except IndexError:
            return None
        unsure = binding.place.follow(pairs, store)
        if unsure == headers.NOT_AS_EXPECTED:
            self.free.append(binding)
            return None
        if unsure and binding.place.has_gone:
            return None
        return self.bind(pairs, binding=binding)

    def bind_known(
        self, pairs: Pairs, arrays: Sequence[NDArray[Any]], store: SlotStore
    ) -> Binding | None:
        """`bind` to other variables of the plan's structure, if the store knows them all."""
        if store.unmet or self._valid_epoch != self.epoch[0]:
            return None
        found = self._locator.find(arrays, store)
        if found is None:
            return None
        binding = self._free_binding()
        binding.follow(found, self._locator)
        return self.bind(pairs, binding=binding)

    @computed_once
    def _locator(self) -> Locator:
        return Locator(self.place, self.slot_names)

    def _free_binding(self) -> Binding:
        try:
            return self.free.pop()
        except IndexError:
            return self._new_binding()

    def release(self, binding: Binding) -> None:
        """Keep a binding for later steps, unless the store does not know its place."""
        binding.alive, binding.occurrences = None, {}
        if binding.place.draft is None:
            self.free.append(binding)

    def _new_binding(self, place: Place | None = None) -> Binding:
        return Binding(place or self.place, self._computing, self.group_count, self._noise)

    def bind_in_place(self, addresses: NDArray[np.int64], alive: Any) -> Binding | None:
        """Bind dense gradients that the caller has checked, by their addresses.

        Parameters
        ----------
        addresses : int64 array, shape (pairs,)
            One for each variable, whose shape, dtype and strides the gradient has.
        alive : object
            Keeps their memory alive.

        Returns
        -------
        Binding or None
            None if a gradient meets the memory that the step writes, or a variable is updated
            through a contiguous copy, which needs such a gradient too.
        """
        if self._copies:
            return None
        binding = self._free_binding()
        gradients = binding.gradients
        # Where an earlier step has found them, they have been compared.
        if gradients.tobytes() != addresses.tobytes():
            gradients[:], binding.known = addresses, None
            if self._meets_written(gradients):
                gradients[:] = headers.NOT_READABLE
                self.free.append(binding)
                return None
        binding.alive = alive
        return binding

    def _meets_written(self, gradients: NDArray[np.int64]) -> bool:
        """Whether gradients at these addresses meet the memory that the step writes."""
        call = self._written_call
        return bool(loader.meets_written().call(address_of(call), address_of(gradients)))

    @computed_once
    def _written_call(self) -> NDArray[np.int64]:
        """What the kernel must know that compares gradients with the memory that is written."""
        starts, ends = self.place.written
        words = np.zeros(overlap.WORDS, np.int64)
        words[overlap.COUNT], words[overlap.SIZES] = self.count, address_of(self._sizes)
        words[overlap.SPAN_STARTS], words[overlap.SPAN_ENDS] = map(address_of, (starts, ends))
        words[overlap.SPANS] = len(starts)
        return words

    @computed_once
    def _sizes(self) -> NDArray[np.int64]:
        """The size of each variable in bytes."""
        return np.array([owner.nbytes for owner in self.place.owners], np.int64)

    def _bind_others(self, pairs: Pairs, binding: Binding) -> None:
        """Check the gradients that kernels can't read in place, and copy dense ones."""
        place, gradients, copies = binding.place, binding.gradients, []
        for group in self.sparse:
            position = group.position
            found = group.bind(pairs[position][0], place.written)
            binding.occurrences[position] = found
            gradients[position] = address_of(found.values)
        for k in np.flatnonzero(gradients == headers.NOT_READABLE).tolist():
            entry = place.entries[k]
            if entry is None or k in binding.occurrences or k in place.frozen:
                continue
            gradient = dense_gradient(pairs[k][0], place.variables[k], k)
            canonical = layout_of(place.owners[k]).canonical(gradient)
            if not place.is_readable(canonical, k, entry.canonical.dtype):
                with np.errstate(all="ignore"):  # a number too large for the dtype is infinite
                    canonical = canonical.astype(entry.canonical.dtype, order="C")
            gradients[k] = address_of(canonical)
            copies.append(canonical)
        binding.alive = pairs, copies

    def nbytes(self, binding: Binding) -> int:
        """How many bytes could be written sequentially in the time that the update takes."""
        rows = (
            group.table.bytes_of(binding.occurrences[group.position].distinct)
            for group in self.sparse
        )
        return self._dense_nbytes + sum(rows)

    def norms(self, binding: Binding, limit: float, launch: Launch) -> Norms:
        """The norms of all gradients, and whether they are finite; a missing one is zero.

        Parameters
        ----------
        binding : Binding
        limit : float
            Elements are clipped to this bound first.
        launch : Launch
        """
        act = binding.norm_acts.get((launch, limit))
        if act is None:
            passes = self._norm_passes(binding.occurrences)
            gradients, totals = binding.gradients, binding.totals
            calls = [p.call(gradients, totals, limit, launch.threads) for p in passes]
            act = Act(calls, launch=launch, nbytes=sum(p.nbytes for p in passes))
            if not binding.occurrences:
                if len(binding.norm_acts) >= _NORM_ACTS:  # as with a bound that changes every step
                    binding.norm_acts.clear()
                binding.norm_acts[launch, limit] = act
        binding.totals[:] = 0.0
        if act.run() != DONE:
            return self.norms(binding, limit, ONE_THREAD)
        return Norms.of_totals(binding.totals)

    def acts(
        self,
        binding: Binding,
        factors: NDArray[Any] | None,
        clipped: bool,
        launch: Launch,
        counter: NDArray[Any] | None,
    ) -> list[Act]:
        """The update of all variables as acts, one for each round.

        Only the first may refuse to run.

        Parameters
        ----------
        binding : Binding
        factors : float64 array, shape (pairs,), or None
            What to multiply each gradient by.
        clipped : bool
            Whether gradients are clipped by value.
        launch : Launch
        counter : integer 0-d array or None
            What counts the steps.
        """
        if factors is not None or binding.is_scaled:  # kernels that clip read the scales as well
            binding.is_scaled = factors is not None
            scales = 1.0 if factors is None else factors
            with np.errstate(all="ignore"):
                for kinds in {group.kinds for group in self._dense}:
                    binding.scales_of(kinds)[:] = scales
        key = (launch, clipped, factors is not None)
        acts = binding.acts.get(key)
        if acts is not None and acts[0].counter is counter:
            return acts
        clipped = clipped or factors is not None
        first, *later = self.rounds
        calls = self._calls(first, binding, factors, clipped, launch)
        valid = self.epoch, self._valid_epoch
        acts = [Act(calls, counter, valid, launch, self.nbytes(binding), binding.trials)]
        acts += [
            Act(self._calls(groups, binding, factors, clipped, ONE_THREAD)) for groups in later
        ]
        if self._same_calls:
            binding.acts[key] = acts
        return acts

    def _norm_passes(self, occurrences: Mapping[int, Occurrences]) -> list[NormPass]:
        """The passes over all gradients; the sizes of sparse ones change with each step."""
        sparse = [
            NormPass(
                np.array([occurrences[group.position].values.size]),
                group.precision,
                np.array([group.position]),
            )
            for group in self.sparse
        ]
        return [*self._dense_passes, *sparse]

    def _calls(
        self,
        groups: Sequence[Group],
        binding: Binding,
        factors: NDArray[Any] | None,
        clipped: bool,
        launch: Launch,
    ) -> list[Call]:
        """The kernel calls that update the variables of some groups, one after the other."""
        after_norms = factors is not None
        calls: list[Call] = []
        for group in groups:
            if isinstance(group, DenseGroup):
                if self.exact:
                    calls += settling_calls(group.members, self.form, launch.threads)
                calls += group.calls(binding, launch, clipped, after_norms)
            else:
                factor = 1.0 if factors is None else float(factors[group.position])
                found = binding.occurrences[group.position]
                calls += group.calls(binding, found, factor, launch.threads, self.exact)
        return calls

    def constrain(self, groups: Sequence[Group], constrained: Mapping[int, Variable]) -> None:
        """Apply the constraints to the variables of some groups, after their update."""
        for group in groups:
            for position in np.atleast_1d(group.positions).tolist():
                variable = constrained.get(position)
                if variable is not None and variable.constraint is not None:
                    variable.assign(variable.constraint(variable.array))


class Placed(NamedTuple):
    """A plan at one of its places, as `rmsjit.steps.plans.Plans` keeps it."""

    plan: Plan
    place: Place

    @property
    def identity(self) -> Any:
        return self.place.identity

    @property
    def layouts(self) -> Any:
        return self.place.layouts

    @property
    def structure(self) -> Any:
        return self.plan.structure
