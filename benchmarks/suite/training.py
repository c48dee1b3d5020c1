"""What settings of training cost: the time of a step with one, relative to a step without."""

import numba  # noqa: F401 - so that asv loads it once and not in each process
import numpy as np

from rmsjit.cli.stopwatch import median_times
from rmsjit.runtime.trials import SETTLED_AFTER

from .common import DenseStep, dense_bytes, require

LARGE = 10_000_000
SIDE = 2048  # of a square variable
GRADIENTS = {
    "transposed": np.asfortranarray,
    "every second number": lambda gradient: np.repeat(gradient, 2, axis=1)[:, ::2],
    "float64": lambda gradient: gradient.astype(np.float64),
}
SETTINGS = {
    "decoupled decay": ("float32", {"weight_decay": 0.01}),
    "average of weights": ("float32", {"use_ema": True}),
    "gradients of four calls": ("float32", {"gradient_accumulation_steps": 4}),
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


class CopiedGradient:
    """Gradients that kernels can't read where they are."""

    param_names = ("gradient",)
    params = (list(GRADIENTS),)
    rounds = 9

    def setup(self, gradient):
        require(6 * dense_bytes(SIDE**2, 4, slots=1))
        self.steps = {"without": DenseStep((SIDE**2,)), "with": DenseStep((SIDE**2,))}
        step = self.steps["with"]
        step.variables = [step.variables[0].reshape(SIDE, SIDE)]
        step.gradients = [GRADIENTS[gradient](step.gradients[0].reshape(SIDE, SIDE))]
        for _ in range(SETTLED_AFTER):
            step()

    def track_ratio(self, gradient):
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
