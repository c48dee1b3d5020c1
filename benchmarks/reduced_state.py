"""What slots in bfloat16 and in 8 bits gain: ``python -m benchmarks.reduced_state [SIZE ...]``.

For each size it compares steps of one float32 variable, in interleaved rounds, and prints for each
dtype of the slots:

- ``slots``: their bytes, relative to those of float32;
- ``median``, ``minimum``: the time of a step, relative to that with slots in float32;
- ``floor``: the median, relative to a loop with the same loads and stores (`rmsjit.cli.floor`).

The default sizes need 3 GB.
"""

import argparse
import os
import statistics

import numpy as np

import rmsjit
from rmsjit.cli.floor import fastest_floor
from rmsjit.cli.stopwatch import seconds_per_call
from rmsjit.runtime.trials import SETTLED_AFTER

SIZES = (16_000_000, 64_000_000)
SLOTS = {"rms": {}, "rms and momentum": {"momentum": 0.9}}
DTYPES = {"float32": "uint32", "bfloat16": "uint16", "8bit": "uint8"}  # and that of the floor


class Step:
    """A step of one variable, and the memory of its slots."""

    def __init__(self, gradient, state_dtype, settings):
        self.variable = np.zeros_like(gradient)
        self.optimizer = rmsjit.RMSprop(1e-3, state_dtype=state_dtype, **settings)
        self._pairs = [(gradient, self.variable)]

    def __call__(self):
        self.optimizer.apply_gradients(self._pairs)

    @property
    def slot_bytes(self):
        slots = self.optimizer._store.find(self.variable).slots
        return sum(slot.nbytes for slot in slots.values())


def interleaved(rivals, rounds):
    """The seconds of each call of each rival, taken in turns."""
    for call in rivals.values():
        for _ in range(SETTLED_AFTER):
            call()
    times = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            times[name].append(seconds_per_call(call, 1))
    return times


def compare(size, settings, rounds):
    """A line of the table for each dtype of the slots."""
    gradient = np.random.default_rng(0).standard_normal(size, np.float32)
    count = 1 + len(settings)
    steps = {dtype: Step(gradient, dtype, settings) for dtype in DTYPES}
    written = [np.zeros(size, "uint32"), *(np.zeros(size, "uint32") for _ in range(count))]
    floors = {
        dtype: fastest_floor(
            gradient, [written[0], *(a.view(bits)[:size] for a in written[1:])], os.cpu_count()
        )
        for dtype, bits in DTYPES.items()
    }
    rivals = {**steps, **{f"floor {dtype}": floor for dtype, floor in floors.items()}}
    times = interleaved(rivals, rounds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    wide = medians["float32"], min(times["float32"]), steps["float32"].slot_bytes
    for dtype, step in steps.items():
        yield (
            f"{dtype} | {step.slot_bytes / wide[2]:.3f} | {medians[dtype] / wide[0]:.2f} | "
            f"{min(times[dtype]) / wide[1]:.2f} | {medians[dtype] / medians[f'floor {dtype}']:.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print("| elements | state | dtype | slots | median | minimum | floor |")
    print("| --- " * 7 + "|")
    for size in given.sizes:
        for name, settings in SLOTS.items():
            for line in compare(size, settings, given.rounds):
                print(f"| {size:,} | {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
