"""The compiled code of a plan's steps, as acts: updates, and norms of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.form import Form
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.steps.act import DONE, Act, Call, Validity
from rmsjit.steps.binding import Binding
from rmsjit.steps.dense import DenseGroup
from rmsjit.steps.exact import settling_calls
from rmsjit.steps.groups import Group, Layout
from rmsjit.steps.norms import NormPass, Norms
from rmsjit.steps.occurrences import Occurrences

_NORM_ACTS = 8  # kept for later steps


class Updates:
    """What a plan runs for a step that is bound.

    Parameters
    ----------
    layout : Layout
    form : Form
    validity : Validity
        Of the plan.
    exact : bool
        Whether rows that a sparse gradient does not name are updated as by a zero gradient.
    has_clocks : bool
        Whether a variable is a table whose rows may have missed steps.

    Attributes
    ----------
    are_kept : bool
        Whether the calls of a binding are the same in each step.
    """

    def __init__(
        self, layout: Layout, form: Form, validity: Validity, exact: bool, has_clocks: bool
    ) -> None:
        self._layout, self._form, self._validity, self._exact = layout, form, validity, exact
        self.are_kept = not (layout.sparse or layout.has_copies or has_clocks)
        self._dense_passes = [
            NormPass(group.sizes, group.precision, group.positions) for group in layout.dense
        ]

    def nbytes(self, binding: Binding) -> int:
        """How many bytes could be written sequentially in the time that the update takes."""
        nbytes = self._layout.dense_nbytes
        for group in self._layout.sparse:
            nbytes += group.table.bytes_of(binding.occurrences[group.position].distinct)
        return nbytes

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
                for kinds in {group.kinds for group in self._layout.dense}:
                    binding.scales_of(kinds)[:] = scales
        key = (launch, clipped, factors is not None)
        acts = binding.acts.get(key)
        if acts is not None and acts[0].counter is counter:
            return acts
        clipped = clipped or factors is not None
        first, *later = self._layout.rounds
        calls = self._calls(first, binding, factors, clipped, launch)
        acts = [Act(calls, counter, self._validity, launch, self.nbytes(binding), binding.trials)]
        acts += [
            Act(self._calls(groups, binding, factors, clipped, ONE_THREAD)) for groups in later
        ]
        if self.are_kept:
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
            for group in self._layout.sparse
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
                if self._exact:
                    calls += settling_calls(group.members, self._form, launch.threads)
                calls += group.calls(binding, launch, clipped, after_norms)
            else:
                factor = 1.0 if factors is None else float(factors[group.position])
                found = binding.occurrences[group.position]
                calls += group.calls(binding, found, factor, launch.threads, self._exact)
        return calls
