"""Optax under jit, and a sparse step in plain JAX, in place thanks to donated buffers."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem
from benchmarks.suite.common import EPSILON, RHO


class Optax(Peer):
    name = "optax"
    packages = ("jax", "optax")

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        rule = optax.rmsprop(
            self.case.learning_rate,
            decay=RHO,
            eps=EPSILON,
            centered=self.case.centered,
            momentum=self.case.momentum or None,
        )
        if self.case.by_norm:
            rule = optax.chain(optax.clip_by_global_norm(problem.bound), rule)
        self.parameters = [jnp.array(variable) for variable in problem.variables]
        self.gradients = [jnp.array(gradient) for gradient in problem.gradients]
        self.state = rule.init(self.parameters)

        def update(parameters: Any, state: Any, gradients: Any) -> Any:
            updates, state = rule.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.sparse

    def step(self) -> None:
        self.parameters, self.state = self.update(self.parameters, self.state, self.gradients)

    def finish(self) -> None:
        jax.block_until_ready((self.parameters, self.state))

    def result(self) -> list[np.ndarray]:
        return [np.asarray(parameter, np.float32) for parameter in self.parameters]


class Scatter(Peer):
    """Sum duplicates, then gather, update and scatter the named rows.

    Duplicates are found without a sort: the last occurrence represents each row.
    """

    name = "jax-scatter"
    packages = ("jax",)

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.state = [jnp.array(problem.table)]
        slots = 1 + bool(self.case.momentum)
        self.state += [jnp.zeros_like(self.state[0]) for _ in range(slots)]
        batches = [
            (jnp.array(indices.astype(np.int32)), jnp.array(rows))
            for indices, rows in problem.batches
        ]
        self.batches = itertools.cycle(batches)
        self.update = jax.jit(
            functools.partial(_update_rows, self.case.learning_rate, self.case.momentum),
            donate_argnums=0,
        )

    @classmethod
    def supports(cls, case: Case) -> bool:
        return case.sparse and not case.centered and case.mode == "rows"

    def step(self) -> None:
        self.state = self.update(self.state, *next(self.batches))

    def finish(self) -> None:
        jax.block_until_ready(self.state)

    def result(self) -> list[np.ndarray]:
        return [np.asarray(self.state[0])]


def _update_rows(rate: float, momentum: float, state: Any, indices: Any, rows: Any) -> Any:
    table, rms, *rest = state
    count = len(indices)
    last = jnp.zeros(len(table), jnp.int32).at[indices].set(jnp.arange(count))[indices]
    g = jnp.zeros_like(rows).at[last].add(rows)[last]  # the sum, at every occurrence
    mean_square = RHO * rms[indices] + (1 - RHO) * g * g
    step = rate * g * jax.lax.rsqrt(mean_square + EPSILON)
    if momentum:
        step = momentum * rest[0][indices] + step
        rest = [rest[0].at[indices].set(step)]
    new_rows = table[indices] - step
    return [table.at[indices].set(new_rows), rms.at[indices].set(mean_square), *rest]
