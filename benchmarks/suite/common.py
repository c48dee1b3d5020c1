"""What all benchmarks share: the numbers they run on, their steps, and the clock.

Importing this needs NumPy only, because a peer in `benchmarks.compare` may run in an environment
that has nothing of rmsjit; and it starts no threads, because asv forks after importing.
"""

import functools
import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

VARIANTS = {  # momentum, centered
    "plain": (0.0, False),
    "momentum": (0.9, False),
    "centered": (0.0, True),
    "both": (0.9, True),
}
# An epsilon this large bounds every update, so that variables stay finite in any number of steps.
LEARNING_RATE, RHO, EPSILON = 1e-3, 0.9, 0.1
THREADS = ("one", "all")
HEAVY = os.environ.get("RMSJIT_BENCH_HEAVY", "0") not in ("", "0")

Step = Callable[[], object]


# --- numbers --------------------------------------------------------------------------------


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name; bfloat16 is not NumPy's own."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def values(shape: int | Sequence[int], dtype: str, seed: int) -> np.ndarray:
    """Numbers of either sign between 0.5 and 1 in magnitude: nothing made of them is denormal."""
    drawn = np.random.default_rng(seed).random(shape, np.float32) - np.float32(0.5)
    drawn += np.copysign(np.float32(0.5), drawn)
    return drawn.astype(dtype_of(dtype))


def row_indices(rows: int, count: int, duplication: str, seed: int) -> np.ndarray:
    """Rows of a table, drawn evenly ("uniform") or as words occur in a text ("zipf", 1.2)."""
    rng = np.random.default_rng(seed)
    if duplication == "uniform":
        return rng.integers(0, rows, count)
    frequency = np.arange(1, rows + 1) ** -1.2
    ends = np.cumsum(frequency)
    ranks = np.searchsorted(ends, rng.random(count) * ends[-1])
    return np.random.default_rng(0).permutation(rows)[ranks]  # frequent rows lie anywhere


def slot_count(momentum: float, centered: bool) -> int:
    """How many slots a form of the rule has."""
    return 1 + bool(momentum) + bool(centered)


def dense_bytes(size: int, itemsize: int, slots: int, by_norm: bool = False) -> int:
    """What a step must move: the gradient in (twice for a norm), variable and slots in and out."""
    return size * itemsize * (1 + by_norm + 2 * (1 + slots))


def sparse_bytes(named: int, count: int, width: int, itemsize: int, slots: int) -> int:
    """The same for a gradient of `count` rows, which name `named` different rows of the table."""
    return width * itemsize * (count + named * 2 * (1 + slots))


def require(nbytes: int, heavy: bool = False) -> None:
    """Have asv skip a benchmark that is too large for the machine, or for an ordinary run.

    Raises
    ------
    NotImplementedError
        Which asv takes for "not applicable".
    """
    if heavy and not HEAVY:
        raise NotImplementedError("only with RMSJIT_BENCH_HEAVY=1")
    if nbytes > 0.7 * available_memory():
        raise NotImplementedError(f"needs {nbytes / 1e9:.1f} GB of memory")


def available_memory() -> float:
    """Bytes that can be had without swapping; infinite where that can't be told."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


# --- steps of rmsjit, compiled and with their memory touched ---------------------------------


@functools.lru_cache(maxsize=1)  # asv sets up before every sample
def dense_step(
    sizes: tuple[int, ...],
    dtype: str = "float32",
    variant: str = "plain",
    threads: str = "all",
    **options: Any,
) -> "DenseStep":
    """A step that updates variables of these sizes."""
    return DenseStep(sizes, dtype, variant, threads, options)


class DenseStep:
    """One `apply_gradients` of dense gradients; call it any number of times."""

    def __init__(
        self, sizes: tuple[int, ...], dtype: str, variant: str, threads: str, options: Any
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


@functools.lru_cache(maxsize=1)
def sparse_step(
    rows: int, width: int, count: int, duplication: str, mode: str, variant: str = "momentum"
) -> "SparseStep":
    """A step that updates rows of a table."""
    return SparseStep(rows, width, count, duplication, mode, variant)


class SparseStep:
    """One `apply_gradients` of a sparse gradient, in turn one of a few, so that caches forget."""

    BATCHES = 4

    def __init__(
        self, rows: int, width: int, count: int, duplication: str, mode: str, variant: str
    ) -> None:
        import rmsjit

        self.table = values((rows, width), "float32", seed=0)
        self.optimizer = optimizer(variant, "all", sparse=mode)
        self.batches, nbytes = [], []
        for seed in range(self.BATCHES):
            indices = row_indices(rows, count, duplication, seed)
            rows_of_gradient = values((count, width), "float32", seed + 1)
            self.batches.append(rmsjit.IndexedSlices(rows_of_gradient, indices))
            named = len(np.unique(indices))
            nbytes.append(sparse_bytes(named, count, width, 4, slot_count(*VARIANTS[variant])))
        self.nbytes = sum(nbytes) / len(nbytes)
        self._turn = 0
        for _ in range(self.BATCHES):
            _warm_up(self)

    def __call__(self) -> None:
        self._turn = (self._turn + 1) % self.BATCHES
        self.optimizer.apply_gradients([(self.batches[self._turn], self.table)])


def optimizer(variant: str, threads: str, **options: Any) -> Any:
    """`rmsjit.RMSprop` with the numbers of all benchmarks."""
    import rmsjit

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
    for _ in range(2):  # the first compiles and allocates, the second takes the quick way
        step()


# --- the clock ------------------------------------------------------------------------------


def calibrated(step: Step, least: float = 0.02) -> int:
    """How many calls fill `least` seconds, so that the clock's own cost does not count."""
    step()
    loops = 1
    while True:
        # The better of two, lest an interruption pass for a slow step.
        seconds = min(seconds_per_call(step, loops) for _ in range(2))
        if loops * seconds >= least / 2:
            return max(1, round(least / seconds))
        loops = max(2 * loops, int(0.6 * least / max(seconds, 1e-9)))


def seconds_per_call(step: Step, loops: int, finish: Step | None = None) -> float:
    """The mean time of `loops` calls, without pauses of the garbage collector.

    `finish` waits for what the calls have started, where they do not wait themselves.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(loops):
            step()
        if finish is not None:
            finish()
        return (time.perf_counter() - start) / loops
    finally:
        if collecting:
            gc.enable()


def median_times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of one call of each, which take turns so that all meet one machine."""
    loops = {name: calibrated(step) for name, step in steps.items()}
    times = [
        [seconds_per_call(step, loops[name]) for name, step in steps.items()] for _ in range(rounds)
    ]
    return dict(zip(steps, np.median(times, axis=0).tolist(), strict=True))
