"""The cost of clipping in a step."""

from .common import dense_step

MODES = {
    "none": {},
    "clipvalue": {"clipvalue": 0.75},
    "clipnorm": {"clipnorm": 1.0},
    "global_clipnorm": {"global_clipnorm": 1.0},
}


class Clipping:
    """Eight variables, within the caches and larger; every bound is exceeded."""

    param_names = ("mode", "size")
    params = (list(MODES), [100_000, 1_250_000])

    def setup(self, mode, size):
        self.step = dense_step((size,) * 8, **MODES[mode])

    def time_step(self, mode, size):
        self.step()
