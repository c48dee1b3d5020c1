"""What all benchmarks share: input arrays, byte counts and steps.

Importing this needs only NumPy and rmsjit's sources, because a peer in `benchmarks.compare` may run
in an environment without Numba.  It starts no threads, because asv forks after importing.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import rmsjit
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.cli import bench
from rmsjit.cli.bench import EPSILON, LEARNING_RATE, RHO, VARIANTS
from rmsjit.cli.stopwatch import Step
from rmsjit.runtime.trials import SETTLED_AFTER

THREADS = ("one", "all")
HEAVY = os.environ.get("RMSJIT_BENCH_HEAVY", "0") not in ("", "0")


# --- numbers --------------------------------------------------------------------------------


def values(shape: int | Sequence[int], dtype: str, seed: int) -> np.ndarray:
    """Random numbers as in `rmsjit.cli.bench`, by the name of the dtype."""
    return bench.values(shape, dtype_named(dtype), seed)


def row_indices(rows: int, count: int, duplication: str, seed: int) -> np.ndarray:
    """Rows of a table, drawn uniformly ("uniform") or like words of a text ("zipf", 1.2)."""
    rng = np.random.default_rng(seed)
    if duplication == "uniform":
        return rng.integers(0, rows, count)
    frequency = np.arange(1, rows + 1) ** -1.2
    ends = np.cumsum(frequency)
    ranks = np.searchsorted(ends, rng.random(count) * ends[-1])
    return np.random.default_rng(0).permutation(rows)[ranks]  # frequent rows are anywhere


def slot_count(momentum: float, centered: bool) -> int:
    """The number of slots of a form of the rule."""
    return 1 + bool(momentum) + bool(centered)


def dense_bytes(size: int, itemsize: int, slots: int, by_norm: bool = False) -> int:
    """Bytes a step must move: read gradients (twice for a norm), read and write all else."""
    return size * itemsize * (1 + by_norm + 2 * (1 + slots))


def sparse_bytes(named: int, count: int, width: int, itemsize: int, slots: int) -> int:
    """Bytes of a sparse step: `count` gradient rows, `named` distinct rows of table and slots."""
    return width * itemsize * (count + named * 2 * (1 + slots))


def require(nbytes: int, heavy: bool = False) -> None:
    """Make asv skip a benchmark that is too large for the machine or for an ordinary run.

    Raises
    ------
    NotImplementedError
        Which asv treats as "not applicable".
    """
    if heavy and not HEAVY:
        raise NotImplementedError("only with RMSJIT_BENCH_HEAVY=1")
    if nbytes > 0.7 * available_memory():
        raise NotImplementedError(f"needs {nbytes / 1e9:.1f} GB of memory")


def available_memory() -> float:
    """Bytes available without swapping; infinite if unknown."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


# --- steps of rmsjit, compiled and with their memory touched --------------------------------


class DenseStep:
    """One `apply_gradients` of dense gradients; call it any number of times."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        dtype: str = "float32",
        variant: str = "plain",
        threads: str = "all",
        **options: Any,
    ) -> None:
        self.gradients = [values(size, dtype, seed=2 * k) for k, size in enumerate(sizes)]
        self.variables = [values(size, dtype, seed=2 * k + 1) for k, size in enumerate(sizes)]
        self.optimizer = optimizer(variant, threads, **options)
        slots = slot_count(*VARIANTS[variant])
        self.nbytes = dense_bytes(sum(sizes), self.gradients[0].itemsize, slots)
        _warm_up(self)

    def __call__(self) -> None:
        self.optimizer.apply_gradients(zip(self.gradients, self.variables, strict=True))

    def slots(self) -> list[np.ndarray]:
        """The slots of the first variable."""
        names = self.optimizer.get_slot_names()
        return [self.optimizer.get_slot(self.variables[0], name).array for name in names]


class SparseStep:
    """One `apply_gradients` with momentum of a sparse gradient.

    Several gradients are used in turn, so that their rows leave the caches.
    """

    BATCHES = 4

    def __init__(self, rows: int, width: int, count: int, duplication: str, mode: str) -> None:
        self.table = values((rows, width), "float32", seed=0)
        self.optimizer = optimizer("momentum", "all", sparse=mode)
        self.batches, nbytes = [], []
        for seed in range(self.BATCHES):
            indices = row_indices(rows, count, duplication, seed)
            rows_of_gradient = values((count, width), "float32", seed + 1)
            self.batches.append(rmsjit.IndexedSlices(rows_of_gradient, indices))
            nbytes.append(sparse_bytes(len(np.unique(indices)), count, width, 4, slots=2))
        self.nbytes = sum(nbytes) / len(nbytes)
        self._turns = itertools.cycle(self.batches)
        for _ in range(self.BATCHES):
            _warm_up(self)

    def __call__(self) -> None:
        self.optimizer.apply_gradients([(next(self._turns), self.table)])


# Cached, because asv sets up a benchmark before every sample.
dense_step = functools.lru_cache(maxsize=1)(DenseStep)
sparse_step = functools.lru_cache(maxsize=1)(SparseStep)


def optimizer(variant: str, threads: str, **options: Any) -> Any:
    """`rmsjit.RMSprop` with the hyperparameters of all benchmarks."""
    momentum, centered = VARIANTS[variant]
    return rmsjit.RMSprop(
        LEARNING_RATE,
        RHO,
        momentum,
        EPSILON,
        centered=centered,
        num_threads=1 if threads == "one" else None,
        **options,
    )


def _warm_up(step: Step) -> None:
    for _ in range(SETTLED_AFTER):  # the first compiles and allocates
        step()
