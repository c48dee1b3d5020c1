"""TensorFlow: the legacy optimizer of tf-keras and that of TF 1, which rmsjit replaces."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem, Rule
from benchmarks.suite.common import EPSILON, RHO


class TensorFlowPeer(Peer):
    packages = ("tensorflow",)

    @classmethod
    def supports(cls, case: Case) -> bool:
        rows = case.sparse and case.mode == "rows" and not case.centered
        return super().supports(case) or rows


class LegacyKeras(TensorFlowPeer):
    """`tf_keras.optimizers.legacy.RMSprop` in a `tf.function`, and without one ("eager")."""

    name = "tf-keras"
    packages = ("tf-keras", "tensorflow")

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        import tf_keras

        self.optimizer = tf_keras.optimizers.legacy.RMSprop(
            self.case.learning_rate,
            RHO,
            self.case.momentum,
            EPSILON,
            self.case.centered,
            **({"global_clipnorm": problem.bound} if self.case.by_norm else {}),
        )
        arrays = [problem.table] if self.case.sparse else problem.variables
        self.variables = [tf.Variable(array) for array in arrays]
        self.turns = itertools.cycle(_gradients(problem))
        self._function = tf.function(self._apply, reduce_retracing=True)

    @classmethod
    def supports(cls, case: Case) -> bool:
        return super().supports(case) or (not case.sparse and not case.is_half)

    @classmethod
    def rule(cls, case: Case) -> Rule:
        inside = case.momentum > 0
        return Rule(eps_in_root=inside, decays_all=case.sparse and not inside)

    def _apply(self, gradients: Any) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    def step(self) -> None:
        self._function(next(self.turns))

    def eager_step(self) -> None:
        self._apply(next(self.turns))

    def methods(self) -> dict[str, Callable[[], Any]]:
        return {self.name: self.step, "tf-keras-eager": self.eager_step}

    def result(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self.variables]


class TF1(TensorFlowPeer):
    """`tf.compat.v1.train.RMSPropOptimizer` in a graph and a session, as TF 1 ran it."""

    name = "tf1"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        v1 = tf.compat.v1
        arrays = [problem.table] if self.case.sparse else problem.variables
        with tf.Graph().as_default():
            self.variables, feeds = _fed_variables(arrays)
            optimizer = v1.train.RMSPropOptimizer(
                self.case.learning_rate,
                RHO,
                self.case.momentum,
                EPSILON,
                centered=self.case.centered,
            )
            turns, more = _fed_gradients(problem)
            feeds.update(more)
            train = [
                optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
                for gradients in turns
            ]
            options = v1.ConfigProto(
                intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
            )
            self.session = v1.Session(config=options)
            self.session.run(v1.global_variables_initializer(), feeds)
            self.calls = itertools.cycle([self.session.make_callable(step) for step in train])

    @classmethod
    def rule(cls, case: Case) -> Rule:
        return Rule(eps_in_root=True, start=1.0)

    def step(self) -> None:
        next(self.calls)()

    def result(self) -> list[np.ndarray]:
        return self.session.run(self.variables)


def _gradients(problem: Problem) -> list[list[Any]]:
    """The gradients of each turn, as tensors."""
    if not problem.case.sparse:
        return [[tf.constant(gradient) for gradient in problem.gradients]]
    shape = tf.constant(problem.table.shape)
    return [
        [tf.IndexedSlices(tf.constant(rows), tf.constant(indices), shape)]
        for indices, rows in problem.batches
    ]


def _fed_variables(arrays: list[np.ndarray]) -> tuple[list[Any], dict[Any, np.ndarray]]:
    """Variables with fed initial values, because a graph can't hold large constants."""
    v1 = tf.compat.v1
    feeds = {v1.placeholder(array.dtype, array.shape): array for array in arrays}
    return [v1.Variable(placeholder, use_resource=False) for placeholder in feeds], feeds


def _fed_gradients(problem: Problem) -> tuple[list[list[Any]], dict[Any, np.ndarray]]:
    if not problem.case.sparse:
        gradients, feeds = _fed_variables(problem.gradients)
        return [gradients], feeds
    turns, feeds = [], {}
    for indices, rows in problem.batches:
        (where, what), more = _fed_variables([indices, rows])
        turns.append([tf.IndexedSlices(what.read_value(), where.read_value(), problem.table.shape)])
        feeds.update(more)
    return turns, feeds
