"""How long steps of `rmsjit.torch.RMSprop` and of torch take: ``python benchmarks/torch_step.py``.

Both update parameters of their own, some steps each in turn, which are timed alone.  Each has a
process to itself, as torch's threads go on spinning for a while after a step.  It prints, in
microseconds, the lower quartiles of:

- ``rmsjit``: a step of `rmsjit.torch.RMSprop`;
- ``torch``: one of `torch.optim.RMSprop`, ``foreach``;
- ``grad``: asking the parameters for their gradients, ``[p.grad for p in parameters]``;
- ``checked``: the same, and asking each gradient what a step must know: where it is, its dtype and
  size, whether it is contiguous, and whether it is a negative view.

The last two need no optimizer, and no step in Python can do without them: they bound the ratio.
With ``new`` gradients, those of a backward pass after ``zero_grad()``, torch first makes a Python
object of each, and little of what a step needs is still in the cache of the processor.  ``same``
gradients stay, as after ``zero_grad(set_to_none=False)``.
"""

import argparse
import multiprocessing
import time

import numpy as np
import torch
from torch import Tensor

import rmsjit.torch
from rmsjit.runtime.trials import SETTLED_AFTER

CALLS = 5  # of each in its turn
NAMES = ("rmsjit", "torch", "grad", "checked")
CONTEXT = multiprocessing.get_context("spawn")


class Model:
    """Parameters, with gradients that are new in each step or always the same."""

    def __init__(self, count, size, new):
        generator = torch.Generator().manual_seed(0)
        shape = (count, size)
        self.new = new
        self.parameters = [
            torch.nn.Parameter(values) for values in torch.randn(shape, generator=generator)
        ]
        self._backward()

    def _backward(self):
        # Kept until the next one, as a training loop keeps its loss while it takes a step.
        self._loss = sum((p * p).sum() for p in self.parameters)
        self._loss.backward()

    def prepare(self):
        """Make the gradients of the next step."""
        if self.new:
            for parameter in self.parameters:
                parameter.grad = None
            self._backward()

    def gradients(self):
        return [p.grad for p in self.parameters]

    def check(self):
        """Ask for the gradients, and for what a step must know of each."""
        gradients = self.gradients()
        for ask in (Tensor.data_ptr, Tensor.numel, Tensor.is_contiguous, Tensor.is_neg):
            list(map(ask, gradients))
        return [gradient.dtype for gradient in gradients]


def timed(model, work):
    """The time of each of some calls, after one that wakes threads."""
    times = []
    for _ in range(1 + CALLS):
        model.prepare()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return times[1:]


def work_of(name, model):
    """What is timed under a name."""
    if name == "rmsjit":
        return rmsjit.torch.RMSprop(model.parameters, lr=1e-4).step
    if name == "torch":
        return torch.optim.RMSprop(model.parameters, lr=1e-4, foreach=True).step
    return model.gradients if name == "grad" else model.check


def serve(connection, name, *of_model):
    """Time some calls whenever asked, until told to stop."""
    model = Model(*of_model)
    work = work_of(name, model)
    for _ in range(SETTLED_AFTER // CALLS):
        timed(model, work)
    connection.send("ready")
    while connection.recv():
        connection.send(timed(model, work))


def measure(count, size, new, rounds):
    """The quartiles of `NAMES`, by name; all take turns."""
    connections = []
    for name in NAMES:
        ours, theirs = CONTEXT.Pipe()
        CONTEXT.Process(target=serve, args=(theirs, name, count, size, new), daemon=True).start()
        ours.recv()
        connections.append(ours)
    times = []
    for round_number in range(rounds):
        times.append([])
        for connection in connections:
            connection.send(round_number + 1)
            times[-1].append(connection.recv())
    for connection in connections:
        connection.send(0)
    return dict(zip(NAMES, np.quantile(times, 0.25, axis=(0, 2)).tolist(), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--count", type=int, default=200, help="the number of parameters")
    parser.add_argument("--size", type=int, default=1024, help="of each, in elements")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    for name, new in (("new", True), ("same", False)):
        found = measure(arguments.count, arguments.size, new, arguments.rounds)
        times = "  ".join(f"{what} {1e6 * seconds:6.0f}" for what, seconds in found.items())
        ratio = found["torch"] / found["rmsjit"]
        bound = found["torch"] / found["checked"]
        print(f"{name:5} {times}  torch/rmsjit {ratio:.1f}  torch/checked {bound:.1f}")


if __name__ == "__main__":
    main()
