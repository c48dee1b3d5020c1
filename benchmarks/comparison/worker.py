"""The process of one peer: answers requests from `benchmarks.compare`, one line of JSON each.

The libraries' own output goes to standard error, so that it can't corrupt the answers.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Case
from benchmarks.comparison.peer import Peer
from benchmarks.comparison.problem import Problem, expected
from benchmarks.comparison.registry import load
from benchmarks.suite.common import VARIANTS

from rmsjit.cli.stopwatch import calibrated, seconds_per_call

_SAMPLE_SECONDS = 0.02
_CHECK_STEPS = 6
_CHECK_RATE = 0.05  # large compared with the rounding of half-precision types
_TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


class Ready:
    """A prepared case: its peer, and the calls of each method per sample."""

    def __init__(self, peer: Peer, nbytes: dict[str, float]) -> None:
        self.peer, self.nbytes = peer, nbytes
        self.methods = peer.methods()
        self.loops = {}
        for name, call in self.methods.items():
            for _ in range(peer.warm_calls):
                call()
            peer.finish()
            self.loops[name] = calibrated(_finished(call, peer), _SAMPLE_SECONDS)


class Worker:
    """Answers requests, each the name of a method and its arguments."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = threads
        self._class = load(name)
        self._ready: dict[str, Ready] = {}

    def versions(self) -> dict[str, str]:
        return self._class.versions()

    def check(self) -> dict[str, float]:
        """The error of the peer in each small case that it supports, relative to the tolerance."""
        errors = {
            case.name: self._error(case) for case in _check_cases() if self._class.supports(case)
        }
        self._class.forget()
        return errors

    def _error(self, case: Case) -> float:
        """The largest error relative to the largest update, divided by the tolerance."""
        problem, again = Problem(case), Problem(case)
        peer = self._class(problem, self._threads)
        for _ in range(_CHECK_STEPS):
            peer.step()
        peer.finish()
        right = expected(again, self._class.rule(case), _CHECK_STEPS)
        starts = [again.table] if case.sparse else again.variables
        errors = []
        for result, wanted, start in zip(peer.result(), right, starts, strict=True):
            change = np.abs(wanted - start.astype(np.float64)).max()
            errors.append(np.abs(result.astype(np.float64) - wanted).max() / change)
        return float(max(errors)) / _TOLERANCES[case.dtype]

    def prepare(self, case: dict[str, Any]) -> dict[str, Any] | None:
        """Compile and warm up; return the bytes that each method moves, None if unsupported."""
        made = Case.from_dict(case)
        if not self._class.supports(made):
            return None
        problem = Problem(made)
        peer = self._class(problem, self._threads)
        ready = Ready(peer, peer.method_bytes(problem))
        self._ready[made.name] = ready
        gc.collect()
        return {name: ready.nbytes[name] for name in ready.methods}

    def sample(self, case: str, method: str) -> float:
        """Mean seconds per call over one sample."""
        ready = self._ready[case]
        call, loops = ready.methods[method], ready.loops[method]
        if loops > 1:
            call()  # wakes threads and refills caches after the turns of other processes
            ready.peer.finish()
        return seconds_per_call(call, loops, ready.peer.finish)

    def release(self) -> None:
        """Free the memory of all cases."""
        self._ready.clear()
        self._class.forget()
        gc.collect()


def _finished(call: Callable[[], Any], peer: Peer) -> Callable[[], None]:
    def run() -> None:
        call()
        peer.finish()

    return run


def _check_cases() -> list[Case]:
    dense = Case("", "", "small", variables=3, size=37, learning_rate=_CHECK_RATE)
    table = replace(dense, variables=1, size=0, rows=50, width=4, count=30)
    cases = [replace(dense, name=variant, variant=variant) for variant in VARIANTS]
    cases.append(replace(dense, name="norm", by_norm=True))
    cases += [replace(dense, name=dtype, dtype=dtype) for dtype in ("float16", "bfloat16")]
    cases += [
        replace(table, name=f"sparse-{variant}", variant=variant)
        for variant in ("plain", "momentum")
    ]
    return cases


def main() -> None:
    """Answer requests until the input ends."""
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    gc.disable()
    worker: Worker | None = None
    for line in sys.stdin:
        request, arguments = json.loads(line)
        try:
            worker = worker or Worker(name, threads)
            answer = {"value": getattr(worker, request)(*arguments)}
        except Exception as error:  # the parent goes on without this peer
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
