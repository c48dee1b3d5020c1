"""``python -m rmsjit bench``: the speed of a step on this machine and the limit set by memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import SUPPORTED, dtype_named
from rmsjit.cli.stopwatch import Step, median_times
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.runtime.trials import SETTLED_AFTER

VARIANTS = {  # momentum, centered
    "plain": (0.0, False),
    "momentum": (0.9, False),
    "centered": (0.0, True),
    "both": (0.9, True),
}
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 5
# An epsilon this large bounds every update, so that variables stay finite in any number of steps.
LEARNING_RATE, RHO, EPSILON = 1e-3, 0.9, 0.1

Array = NDArray[Any]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed of a step on this machine",
        description="Measure the speed of a step on this machine, and compare it with a loop that "
        "only reads and writes the same arrays (the floor) and with hand-written NumPy.",
    )
    add = parser.add_argument
    sizes = "numbers of elements (default: 1000 to 10 million)"
    add("--sizes", type=_count, nargs="+", default=SIZES, metavar="N", help=sizes)
    variants = f"of {', '.join(VARIANTS)} (default: all)"
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="VARIANT",
        help=variants,
    )
    dtypes = f"of variable and gradient: {', '.join(SUPPORTED)} (default: float32)"
    add("--dtype", choices=SUPPORTED, default="float32", metavar="NAME", help=dtypes)
    add("--threads", type=_count, metavar="N", help="the most threads (default: all)")
    rounds = f"rounds to take the median of (default: {ROUNDS})"
    add("--rounds", type=_count, default=ROUNDS, metavar="N", help=rounds)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    try:
        dtype = dtype_named(arguments.dtype)
    except ImportError:
        print("rmsjit bench: bfloat16 needs the package ml_dtypes", file=sys.stderr)
        return 2
    from rmsjit.runtime.processors import thread_limit

    count = min(arguments.threads or thread_limit(), thread_limit())
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
GB/s   bytes that a step must read and write, divided by its time
floor  GB/s of a loop that reads and writes the same arrays and computes nothing
share  speed of the step relative to the floor
NumPy  the rule in hand-written, in-place NumPy; ratio: its time divided by that of the step"""


def _heading(dtype: str, count: int) -> str:
    from rmsjit.runtime import threads

    where = f"{count} threads ({threads.layer_name()})" if count > 1 else "1 thread"
    return f"RMSprop on {dtype} with {where}, medians of interleaved rounds"


def _human_time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _count(text: str) -> int:
    """Parse a positive whole number, which may be written as 1e6."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number >= 1 or not number.is_integer():
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(number)


# --- measuring ------------------------------------------------------------------------------


def _measured(size: int, variant: str, dtype: np.dtype[Any], threads: int, rounds: int) -> Line:
    from rmsjit.cli.floor import fastest_floor

    momentum, centered = VARIANTS[variant]
    gradient, variable = values(size, dtype, seed=1), values(size, dtype, seed=2)
    optimizer = RMSprop(
        LEARNING_RATE, RHO, momentum, EPSILON, centered=centered, num_threads=threads
    )

    def step() -> None:
        optimizer.apply_gradients([(gradient, variable)])

    for _ in range(SETTLED_AFTER):
        step()
    copy = variable.copy()
    by_hand = NumPyRMSprop(lambda step: LEARNING_RATE, RHO, momentum, EPSILON, centered=centered)
    slots = [optimizer.get_slot(variable, name).array for name in optimizer.get_slot_names()]
    rivals: dict[str, Step] = {
        "rmsjit": step,
        "floor": fastest_floor(gradient, [variable, *slots], threads),
        "numpy": lambda: by_hand.apply_gradients([(gradient, copy)]),
    }
    medians = median_times(rivals, rounds)
    return Line(size, variant, step_bytes(size, dtype, len(slots)), **medians)


def values(shape: int | Sequence[int], dtype: np.dtype[Any], seed: int) -> Array:
    """Random numbers of both signs with magnitudes of 0.5 to 1, which lead to no denormals."""
    drawn = np.random.default_rng(seed).random(shape, np.float32) - np.float32(0.5)
    drawn += np.copysign(np.float32(0.5), drawn)
    return drawn.astype(dtype)


def step_bytes(size: int, dtype: np.dtype[Any], slots: int) -> int:
    """The bytes a step must move: read the gradient, read and write the variable and each slot."""
    return size * dtype.itemsize * (1 + 2 * (1 + slots))
