"""Write the table of maps in reduced-state.md: what other maps and roundings would do.

    python docs/make_state_maps.py            takes some minutes

The slots of the badly scaled regression are kept in float32 and rounded after each step, by chance,
to the numbers that a map of a row would have.  So a map needs no kernel to be tried.
"""

from typing import NamedTuple

import numpy as np
from make_reduced_state import PAGE, PROBLEMS, RHO, SEEDS, final, train_regression, written

from rmsjit import RMSprop

FRACTION = 23  # bits of a float32


class Map(NamedTuple):
    """The numbers of a row: the bits of their fraction, and how many there are, 0 included.

    Those with signs are differences from the smallest one.
    """

    fraction: int
    count: int
    raised: float = 0  # how often the larger one of two chances decides


RMS, MOMENTUM = Map(3, 256, 1 / 32), Map(4, 128)
MEAN_RMS, WIDE_MOMENTUM = Map(3, 256), Map(3, 128)
MAPS = {
    "both in 8 bits, as they are": (RMS, MOMENTUM),
    "rms alone": (RMS, None),
    "momentum alone": (None, MOMENTUM),
    "rms with the right mean": (MEAN_RMS, None),
    "momentum with one bit less of fraction, and twice the range": (None, WIDE_MOMENTUM),
    "both of these": (MEAN_RMS, WIDE_MOMENTUM),
    "rms with one more bit of fraction, and half the range": (Map(4, 256, 1 / 64), None),
    "both with one more bit, in 9 bits": (Map(4, 512, 1 / 64), Map(5, 256)),
}


def rounded(values, one, signed, rng):
    """Numbers rounded by chance to those of a map whose largest number each row decides."""
    dropped, count = FRACTION - one.fraction, one.count
    sizes = np.abs(values).view(np.int32)
    least = np.maximum((sizes.max(axis=1, keepdims=True) >> dropped) - (count - 3), 0)
    base = (least << dropped).view(np.float32) if signed else np.float32(0)
    sizes = (np.abs(values) + base).view(np.int32)
    chances = rng.random((2, *values.shape))
    is_raised = rng.random((len(values), 1)) < one.raised
    chance = np.where(is_raised, chances.max(axis=0), chances[0])
    levels = (sizes + (chance * (1 << dropped)).astype(np.int32)) >> dropped
    sizes = (np.maximum(levels, least) << dropped).view(np.float32) - base
    return np.copysign(sizes, values)


class Rounding:
    """An optimizer whose slots are rounded after each step."""

    def __init__(self, maps, seed):
        rate = PROBLEMS["badly scaled regression"][1]
        self._optimizer = RMSprop(rate, rho=RHO, momentum=0.9)
        self._maps = dict(zip(("rms", "momentum"), maps, strict=True))
        self._rng = np.random.default_rng([seed, 1])

    def apply_gradients(self, pairs):
        ((gradient, variable),) = pairs
        self._optimizer.apply_gradients([(gradient, variable)])
        for name, one in self._maps.items():
            if one is not None:
                slot = self._optimizer.get_slot(variable, name).array
                slot[...] = rounded(slot, one, name == "momentum", self._rng)


def losses_of(maps):
    return final(np.array([list(train_regression(Rounding(maps, s), s)) for s in SEEDS]))


def table():
    reference = losses_of((None, None))
    rows = ["| slots | loss |", "| --- | --- |"]
    for name, maps in MAPS.items():
        ratios = losses_of(maps) / reference
        low, high = ratios.min(), ratios.max()
        rows.append(f"| {name} | {ratios.mean():.3f} ({low:.3f} to {high:.3f}) |")
    return "\n".join(rows)


def main():
    made = table()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(page, "maps", made), encoding="utf-8")


if __name__ == "__main__":
    main()
