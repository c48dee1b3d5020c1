"""The RMSprop names of ``tf.train``: the optimizer of TensorFlow 1."""

from rmsjit.optimizers.tf1 import GATE_GRAPH, GATE_NONE, GATE_OP, RMSPropOptimizer

__all__ = ["GATE_GRAPH", "GATE_NONE", "GATE_OP", "RMSPropOptimizer"]
