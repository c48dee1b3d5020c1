"""Keras 3's RMSprop on its TensorFlow backend."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem
from benchmarks.suite.common import EPSILON, RHO


class Keras(Peer):
    """`keras.optimizers.RMSprop` compiled by XLA, as `Model.fit` does by default."""

    name = "keras"
    packages = ("keras", "tensorflow")

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        optimizer = keras.optimizers.RMSprop(
            self.case.learning_rate,
            RHO,
            self.case.momentum,
            EPSILON,
            self.case.centered,
            global_clipnorm=problem.bound if self.case.by_norm else None,
        )
        self.variables = [keras.Variable(variable) for variable in problem.variables]
        self.gradients = [tf.constant(gradient) for gradient in problem.gradients]
        optimizer.build(self.variables)

        def update(gradients: list[tf.Tensor]) -> None:
            optimizer.apply(gradients, self.variables)

        self._function = tf.function(update, jit_compile=True)

    @classmethod
    def supports(cls, case: Case) -> bool:
        return not case.sparse and not case.is_half

    def step(self) -> None:
        self._function(self.gradients)

    def result(self) -> list[np.ndarray]:
        return [np.asarray(variable.value) for variable in self.variables]
