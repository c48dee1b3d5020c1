"""A step where other programs keep every core busy: ``python -m benchmarks.crowded [SIZE]``.

A process spins on each core.  An optimizer that may use all threads and one with a single thread
take turns, with a variable each.  It prints the times of a step in milliseconds, the medians of the
rounds, and their ratio; and the same without the other processes.
"""

import argparse
import multiprocessing
import os

import numpy as np

import rmsjit
from rmsjit.cli.stopwatch import median_times
from rmsjit.runtime.trials import SETTLED_AFTER

CONTEXT = multiprocessing.get_context("spawn")


def spin():
    """Keep a core busy until this process is ended."""
    while True:
        pass


def step_of(size, num_threads):
    """A step of one variable."""
    variable, gradient = np.zeros(size, np.float32), np.ones(size, np.float32)
    optimizer = rmsjit.RMSprop(1e-3, num_threads=num_threads)
    return lambda: optimizer.apply_gradients([(gradient, variable)])


def measure(size, rounds):
    """The median times of a step with all threads and with one, in milliseconds."""
    steps = {"free": step_of(size, None), "one thread": step_of(size, 1)}
    for step in steps.values():
        for _ in range(SETTLED_AFTER):
            step()
    return {name: 1e3 * seconds for name, seconds in median_times(steps, rounds).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("size", nargs="?", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    for crowd in (0, len(os.sched_getaffinity(0))):
        others = [CONTEXT.Process(target=spin, daemon=True) for _ in range(crowd)]
        for other in others:
            other.start()
        free, serial = measure(arguments.size, arguments.rounds).values()
        print(f"{crowd} busy  free {free:.3f}  one thread {serial:.3f}  ratio {free / serial:.2f}")
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()
