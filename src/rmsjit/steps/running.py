"""Running calls of kernels that are no part of a step's act."""

from __future__ import annotations

from collections.abc import Callable

from rmsjit.runtime import threads
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.threads import ONE_THREAD
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.steps.act import DONE, Act, Call


class Runner:
    """Runs work of one kind on the number of threads that has proved fastest.

    Parameters
    ----------
    kind : str
        See `rmsjit.runtime.learned.Work`.
    num_threads : int or None
        The maximum number of threads; None for as many as the process may keep busy.
    """

    def __init__(self, kind: str, num_threads: int | None = None) -> None:
        self._kind, self._limit = kind, num_threads or 0
        self._trials = TrialsBySize()

    def run(
        self, calls: Callable[[int], list[Call]], nbytes: int, limit: int | None = None
    ) -> None:
        """Run calls; on one thread if others can't start.

        Parameters
        ----------
        calls : callable
            Makes the calls for a number of threads.
        nbytes : int
            How many bytes are written.
        limit : int, optional
            The maximum number of threads of this run.
        """
        if limit is None:
            limit = self._limit = self._limit or thread_limit()  # which reads several files
        trials = self._trials.of(limit, nbytes, self._kind)
        launch = ONE_THREAD if trials is None else threads.launch(trials.choose().threads)
        if Act(calls(launch.threads), launch=launch, nbytes=nbytes, trials=trials).run() != DONE:
            Act(calls(1)).run()
