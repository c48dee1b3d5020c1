"""Forgetting variables that nobody holds any more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rmsjit.arrays.owners import held_elsewhere

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore

_FIRST = 32  # variables before the first sweep
_MANY = 16  # variables with the same shape and dtype, each stepped once, that cause a warning


class Sweeps:
    """Decides when a store is swept of variables whose memory nobody else holds any more."""

    def __init__(self) -> None:
        self._due_at = _FIRST
        self._stepped_once: Counter[tuple[Any, str]] = Counter()  # and gone, by shape and dtype

    def are_due(self, store: SlotStore) -> bool:
        """Whether the number of variables has doubled since the last sweep."""
        return len(store.entries) >= self._due_at

    def sweep(self, store: SlotStore) -> None:
        """Forget the variables; takes time in proportion to the number of all."""
        entries = [entry for entry in store.entries.values() if not entry.homes]
        held = held_elsewhere([entry.own_views for entry in entries])
        dead = [e for e, alive in zip(entries, held, strict=True) if not alive or e.is_gone]
        self._stepped_once.update((e.shape, e.precision.name) for e in dead if not e.met_again)
        if dead:
            store.drop(dead)
        self._due_at = max(_FIRST, 2 * len(store.entries))
        self._tell_of_new_arrays(store)

    def _tell_of_new_arrays(self, store: SlotStore) -> None:
        for (shape, dtype), count in self._stepped_once.most_common(1):
            if count >= _MANY:
                store.tell(
                    "seen once",
                    f"{count} variables of shape {shape} and dtype {dtype} were stepped once each "
                    f"and are gone, with their state: `w = w - x`, or `w = w*0.9999` before each "
                    f"step, and functions that return new parameters make new arrays; to keep the "
                    f"state, change arrays in place, as in `w -= x`, `w *= 0.9999` or "
                    f"`w[...] = w - x`",
                )
