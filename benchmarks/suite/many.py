"""A step of many small variables, and a step after a pause as in a training loop."""

import time

import numpy as np

import rmsjit
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

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
    """Rows of a large array as variables of their own, by new views that are made in each step.

    `track_over_numpy` does not depend on the speed at which the machine runs just then.
    """

    param_names = ("rows",)
    params = ([1, 3],)
    known, steps, rounds = 1_000, 200, 50  # rows that have slots; steps of each round

    def setup(self, rows):
        array = np.zeros((100_000, 8))
        self.gradients = np.ones((rows, 8))
        self.optimizer, self.array = rmsjit.RMSprop(), array
        self.numpy = NumPyRMSprop(lambda step: 1e-3)
        self.pairs = list(zip(self.gradients, array[-rows:], strict=True))
        for _ in range(3):
            self._walk(rows, self.known // rows)

    def track_step(self, rows):
        return round(1e6 * float(np.median(self._times(rows)[0])) / self.steps, 1)

    track_step.unit = "µs"

    def track_over_numpy(self, rows):
        """How many times as long as a step of as many rows by NumPy in place, without new views."""
        own, of_numpy = self._times(rows)
        return round(float(np.median(own / of_numpy)), 2)

    track_over_numpy.unit = "times"

    def _times(self, rows):
        """Seconds of each round, and of as many steps by NumPy just after it."""
        times = np.zeros((2, self.rounds))
        for k in range(self.rounds):
            start = time.perf_counter()
            self._walk(rows, self.steps)
            between = time.perf_counter()
            for _ in range(self.steps):
                self.numpy.apply_gradients(self.pairs)
            times[:, k] = between - start, time.perf_counter() - between
        return times

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
