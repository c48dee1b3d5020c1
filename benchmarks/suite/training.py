"""What settings of training cost: the time of a step with one, relative to a step without."""

import numba  # noqa: F401 - so that asv loads it once and not in each process

from rmsjit.cli.stopwatch import median_times

from .common import DenseStep, dense_bytes, require

LARGE = 10_000_000
SETTINGS = {
    "decoupled decay": ("float32", {"weight_decay": 0.01}),
    "average of weights": ("float32", {"use_ema": True}),
    "slots in bfloat16": ("float32", {"state_dtype": "bfloat16"}),
    "slots in 8 bits": ("float32", {"state_dtype": "8bit"}),
    "master weights of bfloat16": ("bfloat16", {"master_weights": True}),
    "master weights of float16": ("float16", {"master_weights": True}),
}


class Setting:
    """One large variable; half types are compared with a float32 variable without the setting."""

    param_names = ("setting",)
    params = (list(SETTINGS),)
    rounds = 9

    def setup(self, setting):
        require(2 * dense_bytes(LARGE, 4, slots=2))
        dtype, options = SETTINGS[setting]
        self.steps = {
            "without": DenseStep((LARGE,)),
            "with": DenseStep((LARGE,), dtype=dtype, **options),
        }

    def track_ratio(self, setting):
        times = median_times(self.steps, self.rounds)
        return round(times["with"] / times["without"], 3)

    track_ratio.unit = "times a step without"


class Groups:
    """Small variables of a deep model in eight groups with rates of their own."""

    param_names = ("variables",)
    params = (["200x16", "200x1024"],)
    rounds = 201

    def setup(self, variables):
        count, size = map(int, variables.split("x"))
        self.steps = {"without": DenseStep((size,) * count), "with": DenseStep((size,) * count)}
        grouped = self.steps["with"]
        for number in range(8):
            grouped.optimizer.add_group(grouped.variables[number::8], lr_multiplier=1 + number / 8)
        grouped()

    def track_ratio(self, variables):
        times = median_times(self.steps, self.rounds)
        return round(times["with"] / times["without"], 3)

    track_ratio.unit = "times a step without"
