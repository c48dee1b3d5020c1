"""A step of one dense variable: by size, form of the rule, dtype and threads.

The full product would take hours, so each class varies one thing (and the threads) around the same
centre: 1,000,000 elements, plain, float32.
"""

import numba  # noqa: F401 - so that asv loads it once and not in each process

from rmsjit.cli.floor import fastest_floor
from rmsjit.cli.stopwatch import median_times
from rmsjit.runtime.processors import thread_limit

from .common import THREADS, VARIANTS, dense_bytes, dense_step, require

MIDDLE = 1_000_000
ORDINARY = 10_000_000  # larger ones run only with RMSJIT_BENCH_HEAVY=1


class Size:
    """One array, from the size of a bias to that of a large model."""

    param_names = ("size", "threads")
    params = ([10**power for power in range(2, 9)], THREADS)

    def setup(self, size, threads):
        require(dense_bytes(size, 4, slots=1), heavy=size > ORDINARY)
        self.step = dense_step((size,), threads=threads)

    def time_step(self, size, threads):
        self.step()


class Variant:
    """Every set of slots."""

    param_names = ("variant", "threads")
    params = (list(VARIANTS), THREADS)

    def setup(self, variant, threads):
        self.step = dense_step((MIDDLE,), variant=variant, threads=threads)

    def time_step(self, variant, threads):
        self.step()


class Dtype:
    """Every dtype, plain."""

    param_names = ("dtype",)
    params = (["float16", "bfloat16", "float32", "float64", "complex64", "complex128"],)

    def setup(self, dtype):
        self.step = dense_step((MIDDLE,), dtype=dtype)

    def time_step(self, dtype):
        self.step()


class Bandwidth:
    """A variable larger than the caches, compared with a loop that only moves the same arrays."""

    param_names = ("variant",)
    params = (list(VARIANTS),)
    rounds = 9

    def setup(self, variant):
        self.step = dense_step((ORDINARY,), variant=variant)

    def track_speed(self, variant):
        seconds = median_times({"step": self.step}, self.rounds)["step"]
        return round(self.step.nbytes / seconds / 1e9, 2)

    track_speed.unit = "GB/s"

    def track_share_of_floor(self, variant):
        gradient, variable = self.step.gradients[0], self.step.variables[0]
        floor = fastest_floor(gradient, [variable, *self.step.slots()], thread_limit())
        times = median_times({"step": self.step, "floor": floor}, self.rounds)
        return round(100 * times["floor"] / times["step"], 1)

    track_share_of_floor.unit = "%"
