"""Schedules of rmsjit, and the same ones of PyTorch and optax.

`CASES` has a schedule of rmsjit and a function that computes its values with the other library.
`make_schedules.py` writes these values to ``library_schedules.npz``.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmsjit.schedules import (
    Chain,
    CosineDecay,
    ExponentialDecay,
    ExponentialDecayRestarts,
    Join,
    LinearWarmup,
    OneCycle,
    PolynomialDecay,
    ReduceOnPlateau,
)

STEPS = 120
# Falls, stays, rises, and falls again; then what a run that diverges gives.
METRICS = [
    *np.round(5.0 * 0.8 ** np.arange(12), 3),
    *[0.43] * 9,
    *np.round(0.43 + 0.01 * np.arange(12), 3),
    *np.round(0.4 * 0.97 ** np.arange(12), 3),
    *[math.nan, math.inf, math.inf, 0.1, 0.09999, 0.1, 0.1, 0.1, 0.1, -1.0, -1.00001, -1.0],
]


@dataclass(frozen=True)
class Case:
    """A schedule and its twin: a class or function of a library, and what makes it."""

    schedule: Any
    library: str
    make: Any

    def values(self):
        """The values of the library."""
        return {"torch": torch_values, "optax": optax_values}[self.library](self.make)


class Plateau:
    """A twin that is fed with `METRICS`, a value before each."""

    def __init__(self, **arguments):
        self.arguments = arguments


def torch_values(make):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    if isinstance(make, Plateau):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0, **make.arguments)
        arguments = [(metric,) for metric in METRICS[:-1]]
    else:
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        arguments = [()] * (STEPS - 1)
    values = [optimizer.param_groups[0]["lr"]]
    for one in arguments:
        optimizer.step()
        scheduler.step(*one)
        values.append(optimizer.param_groups[0]["lr"])
    return np.array(values)


def optax_values(make):
    import optax

    if not isinstance(make, Plateau):
        schedule = make(optax)
        return np.array([float(schedule(step)) for step in range(STEPS)])
    from optax.contrib import reduce_on_plateau

    transform = reduce_on_plateau(**make.arguments)
    weight = np.float32(0)
    state, values = transform.init(weight), []
    for metric in METRICS:
        values.append(0.5 * float(state.scale))
        _, state = transform.update(weight, state, value=metric)
    return np.array(values)


def one_cycle(**arguments):
    def make(schedulers, optimizer):
        return schedulers.OneCycleLR(
            optimizer, max_lr=0.5, total_steps=STEPS, cycle_momentum=False, **arguments
        )

    return Case(OneCycle(0.5, STEPS, **arguments), "torch", make)


def torch_warmup(schedulers, optimizer):
    warmup = schedulers.LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=10)
    after = schedulers.ExponentialLR(optimizer, gamma=0.96)
    return schedulers.SequentialLR(optimizer, [warmup, after], milestones=[10])


def torch_chain(schedulers, optimizer):
    fast = schedulers.ExponentialLR(optimizer, gamma=0.98)
    stairs = schedulers.StepLR(optimizer, step_size=25, gamma=0.5)
    return schedulers.ChainedScheduler([fast, stairs], optimizer=optimizer)


def optax_warmup(optax):
    cosine = optax.cosine_decay_schedule(0.5, decay_steps=80, alpha=0.1)
    return optax.join_schedules([optax.linear_schedule(0.0, 0.5, 20), cosine], [20])


def optax_join(optax):
    schedules = [
        optax.constant_schedule(0.25),
        optax.exponential_decay(0.5, transition_steps=10, decay_rate=0.5),
        optax.polynomial_schedule(0.1, 0.01, power=2, transition_steps=40),
    ]
    return optax.join_schedules(schedules, [30, 55])


def optax_restarts(first, t_mul, m_mul):
    def make(optax):
        lengths = [first * t_mul**period for period in range(6)]
        schedules = [
            optax.exponential_decay(0.5 * m_mul**period, length, 0.1)
            for period, length in enumerate(lengths)
        ]
        return optax.join_schedules(schedules, np.cumsum(lengths)[:-1].tolist())

    schedule = ExponentialDecayRestarts(0.5, first, 0.1, t_mul=t_mul, m_mul=m_mul)
    return Case(schedule, "optax", make)


def torch_plateau(**arguments):
    ours = {"min_learning_rate" if k == "min_lr" else k: v for k, v in arguments.items()}
    return Case(ReduceOnPlateau(0.5, **ours), "torch", Plateau(**arguments))


def optax_plateau(patience, rtol, **arguments):
    ours = ReduceOnPlateau(0.5, patience=patience - 1, threshold=rtol, **arguments)
    return Case(ours, "optax", Plateau(patience=patience, rtol=rtol, atol=0.0, **arguments))


CASES = {
    "one_cycle": one_cycle(),
    "one_cycle_linear": one_cycle(anneal_strategy="linear", pct_start=0.5, div_factor=10.0),
    "one_cycle_three_phase": one_cycle(three_phase=True, pct_start=0.4, final_div_factor=100.0),
    "one_cycle_linear_three_phase": one_cycle(three_phase=True, anneal_strategy="linear"),
    "one_cycle_without_rise": one_cycle(pct_start=0.0),
    "one_cycle_without_fall": one_cycle(pct_start=1.0),
    "warmup_torch": Case(
        LinearWarmup(ExponentialDecay(0.5, 1, 0.96), 10, 0.05), "torch", torch_warmup
    ),
    "warmup_optax": Case(LinearWarmup(CosineDecay(0.5, 80, 0.1), 20), "optax", optax_warmup),
    "join_optax": Case(
        Join([0.25, ExponentialDecay(0.5, 10, 0.5), PolynomialDecay(0.1, 40, 0.01, 2)], [30, 55]),
        "optax",
        optax_join,
    ),
    "chain_torch": Case(
        Chain([ExponentialDecay(0.5, 1, 0.98), ExponentialDecay(1.0, 25, 0.5, staircase=True)]),
        "torch",
        torch_chain,
    ),
    "restarts": optax_restarts(10, 2, 0.5),
    "restarts_of_equal_length": optax_restarts(20, 1, 1.0),
    "restarts_that_rise": optax_restarts(5, 3, 1.5),
    "plateau": torch_plateau(factor=0.5, patience=2),
    "plateau_impatient": torch_plateau(factor=0.9, patience=0, cooldown=1),
    "plateau_with_cooldown": torch_plateau(factor=0.5, patience=1, cooldown=4, threshold=0.05),
    "plateau_with_minimum": torch_plateau(factor=0.1, patience=1, min_lr=0.003),
    "plateau_absolute": torch_plateau(threshold_mode="abs", threshold=0.02, patience=3),
    "plateau_of_maximum": torch_plateau(mode="max", factor=0.8, patience=1),
    "plateau_of_maximum_absolute": torch_plateau(mode="max", threshold_mode="abs", patience=2),
    "plateau_optax": optax_plateau(patience=3, rtol=1e-3, factor=0.5),
    "plateau_optax_with_cooldown": optax_plateau(patience=2, rtol=0.01, factor=0.5, cooldown=3),
}


def values_of(schedule):
    """The values of rmsjit for a case: over the steps, or before each of `METRICS`."""
    if not isinstance(schedule, ReduceOnPlateau):
        return schedule.curve(STEPS)
    fresh, values = type(schedule).from_config(schedule.get_config()), []
    for metric in METRICS:
        values.append(fresh(0))
        fresh.update(metric)
    return np.array(values)
