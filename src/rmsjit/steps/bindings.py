"""The bindings of a plan: memory for its steps, bound to the pairs of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of, layout_of
from rmsjit.kernels import headers, loader, overlap
from rmsjit.runtime.once import computed_once
from rmsjit.state.slots import SlotStore
from rmsjit.steps.act import Validity
from rmsjit.steps.binding import Binding
from rmsjit.steps.converting import ContiguousCopies
from rmsjit.steps.groups import Layout
from rmsjit.steps.pairs import Pairs, dense_gradient
from rmsjit.steps.place import Place
from rmsjit.steps.roaming import Locator


class Bindings:
    """Binds pairs of gradients and variables, writing nothing.

    Parameters
    ----------
    place : Place
        The first one of the plan.
    slot_names : sequence of str
        In the order of the form's `arithmetic`.
    layout : Layout
    validity : Validity
        Of the plan.
    group_count : int
        How many rows of numbers a step needs.
    noise : int64 array, shape (1 + 2 * pairs,)
        What stochastic rounding reads; see `rmsjit.steps.noise`.
    copies : ContiguousCopies
        Makes those of gradients that kernels can't read in place.

    Attributes
    ----------
    free : list of Binding
        Those that no step is using, each at the place of its last step.
    """

    def __init__(
        self,
        place: Place,
        slot_names: Sequence[str],
        layout: Layout,
        validity: Validity,
        group_count: int,
        noise: NDArray[np.int64],
        copies: ContiguousCopies,
    ) -> None:
        self._copies = copies
        self._place, self._slot_names = place, slot_names
        self._layout, self._sparse = layout, layout.sparse
        self._epoch, self._valid_epoch = validity
        self._group_count, self._noise = group_count, noise
        self.free: list[Binding] = []

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
        if others == headers.NOT_AS_EXPECTED or self._valid_epoch != self._epoch[0]:
            if binding.place.draft is None:
                self.free.append(binding)
            return None
        binding.alive = pairs
        if others or self._sparse:
            self._bind_others(pairs, binding)
        return binding

    def bind_unmoved(self, pairs: Pairs) -> Binding | None:
        """`bind` to pairs whose arrays have not moved since they were bound here, if they were.

        The caller has checked the variables, and makes the gradients itself.
        """
        binding = self._free_binding()
        if binding.known is pairs and self._valid_epoch == self._epoch[0]:
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
        if store.unmet or self._valid_epoch != self._epoch[0]:
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
        if store.unmet or self._valid_epoch != self._epoch[0]:
            return None
        found = self._locator.find(arrays, store)
        if found is None:
            return None
        binding = self._free_binding()
        binding.follow(found, self._locator)
        return self.bind(pairs, binding=binding)

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
        if self._layout.has_copies:
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

    def release(self, binding: Binding) -> None:
        """Keep a binding for later steps, unless the store does not know its place."""
        binding.alive, binding.occurrences = None, {}
        if binding.place.draft is None:
            self.free.append(binding)

    def _free_binding(self) -> Binding:
        try:
            return self.free.pop()
        except IndexError:
            return self._new_binding()

    def _new_binding(self, place: Place | None = None) -> Binding:
        place = place or self._place
        return Binding(place, self._layout.computing, self._group_count, self._noise)

    def _bind_others(self, pairs: Pairs, binding: Binding) -> None:
        """Check the gradients that kernels can't read in place, and copy dense ones."""
        place, gradients, copies = binding.place, binding.gradients, []
        for group in self._sparse:
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
                canonical = self._copies.of(canonical, entry.canonical.dtype)
            gradients[k] = address_of(canonical)
            copies.append(canonical)
        binding.alive = pairs, copies

    def _meets_written(self, gradients: NDArray[np.int64]) -> bool:
        """Whether gradients at these addresses meet the memory that the step writes."""
        call = self._written_call
        return bool(loader.meets_written().call(address_of(call), address_of(gradients)))

    @computed_once
    def _written_call(self) -> NDArray[np.int64]:
        """What the kernel must know that compares gradients with the memory that is written."""
        starts, ends = self._place.written
        words = np.zeros(overlap.WORDS, np.int64)
        words[overlap.COUNT], words[overlap.SIZES] = (
            len(self._place.owners),
            address_of(self._sizes),
        )
        words[overlap.SPAN_STARTS], words[overlap.SPAN_ENDS] = map(address_of, (starts, ends))
        words[overlap.SPANS] = len(starts)
        return words

    @computed_once
    def _sizes(self) -> NDArray[np.int64]:
        """The size of each variable in bytes."""
        return np.array([owner.nbytes for owner in self._place.owners], np.int64)

    @computed_once
    def _locator(self) -> Locator:
        return Locator(self._place, self._slot_names)
