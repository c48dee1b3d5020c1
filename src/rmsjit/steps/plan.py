"""A plan: a list of variables checked and laid out once, and the kernel calls that update them.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks at the same time, and runs one act.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of, is_dense, layout_of, span_of
from rmsjit.arrays.overlap import merged_spans, span_that_meets
from rmsjit.kernels import headers
from rmsjit.rule.form import Form
from rmsjit.runtime import trials
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.state.grouping import Assignment
from rmsjit.state.slots import Entry, Member
from rmsjit.steps.act import DONE, Act, Call
from rmsjit.steps.binding import Binding
from rmsjit.steps.dense import DenseGroup, entry_addresses
from rmsjit.steps.exact import settling_calls
from rmsjit.steps.groups import Group, rounds_of, turns_of
from rmsjit.steps.headers import HeaderReader
from rmsjit.steps.norms import NormPass, Norms
from rmsjit.steps.occurrences import Occurrences
from rmsjit.steps.pairs import Pairs, dense_gradient, naming
from rmsjit.steps.plans import identity_of, layouts_of, structure_of
from rmsjit.steps.sparse import SparseGroup
from rmsjit.variables import Variable

_NORM_ACTS = 8  # kept for later steps


class Draft(NamedTuple):
    """What the first step enters into the store.

    Attributes
    ----------
    entries : list of Entry
    slots : list of (Entry, str, ndarray)
    known : int
        How many variables the store knew when these were found not to overlap them.
    """

    entries: list[Entry]
    slots: list[tuple[Entry, str, NDArray[Any]]]
    known: int


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

    Attributes
    ----------
    identity : tuple
        The ids of the variables and the types of their gradients, by which the plan is found
        again.  The plan keeps the variables alive, so their ids are not reused.
    structure : tuple or None
        The dtypes and shapes of the variables, by which the plan is found to be moved to other
        memory; None if it can't be moved.
    count : int
        The number of pairs.
    dropped : list of str
        Names of the variables without a gradient.
    constrained : dict of int to Variable
        The variables with a constraint, by position.
    rounds : list of list of Group
        In the order of their updates; constraints are applied after each round.
    groups : list of Group
        Those of all rounds.
    complex_dtype : str
        The dtype of a complex variable, empty if there is none.
    free : list of Binding
        Those that no step is using.
    may_need_threads : bool
        Whether a step can be enough work for more than one thread.
    draft : Draft or None
        What is not in the store yet.
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
    ) -> None:
        self._assignment = assignment
        self.form, self.exact, self.epoch = form, exact, epoch
        self._valid_epoch = int(epoch[0])
        self.count = len(variables)
        self._kinds, self._members = tuple(kinds), tuple(members)
        self._addresses = entry_addresses(form, members)
        self._written = merged_spans(_spans(members))
        own_memory = [_own_memory(*pair) for pair in zip(members, turns_of(members), strict=True)]
        self.reader = HeaderReader(variables, kinds, own_memory, self._written)
        self._take_names(variables)
        self.rounds = rounds_of(variables, kinds, members, self.constrained, form, assignment)
        self.groups = [group for groups in self.rounds for group in groups]
        self._dense = [group for group in self.groups if isinstance(group, DenseGroup)]
        self.sparse = [group for group in self.groups if isinstance(group, SparseGroup)]
        self._computing = {group.kinds.computing for group in self.groups}
        self._dense_nbytes = sum(group.nbytes for group in self._dense)
        self.may_need_threads = bool(self.sparse) or self._dense_nbytes >= trials.LEAST_BYTES
        complex_names = [g.precision.name for g in self.groups if g.precision.components == 2]
        self.complex_dtype = complex_names[0] if complex_names else ""
        copied = any(group.copied for group in self._dense)
        has_clock = exact and any(m.entry.clock is not None for m in members if m)
        self._same_calls = not (self.sparse or copied or has_clock)
        self._dense_passes = [
            NormPass(group.sizes, group.precision, group.positions) for group in self._dense
        ]
        self.draft: Draft | None = None
        grouped = assignment.groups > 1  # and what is moved may be in another group
        movable = self._same_calls and not (exact or self.may_need_threads or grouped)
        self.structure = structure_of(variables, kinds) if movable else None

    def _take_names(self, variables: Sequence[Any]) -> None:
        self._variables = tuple(variables)
        self.identity = identity_of(variables, self._kinds)
        self.owners = self.reader.owners
        self.dropped = _dropped(variables, self._members, self._assignment.frozen)
        self.constrained = _constrained(variables, self._members)
        self.free: list[Binding] = []

    @property
    def is_valid(self) -> bool:
        """Whether nothing that the plan depends on has changed since it was made."""
        return bool(self._valid_epoch == self.epoch[0])

    @property
    def has_gone(self) -> bool:
        """Whether the memory of one of its variables was closed, resized or remapped."""
        return any(member is not None and member.entry.is_gone for member in self._members)

    def was_met_again(self) -> None:
        """Note that a second step uses these variables, and the objects it was given."""
        for variable, member in zip(self._variables, self._members, strict=True):
            if member is not None:
                member.entry.met_again = True
                member.entry.saw(variable)

    def rebound(self, variables: Sequence[Any]) -> Plan:
        """This plan for other views, or other `Variable` objects, of the same memory."""
        plan = copy.copy(self)
        plan.reader = self.reader.rebound(variables)
        plan._take_names(variables)
        return plan

    def moved(self, arrays: Sequence[NDArray[Any]], members: Sequence[Member | None]) -> Plan:
        """This plan for other memory of the same structure.

        It takes over a free binding, with the acts that were made of its arrays.
        """
        plan = object.__new__(Plan)  # copy.copy takes longer than the step
        vars(plan).update(vars(self))
        plan._members = tuple(members)
        plan._addresses = entry_addresses(self.form, members)
        plan._written = merged_spans(_spans(members))
        plan._variables, plan.identity = tuple(arrays), identity_of(arrays, self._kinds)
        plan.reader = self.reader.moved(arrays, plan._addresses[:, 0], plan._written)
        plan.owners, plan.free, plan.draft = plan.reader.owners, [], None
        with contextlib.suppress(IndexError):
            binding = self.free.pop()
            binding.move(plan._addresses, plan.reader)
            plan.free.append(binding)
        return plan

    @property
    def layouts(self) -> tuple[Any, ...]:
        """Like `identity`, but the same for all views of the same memory."""
        return layouts_of(self._variables, self._kinds)

    def name(self, position: int) -> str:
        """How messages name a variable."""
        return naming(self._variables[position], position)

    # --- one step ---------------------------------------------------------------------------

    def bind(self, pairs: Pairs) -> Binding | None:
        """Check the gradients of a step, writing nothing.

        Returns
        -------
        Binding or None
            None if another plan is needed: if variables or types of gradients are not those of
            this plan, or a variable has moved or become read-only.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            If a gradient is not valid; see `rmsjit.steps.pairs`.
        """
        try:
            binding = self.free.pop()
        except IndexError:
            binding = self._new_binding()
        read = self.reader.compiled
        if read is not None:
            others = read(id(pairs), binding.read_address)
        else:
            others = self.reader.read_in_python(pairs, binding.gradients)
        if others == headers.NOT_AS_EXPECTED or self._valid_epoch != self.epoch[0]:
            self.free.append(binding)
            return None
        binding.alive = pairs
        if others or self.sparse:
            self._bind_others(pairs, binding)
        return binding

    def _new_binding(self) -> Binding:
        groups = self._assignment.groups
        return Binding(self._addresses, self._computing, self.reader, groups)

    def bind_in_place(self, addresses: Sequence[int], alive: Any) -> Binding | None:
        """Bind dense gradients that the caller has checked, by their addresses.

        Parameters
        ----------
        addresses : sequence of int
            One for each variable, whose shape, dtype and strides the gradient has.
        alive : object
            Keeps their memory alive.

        Returns
        -------
        Binding or None
            None if a gradient meets the memory that the step writes.
        """
        found = np.array(addresses, np.int64)
        starts, ends = self._written
        if len(starts):
            last = np.searchsorted(starts, found + self._sizes - 1, side="right") - 1
            if ((last >= 0) & (ends[last] > found) & (self._sizes > 0)).any():
                return None
        try:
            binding = self.free.pop()
        except IndexError:
            binding = self._new_binding()
        binding.gradients[:] = found
        binding.alive = alive
        return binding

    @functools.cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """The size of each variable in bytes."""
        return np.array([owner.nbytes for owner in self.owners], np.int64)

    def _bind_others(self, pairs: Pairs, binding: Binding) -> None:
        """Check the gradients that kernels can't read in place, and copy dense ones."""
        gradients, copies = binding.gradients, []
        for group in self.sparse:
            position = group.position
            found = group.bind(pairs[position][0], self._written)
            binding.occurrences[position] = found
            gradients[position] = address_of(found.values)
        for k in np.flatnonzero(gradients == headers.NOT_READABLE).tolist():
            member = self._members[k]
            if member is None or k in binding.occurrences or k in self._assignment.frozen:
                continue
            gradient = dense_gradient(pairs[k][0], self._variables[k], k)
            canonical = layout_of(self.owners[k]).canonical(gradient)
            if not self._readable(canonical, k, member.entry):
                with np.errstate(all="ignore"):  # a number too large for the dtype is infinite
                    canonical = canonical.astype(member.entry.canonical.dtype, order="C")
            gradients[k] = address_of(canonical)
            copies.append(canonical)
        binding.alive = pairs, copies

    def _readable(self, canonical: NDArray[Any], position: int, entry: Entry) -> bool:
        """Whether kernels can read a gradient in place; see `rmsjit.kernels.headers`."""
        if canonical.dtype != entry.canonical.dtype or not is_dense(canonical):
            return False
        span = span_that_meets(self._written, canonical)
        own = self.reader.own_memory[position]
        start = address_of(canonical)
        return span is None or (start == own and span == (start, start + canonical.nbytes))

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
        calls = self._calls(first, binding, factors, clipped, launch.threads)
        acts = [Act(calls, counter, self.epoch, launch, self.nbytes(binding), binding.trials)]
        acts += [Act(self._calls(groups, binding, factors, clipped, 1)) for groups in later]
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
        bins: int,
    ) -> list[Call]:
        """The kernel calls that update the variables of some groups, one after the other."""
        after_norms = factors is not None
        calls: list[Call] = []
        for group in groups:
            if isinstance(group, DenseGroup):
                if self.exact:
                    calls += settling_calls(group.members, self.form, bins)
                calls += group.calls(binding, bins, clipped, after_norms)
            else:
                factor = 1.0 if factors is None else float(factors[group.position])
                found = binding.occurrences[group.position]
                calls += group.calls(binding, found, factor, bins, self.exact)
        return calls

    def constrain(self, groups: Sequence[Group]) -> None:
        """Apply the constraints to the variables of some groups, after their update."""
        for group in groups:
            for position in np.atleast_1d(group.positions).tolist():
                variable = self.constrained.get(position)
                if variable is not None and variable.constraint is not None:
                    variable.assign(variable.constraint(variable.array))


def _spans(members: Sequence[Member | None]) -> list[tuple[int, int]]:
    """The memory of all variables and slots."""
    present = [member for member in members if member is not None]
    slots = [span_of(value) for member in present for value in member.slots.values()]
    return [member.entry.span for member in present] + slots


def _own_memory(member: Member | None, turn: int) -> int | None:
    """The address that a gradient may have although the step writes there: its own variable's.

    0 after the first turn, when the variable has changed already; None without a gradient.
    """
    if member is None:
        return None
    return 0 if turn else address_of(member.entry.canonical)


def _dropped(
    variables: Sequence[Any], members: Sequence[Member | None], frozen: Collection[int]
) -> list[str]:
    """The names of variables that lack a gradient."""
    missing = (k for k, member in enumerate(members) if member is None and k not in frozen)
    return [naming(variables[k], k) for k in missing]


def _constrained(variables: Sequence[Any], members: Sequence[Member | None]) -> dict[int, Variable]:
    return {
        k: variable
        for k, (variable, member) in enumerate(zip(variables, members, strict=True))
        if member is not None and isinstance(variable, Variable) and variable.constraint
    }
