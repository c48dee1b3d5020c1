"""``python -m rmsjit bench``: how fast a step is on this machine, beside what its memory allows."""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import SUPPORTED
from rmsjit.optimizers.keras_legacy import RMSprop

VARIANTS = {  # momentum, centered
    "plain": (0.0, False),
    "momentum": (0.9, False),
    "centered": (0.0, True),
    "both": (0.9, True),
}
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 5
LEARNING_RATE, RHO, EPSILON = 1e-3, 0.9, 0.1  # so large an epsilon bounds what many steps add up to
_SAMPLE_SECONDS = 0.01

Array = NDArray[Any]
Step = Callable[[], object]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed of a step on this machine",
        description="Measure the speed of a step on this machine: beside a loop that only reads "
        "and writes the same arrays (the floor), and beside the rule in hand-written NumPy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", type=_count, nargs="+", default=SIZES, metavar="N", help="elements")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of the rule")
    add("--dtype", choices=SUPPORTED, default="float32", help="of variable and gradient")
    add("--threads", type=_count, metavar="N", help="the most threads (default: all there are)")
    add("--rounds", type=_count, default=ROUNDS, metavar="N", help="of which medians are shown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    try:
        dtype = dtype_of(arguments.dtype)
    except ImportError:
        print("rmsjit bench: bfloat16 needs the package ml_dtypes", file=sys.stderr)
        return 2
    from rmsjit.runtime import threads

    count = min(arguments.threads or threads.thread_limit(), threads.thread_limit())
    print(f"{_heading(arguments.dtype, count)}\n\n{_COLUMNS}")
    for size in arguments.sizes:
        for variant in arguments.variants:
            print(_measured(size, variant, dtype, count, arguments.rounds), flush=True)
    print(_LEGEND)
    return 0


class Line(NamedTuple):
    """One line of the table: seconds of a step, of the floor loop and of NumPy."""

    size: int
    variant: str
    nbytes: int
    rmsjit: float
    floor: float
    numpy: float

    def __str__(self) -> str:
        speed, floor = (self.nbytes / seconds / 1e9 for seconds in (self.rmsjit, self.floor))
        return (
            f"{self.size:>12,}  {self.variant:8}  {_human_time(self.rmsjit):>10}  {speed:>7.1f}  "
            f"{floor:>7.1f}  {self.floor / self.rmsjit:>6.0%}  {_human_time(self.numpy):>10}  "
            f"{self.numpy / self.rmsjit:>7.1f}x"
        )


_COLUMNS = (
    f"{'elements':>12}  {'variant':8}  {'step':>10}  {'GB/s':>7}  {'floor':>7}  {'share':>6}  "
    f"{'NumPy':>10}  {'ratio':>8}"
)
_LEGEND = """
step   one apply_gradients of one variable
GB/s   bytes that a step must read and write, by its time
floor  GB/s of a loop that reads and writes the same arrays and computes nothing
share  of the floor's speed that the step reaches
NumPy  the rule in hand-written, in-place NumPy; ratio: its time by that of the step"""


def _heading(dtype: str, count: int) -> str:
    from rmsjit.runtime import threads

    where = f"{count} threads ({threads.threading_layer()})" if count > 1 else "1 thread"
    return f"RMSprop on {dtype} with {where}, medians of interleaved rounds"


def _human_time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _count(text: str) -> int:
    """A positive whole number, which may be written as 1e6."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(number)


# --- what is measured -----------------------------------------------------------------------


def _measured(size: int, variant: str, dtype: np.dtype[Any], threads: int, rounds: int) -> Line:
    momentum, centered = VARIANTS[variant]
    gradient, variable = values(size, dtype, seed=1), values(size, dtype, seed=2)
    optimizer = RMSprop(
        LEARNING_RATE, RHO, momentum, EPSILON, centered=centered, num_threads=threads
    )

    def step() -> None:
        optimizer.apply_gradients([(gradient, variable)])

    step()
    slots = {name: optimizer.get_slot(variable, name).array for name in optimizer.get_slot_names()}
    rivals: dict[str, Step] = {
        "rmsjit": step,
        "floor": fastest_floor(gradient, variable, slots, threads),
        "numpy": NumPyStep(gradient, variable, momentum, centered),
    }
    medians = median_times(rivals, rounds)
    return Line(size, variant, step_bytes(size, dtype, len(slots)), **medians)


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of a name; bfloat16 is not NumPy's own."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def values(size: int, dtype: np.dtype[Any], seed: int) -> Array:
    """Numbers of either sign between 0.5 and 1 in magnitude: nothing made of them is denormal."""
    drawn = np.random.default_rng(seed).random(size, np.float32) - np.float32(0.5)
    drawn += np.copysign(np.float32(0.5), drawn)
    return drawn.astype(dtype)


def step_bytes(size: int, dtype: np.dtype[Any], slots: int) -> int:
    """What a step must move: the gradient in, the variable and each slot in and out."""
    return size * dtype.itemsize * (1 + 2 * (1 + slots))


class NumPyStep:
    """The rule in NumPy, in place and without new arrays; float16 and the like as they come."""

    def __init__(self, gradient: Array, variable: Array, momentum: float, centered: bool) -> None:
        self._gradient, self._variable = gradient, variable.copy()
        self._rms, self._scratch = np.zeros_like(variable), np.empty_like(variable)
        self._mg = np.zeros_like(variable) if centered else None
        self._momentum = np.zeros_like(variable) if momentum else None
        self._factor = momentum

    def __call__(self) -> None:
        gradient, scratch, rms = self._gradient, self._scratch, self._rms
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - RHO
        rms *= RHO
        rms += scratch
        if self._mg is None:
            np.sqrt(rms, out=scratch)
        else:
            self._take_root_of_variance(self._mg)
        scratch += EPSILON
        np.divide(gradient, scratch, out=scratch)
        scratch *= LEARNING_RATE
        if self._momentum is not None:
            self._momentum *= self._factor
            self._momentum += scratch
            scratch = self._momentum
        self._variable -= scratch

    def _take_root_of_variance(self, mg: Array) -> None:
        scratch = self._scratch
        np.multiply(self._gradient, 1 - RHO, out=scratch)
        mg *= RHO
        mg += scratch
        np.multiply(mg, mg, out=scratch)
        np.subtract(self._rms, scratch, out=scratch)
        if scratch.dtype.kind != "c":
            np.maximum(scratch, 0, out=scratch)
        np.sqrt(scratch, out=scratch)


# --- the floor ------------------------------------------------------------------------------


def fastest_floor(
    gradient: Array, variable: Array, slots: Mapping[str, Array], threads: int
) -> Step:
    """The loop of a step's loads and stores, on one thread or on all, whichever is faster.

    It leaves every value as it is.

    Parameters
    ----------
    gradient, variable : ndarray
        Contiguous.
    slots : dict of str to ndarray
        "rms", "mg" and "momentum", the latter two if the form has them.
    threads : int
        The most threads.
    """
    rivals = {"one": floor(gradient, variable, slots, 1)}
    if threads > 1:
        rivals["all"] = floor(gradient, variable, slots, threads)
    times = median_times(rivals, rounds=3)
    return rivals[min(times, key=times.__getitem__)]


def floor(gradient: Array, variable: Array, slots: Mapping[str, Array], wanted: int) -> Step:
    """The loop on `wanted` threads; see `fastest_floor`."""
    from rmsjit.runtime import threads

    arrays = [_as_bits(array) for array in (gradient, variable, slots["rms"])]
    others = [_as_bits(slots[name]) if name in slots else None for name in ("mg", "momentum")]
    nothing = np.zeros(1, arrays[0].dtype)
    dtype = arrays[0].dtype.name
    present = tuple(array is not None for array in others)

    def run() -> None:
        granted = threads.acquire(wanted)
        try:
            _floor_kernel(dtype, *present, granted > 1)(*arrays, *others, nothing)
        finally:
            threads.release(granted)

    return run


def _as_bits(array: Array) -> Array:
    """The array's memory as unsigned integers."""
    width = min(array.dtype.itemsize, 8)
    return array.reshape(-1).view(f"u{width}")


@functools.cache
def _floor_kernel(dtype: str, mg: bool, momentum: bool, parallel: bool) -> Callable[..., Any]:
    from numba import from_dtype, prange, types

    from rmsjit.runtime.cache import compile_kernel

    def floor_loop(  # type: ignore[no-untyped-def]
        gradient, variable, rms, mg, momentum, nothing
    ):
        mask = nothing[0]  # zero, which the compiler does not know
        for i in prange(len(variable)):
            change = gradient[i] & mask
            rms[i] ^= change
            if mg is not None:
                mg[i] ^= change
            if momentum is not None:
                momentum[i] ^= change
            variable[i] ^= change

    array = types.Array(from_dtype(np.dtype(dtype)), 1, "C")
    others = [array if present else types.none for present in (mg, momentum)]
    signature = (array, array, array, *others, array)
    return compile_kernel(floor_loop, signature, parallel=parallel)


# --- the clock ------------------------------------------------------------------------------


def median_times(rivals: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of one call of each, which take turns so that all meet the machine in one mood."""
    loops = {name: calibrated(step) for name, step in rivals.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, step in rivals.items():
            times[name].append(seconds_per_call(step, loops[name]))
    return {name: statistics.median(samples) for name, samples in times.items()}


def calibrated(step: Step, least: float = _SAMPLE_SECONDS) -> int:
    """How many calls it takes to fill `least` seconds."""
    step()
    loops = 1
    while True:
        # The better of two, lest an interruption pass for a slow step.
        seconds = min(seconds_per_call(step, loops) for _ in range(2))
        if loops * seconds >= least / 2:
            return max(1, round(least / seconds))
        loops = max(2 * loops, int(0.6 * least / max(seconds, 1e-9)))


def seconds_per_call(step: Step, loops: int) -> float:
    """The mean of `loops` calls, without pauses of the garbage collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(loops):
            step()
        return (time.perf_counter() - start) / loops
    finally:
        if collecting:
            gc.enable()
