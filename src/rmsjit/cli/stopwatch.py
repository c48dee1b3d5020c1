"""How long calls take that are compared with each other."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

_SAMPLE_SECONDS = 0.01

Step = Callable[[], object]


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
