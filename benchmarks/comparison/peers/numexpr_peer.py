"""The rule in numexpr, which runs compiled expressions in cache-sized blocks on threads."""

import numexpr
import numpy as np
from benchmarks.comparison.peers.numpy_peers import HandWritten
from benchmarks.comparison.problem import Problem
from benchmarks.suite.common import EPSILON, RHO


class NumExpr(HandWritten):
    name = "numexpr"
    packages = ("numexpr",)

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        numexpr.set_num_threads(threads)
        # Python floats would promote every block to float64.
        self.numbers = {
            "rate": self.rate,
            "rho": np.float32(RHO),
            "rest": np.float32(1 - RHO),
            "eps": np.float32(EPSILON),
            "factor": np.float32(self.case.momentum),
            "zero": np.float32(0),
        }
        variance = "where(s - m*m > zero, s - m*m, zero)" if self.case.centered else "s"
        self.update = f"rate*g / (sqrt({variance}) + eps)"

    def step(self) -> None:
        for k, (g, variable) in enumerate(zip(self.gradients, self.variables, strict=True)):
            names = {"g": g, "s": self.rms[k], "m": self.mg[k], "v": variable, **self.numbers}
            _run("rho*s + rest*g*g", names, self.rms[k])
            if self.case.centered:
                _run("rho*m + rest*g", names, self.mg[k])
            if self.case.momentum:
                names["p"] = self.momentum[k]
                _run(f"factor*p + {self.update}", names, self.momentum[k])
                _run("v - p", names, variable)
            else:
                _run(f"v - {self.update}", names, variable)


def _run(expression: str, names: dict[str, np.ndarray], out: np.ndarray) -> None:
    numexpr.evaluate(expression, local_dict=names, global_dict={}, out=out)
