"""Write the table of maps in reduced-state.md: what 8 bits could hold instead.

    python docs/make_state_maps.py            takes some minutes

The slots of the badly scaled regression are kept in float32 and rounded after each step, by chance,
to the numbers that a map of a row would have.  So a map needs no kernel to be tried.
"""

import numpy as np
from make_reduced_state import PAGE, PROBLEMS, RHO, SEEDS, final, train_regression, written

from rmsjit import RMSprop

FRACTION = 23  # bits of a float32

# The bits of the fraction, and how many numbers there are below the largest one, 0 included where
# numbers have signs: for rms, and for momentum.
NOW = (3, 256), (3, 128)
MAPS = {
    "both in 8 bits, as they are": NOW,
    "rms alone": (NOW[0], None),
    "momentum alone": (None, NOW[1]),
    "rms with a bit more of fraction, and half the range": ((4, 256), None),
    "rms with a bit more of fraction, in 9 bits": ((4, 512), None),
    "momentum with a bit more of fraction, and half the range": (None, (4, 128)),
    "both with a bit more of fraction, in 9 bits": ((4, 512), (4, 256)),
}


def rounded(values, fraction, count, signed, rng):
    """Numbers rounded by chance to those of a map whose largest number each row decides."""
    dropped = FRACTION - fraction
    sizes = np.abs(values).view(np.int32)
    levels = (sizes + rng.integers(0, 1 << dropped, values.shape, np.int32)) >> dropped
    largest = sizes.max(axis=1, keepdims=True) >> dropped
    least = np.maximum(largest - (count - 2), 0)
    levels = np.where(levels > least, levels, 0 if signed else least)
    return np.copysign((levels << dropped).view(np.float32), values)


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
                slot[...] = rounded(slot, *one, name == "momentum", self._rng)


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
    page = PAGE.read_text(encoding="utf-8")
    made = table()
    PAGE.write_text(written(page, "maps", made), encoding="utf-8")


if __name__ == "__main__":
    main()
