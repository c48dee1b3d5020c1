"""How much of the messages `MPIStrategy.send` hides: ``mpiexec -n 2 python benchmarks/overlap.py``.

A network of equal layers in NumPy, whose batch is chosen so that its backward pass takes as long as
the messages.  Rank 0 prints, in milliseconds (lower quartiles of interleaved rounds):

- ``messages``: a step, whose gradients are there already;
- ``backward``: the backward pass;
- ``one by one``: the backward pass and then a step;
- ``sent``: the same, with each gradient sent as soon as it is there;
- ``hidden``: what ``sent`` saves, relative to the shorter one of messages and backward pass.

The first gradient comes after one layer, so at most ``1 - 1/layers`` can be hidden.  Ranks need a
network between them: on one machine, messages are copies, made by the processors that compute.
``python tests/mpi/nodes.py --rate 200mbit -n 2 benchmarks/overlap.py`` lays a network between two
namespaces.  With ``--device`` the backward pass only waits, as if a device computed it.
"""

import argparse
import time
from functools import partial

import numpy as np
from mpi4py import MPI

import rmsjit
from rmsjit.distributed import MPIStrategy

COMM = MPI.COMM_WORLD


class Network:
    """Layers of the same width, with gradients that a device has computed; `batch` is in ms."""

    def __init__(self, layers, width, batch):
        rng = np.random.default_rng(COMM.rank)
        shape = (layers, width, width)
        self.weights = list(rng.standard_normal(shape, np.float32) / np.float32(width**0.5))
        self.gradients = list(rng.standard_normal(shape, np.float32))
        self._pause = 1e-3 * batch / layers

    def backward(self, send=None):
        """Wait for all gradients, from the last layer to the first."""
        for k in range(len(self.weights))[::-1]:
            time.sleep(self._pause)
            if send is not None:
                send(self.gradients[k], self.weights[k])


class ComputingNetwork(Network):
    """Computes what a backward pass computes, from random inputs."""

    def __init__(self, layers, width, batch):
        super().__init__(layers, width, batch)
        rng = np.random.default_rng(COMM.rank)
        self._inputs = [rng.standard_normal((batch, width), np.float32) for _ in self.weights]
        self._error = rng.standard_normal((batch, width), np.float32)

    def backward(self, send=None):
        """Compute all gradients, from the last layer to the first."""
        error = self._error
        for k in range(len(self.weights))[::-1]:
            np.matmul(self._inputs[k].T, error, out=self.gradients[k])
            if send is not None:
                send(self.gradients[k], self.weights[k])
            error = (error @ self.weights[k].T) * (self._inputs[k] > 0)


def seconds(work):
    """The time of the slowest rank; all ranks start together."""
    COMM.Barrier()
    begin = time.perf_counter()
    work()
    return COMM.allreduce(time.perf_counter() - begin, MPI.MAX)


def quartiles(rounds, *works):
    """The lower quartile of the time of each, measured in turns."""
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return np.quantile(times, 0.25, axis=0).tolist()


def balanced(new_network, messages):
    """A network whose backward pass takes as long as `messages`."""
    batch = 8
    while True:
        [spent] = quartiles(5, new_network(batch).backward)
        if spent > messages / 2:
            return new_network(max(1, round(batch * messages / spent)))
        batch *= 2


def measured(options, strategy):
    """The times of one strategy, in seconds."""
    kind = Network if options.device else ComputingNetwork
    new_network = partial(kind, options.layers, options.width)
    opt, network = rmsjit.RMSprop(1e-5, strategy=strategy), new_network(1)
    pairs = list(zip(network.gradients, network.weights, strict=True))
    opt.apply_gradients(pairs)
    [messages] = quartiles(5, lambda: opt.apply_gradients(pairs))
    network = balanced(new_network, messages)
    pairs = list(zip(network.gradients, network.weights, strict=True))

    def step():
        opt.apply_gradients(pairs)

    def one_by_one():
        network.backward()
        step()

    sending = rmsjit.RMSprop(1e-5, strategy=strategy)

    def sent():
        network.backward(strategy.send)
        sending.apply_gradients(pairs)

    for work in (step, one_by_one, sent, sent):
        work()
    return quartiles(options.rounds, step, network.backward, one_by_one, sent)


def main():
    """Print a line for each dtype of the messages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", action="store_true", help="wait instead of computing")
    options = parser.parse_args()
    if COMM.rank == 0:
        print(f"{COMM.size} ranks, {options.layers} layers of {options.width} x {options.width}")
        print(f"{'in ms':9} {'messages':>9} {'backward':>9} {'one by one':>11} {'sent':>7} hidden")
    for wire_dtype in (None, "bfloat16"):
        times = measured(options, MPIStrategy(wire_dtype=wire_dtype, bucket_bytes=1 << 20))
        messages, backward, one_by_one, sent = (1e3 * seconds for seconds in times)
        hidden = (one_by_one - sent) / min(messages, backward)
        if COMM.rank == 0:
            print(
                f"{wire_dtype or 'float32':9} {messages:9.1f} {backward:9.1f} {one_by_one:11.1f} "
                f"{sent:7.1f} {hidden:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
