"""A step of many small variables, and a step after a pause as in a training loop."""

import time

import numpy as np

import rmsjit

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


class RowsAsVariables:
    """Rows of a large array as variables of their own, by new views that are made in each step."""

    param_names = ("rows",)
    params = ([1, 3],)
    known, steps = 1_000, 2_000  # rows that have slots; steps per sample

    def setup(self, rows):
        array = np.zeros((100_000, 8))
        self.gradients = np.ones((rows, 8))
        self.optimizer, self.array = rmsjit.RMSprop(), array
        for _ in range(2):
            self._walk(rows, self.known // rows)

    def track_step(self, rows):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self._walk(rows, self.steps)
            times.append(time.perf_counter() - start)
        return round(1e6 * float(np.median(times)) / self.steps, 1)

    track_step.unit = "µs"

    def _walk(self, rows, steps):
        for step in range(steps):
            first = rows * step % (self.known - rows)
            views = [self.array[first + k] for k in range(rows)]
            self.optimizer.apply_gradients(list(zip(self.gradients, views, strict=True)))


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
