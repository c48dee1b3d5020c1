"""A step of many small variables, and a step after a pause as in a training loop."""

import time

import numpy as np

from .common import THREADS, dense_step

LISTS = {"1x100": (100,), "1x100000": (100_000,), "200x16": (16,) * 200, "200x1024": (1024,) * 200}
PAUSE = 0.005


class ManySmall:
    """The weights and biases of a deep model in one call."""

    param_names = ("variables", "threads")
    params = (["200x16", "200x1024"], THREADS)

    def setup(self, variables, threads):
        self.step = dense_step(LISTS[variables], threads=threads)

    def time_step(self, variables, threads):
        self.step()


class AfterPause:
    """Threads sleep between the steps of a training loop and must be woken."""

    param_names = ("variables",)
    params = (list(LISTS),)
    steps = 50

    def setup(self, variables):
        self.step = dense_step(LISTS[variables])

    def track_step(self, variables):
        return round(1e6 * float(np.median([self._after_pause() for _ in range(self.steps)])), 1)

    track_step.unit = "µs"

    def _after_pause(self):
        time.sleep(PAUSE)
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start
