"""Running calls of kernels that are no part of a step's act."""

from __future__ import annotations

from collections.abc import Callable

from rmsjit.runtime import threads
from rmsjit.runtime.threads import ONE_THREAD
from rmsjit.runtime.trials import Trials
from rmsjit.steps.act import DONE, Act, Call


def run_calls(calls: Callable[[int], list[Call]], trials: Trials | None, nbytes: int) -> None:
    """Run calls on the number of threads that has proved fastest; on one if threads can't start.

    Parameters
    ----------
    calls : callable
        Makes the calls for a number of threads.
    trials : Trials or None
        Those for such work; None for one thread.
    nbytes : int
        How many bytes are written.
    """
    launch = ONE_THREAD if trials is None else threads.launch(trials.choose().threads)
    if Act(calls(launch.threads), launch=launch, nbytes=nbytes, trials=trials).run() != DONE:
        Act(calls(1)).run()
