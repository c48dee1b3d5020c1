"""How long steps of `rmsjit.torch.RMSprop` and of torch take: ``python benchmarks/torch_step.py``.

Both update parameters of their own, some steps each in turn, which are timed alone.  It prints, in
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
import time

import numpy as np
import torch
from torch import Tensor

import rmsjit.torch

CALLS = 5  # of each in its turn


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
        sum((p * p).sum() for p in self.parameters).backward()

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
    """The time of each of some calls."""
    times = []
    for _ in range(CALLS):
        model.prepare()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return times


def quartiles(rounds, works):
    """The lower quartile of the time of each; all take turns."""
    times = [[timed(*work) for work in works] for _ in range(rounds)]
    return np.quantile(times, 0.25, axis=(0, 2)).tolist()


def measure(count, size, new, rounds):
    """The quartiles of ``rmsjit``, ``torch``, ``grad`` and ``checked``, by name."""
    ours, theirs, neither = (Model(count, size, new) for _ in range(3))
    works = {
        "rmsjit": (ours, rmsjit.torch.RMSprop(ours.parameters, lr=1e-4).step),
        "torch": (theirs, torch.optim.RMSprop(theirs.parameters, lr=1e-4, foreach=True).step),
        "grad": (neither, neither.gradients),
        "checked": (neither, neither.check),
    }
    quartiles(20, works.values())  # the first steps compile, and try numbers of threads
    return dict(zip(works, quartiles(rounds, works.values()), strict=True))


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
