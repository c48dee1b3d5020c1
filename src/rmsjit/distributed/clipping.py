"""Clipping by the norms of reduced gradients, with the scale of a mean over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import load_mpi
from rmsjit.rule.clipping import Clipping


class ReducedClipping:
    """Stands for a `Clipping` where a step sees sums over ranks, or a shard of them.

    What the optimizer clips is the gradient times `scale`.  The sums are clipped instead, by
    bounds that are larger by as much, and `scale` rides along in the factors.

    Parameters
    ----------
    clipping : Clipping
    scale : float
        What each sum over ranks is multiplied by: 1/ranks for a mean.
    """

    def __init__(self, clipping: Clipping, scale: float = 1.0) -> None:
        self._clipping = clipping
        self._scale = scale

    @property
    def by_norm(self) -> bool:
        """Whether the stepper must find norms, and asks for factors by them."""
        return self._clipping.by_norm

    def fixed_factors(self, count: int) -> NDArray[Any] | None:
        """What to multiply each of `count` gradients by where norms don't matter."""
        return None if self._scale == 1.0 else np.full(count, self._scale)

    @property
    def clipvalue(self) -> float | None:
        return None if self._clipping.clipvalue is None else self.bound

    @property
    def bound(self) -> float:
        """The bound on each value of a sum, infinite where there is none."""
        return self._clipping.bound / self._scale

    def factors(self, squares: NDArray[Any], finite: bool = False) -> NDArray[Any]:
        """What to multiply each gradient of the step by."""
        if not self._clipping.by_norm:
            return np.full(len(squares), self._scale)
        return self._scale * self._norm_factors(squares, finite)

    def _norm_factors(self, squares: NDArray[Any], finite: bool) -> NDArray[Any]:
        return self._clipping.factors(self._scale**2 * squares, finite)


class ShardClipping(ReducedClipping):
    """The same where each rank steps pieces of gradients, whose norms are of the whole.

    Parameters
    ----------
    clipping : Clipping
    scale : float
    comm : mpi4py.MPI.Comm
    positions : int array, shape (pieces,)
        Which gradient each piece of this rank is of.
    count : int
        How many gradients there are.
    """

    def __init__(
        self, clipping: Clipping, scale: float, comm: Any, positions: NDArray[Any], count: int
    ) -> None:
        super().__init__(clipping, scale)
        self._comm = comm
        self._positions = positions
        self._count = count

    def _norm_factors(self, squares: NDArray[Any], finite: bool) -> NDArray[Any]:
        """The factor of each piece, by the norm of its whole gradient."""
        del finite  # what this rank has seen says nothing of the other pieces
        whole = np.bincount(self._positions, weights=squares, minlength=self._count)
        self._comm.Allreduce(load_mpi().IN_PLACE, whole)
        factors: NDArray[Any] = super()._norm_factors(whole, finite=False)[self._positions]
        return factors
