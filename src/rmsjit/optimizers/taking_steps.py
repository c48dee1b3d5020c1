"""How steps are taken, as attributes."""

from __future__ import annotations

from typing import Any

from rmsjit.optimizers.core import Core
from rmsjit.optimizers.fixed import fixed_at_construction


class TakingSteps(Core):
    """The settings of the engine, which only the constructor sets."""

    @fixed_at_construction
    def sparse(self) -> str:
        """Which rows a sparse gradient updates: "rows" or "exact"."""
        return "exact" if self._settings.exact else "rows"

    @fixed_at_construction
    def nonfinite(self) -> str:
        """What a NaN or an infinity in a gradient does: "propagate", "skip" or "raise"."""
        return self._settings.nonfinite

    @fixed_at_construction
    def track_norms(self) -> bool:
        """Whether every step computes `last_gradient_norm`."""
        return self._settings.track_norms

    @fixed_at_construction
    def num_threads(self) -> int | None:
        """The maximum number of threads that was asked for."""
        return self._settings.num_threads

    @fixed_at_construction
    def slot_allocator(self) -> Any:
        """The function that returns the memory of slots, or None."""
        return self._store.memories.allocator

    @fixed_at_construction
    def strategy(self) -> Any:
        """What distributes the steps over processes, or None."""
        return self._settings.strategy
