"""Timing function calls that are compared with each other."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

_SAMPLE_SECONDS = 0.01

Step = Callable[[], object]


def median_times(rivals: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds per call of each rival, measured in turns so that all see the same load."""
    loops = {name: calibrated(step) for name, step in rivals.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, step in rivals.items():
            times[name].append(seconds_per_call(step, loops[name]))
    return {name: statistics.median(samples) for name, samples in times.items()}


def calibrated(step: Step, least: float = _SAMPLE_SECONDS) -> int:
    """The number of calls that takes about `least` seconds."""
    step()
    loops = 1
    while True:
        # The better of two, so that an interruption doesn't make the step look slow.
        seconds = min(seconds_per_call(step, loops) for _ in range(2))
        if loops * seconds >= least / 2:
            return max(1, round(least / seconds))
        loops = max(2 * loops, int(0.6 * least / max(seconds, 1e-9)))


def seconds_per_call(step: Step, loops: int, finish: Step | None = None) -> float:
    """The mean time of `loops` calls, without pauses of the garbage collector.

    `finish` waits for work that the calls have only started.
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
