"""PennyLane: an optimizer with `step` and `step_and_cost` for circuits.

PennyLane's parameters are a subclass of NumPy's arrays, so rmsjit updates them in place.  PennyLane
itself returns new arrays: pass on what `step` returns, as always, or copy what you want to keep.
PennyLane 0.45 needs autograd below 1.9.
"""

import pennylane as qml
from pennylane import numpy as np

import rmsjit
from comparison import report

# --- glue ---


class PennyLaneOptimizer(qml.GradientDescentOptimizer):
    """Differentiates a circuit as PennyLane does, and takes steps with rmsjit."""

    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    def apply_grad(self, grad, args):
        trainable = [arg for arg in args if getattr(arg, "requires_grad", False)]
        self.optimizer.apply_gradients(zip(grad, trainable, strict=True))
        return list(args)


# --- the program ---


@qml.qnode(qml.device("default.qubit", wires=2))
def circuit(angles, weights):
    """Two qubits; the expectation is to be as low as it can be."""
    qml.RX(angles[0], wires=0)
    qml.RY(angles[1], wires=1)
    qml.CNOT(wires=[0, 1])
    qml.RX(weights[0, 0], wires=0)
    qml.RY(weights[0, 1], wires=1)
    return qml.expval(qml.PauliZ(0) @ qml.PauliZ(1))


def train(optimizer):
    angles = np.array([0.1, 0.2], requires_grad=True)
    weights = np.array([[0.3, 0.4]], requires_grad=True)
    for _ in range(50):
        angles, weights = optimizer.step(circuit, angles, weights)
    return [angles, weights]


def main():
    # PennyLane computes lr*g/sqrt(rms + eps), as river does.
    ours = PennyLaneOptimizer(rmsjit.forms.river(lr=0.05, rho=0.9, eps=1e-8))
    theirs = qml.RMSPropOptimizer(stepsize=0.05, decay=0.9, eps=1e-8)
    report("qml.RMSPropOptimizer", train(ours), train(theirs))


if __name__ == "__main__":
    main()
