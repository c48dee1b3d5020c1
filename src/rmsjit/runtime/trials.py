"""How many threads a kind of step should use, found out by timing the steps themselves.

Whether threads pay depends on the processor, its caches, the pauses between steps and everything
else that runs on the machine, so no size is the right limit everywhere.  The results do not depend
on the number of threads, so steps can try several numbers at no cost but time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from rmsjit.runtime import learned
from rmsjit.runtime.learned import Work

LEAST_BYTES = 1 << 16  # any processor moves less than this before other threads have started
_SAMPLES = 5  # timed steps of each number of threads in a round
_BETTER = 0.97  # of the time of the present choice, to replace it
_SHARE = 0.01  # of all time, at most, that rounds may lose
_LEAST_STEPS = 100  # between two rounds
_SLOWER = 1.5  # times the usual time, at which conditions must have changed
_SLOW_STEPS = 5  # in a row that are so slow before a new round


class Trials:
    """Chooses the number of threads for steps of one kind.

    The first round tries every candidate for some steps.  Later rounds, from time to time, compare
    the present choice with the next smaller and the next larger candidate.  The time between
    rounds is such that they lose at most a hundredth of all time.

    Parameters
    ----------
    most : int
        The maximum number of threads.
    guess : dict of int to float
        The costs that an earlier process found: its fastest candidate is the first to be tried.
    settled : callable, optional
        Called with the costs at the end of each round.

    Attributes
    ----------
    candidates : tuple of int
        One thread, half the maximum, and the maximum.
    best : int
        The present choice.
    costs : dict of int to float
        For each candidate that was tried, seconds per byte in its last round.
    timing : bool
        Whether the next step must be timed for a round.
    """

    def __init__(
        self,
        most: int,
        guess: Mapping[int, float] = MappingProxyType({}),
        settled: Callable[[dict[int, float]], None] | None = None,
    ) -> None:
        self.candidates = tuple(sorted({1, max(1, most // 2), most}))
        self.best = 1
        self._settled = settled
        self.costs: dict[int, float] = {}
        self._quiet = 0  # steps until the next round
        self._slow = 0
        self._turn = [True]  # taken by who records a step; nobody waits for it
        self._begin(sorted(self.candidates, key=lambda count: guess.get(count, math.inf)))

    def choose(self) -> int:
        """The number of threads for the next step."""
        if self._quiet:
            self._quiet -= 1
            return self.best
        if not self.timing:
            self._begin(self._neighbours())
        return self._asked

    def took(self, threads: int, seconds: float, nbytes: float) -> None:
        """Record a step.

        Parameters
        ----------
        threads : int
            The number of threads it used: one if no others could be started.
        seconds : float
        nbytes : float
            The amount of work.
        """
        if nbytes <= 0:
            return
        try:
            turn = self._turn.pop()
        except IndexError:  # another thread, or the code that this handler of a signal interrupts
            return
        try:
            if self.timing:
                self._sample(threads, seconds / nbytes)
            elif threads == self.best:
                self._watch(seconds / nbytes)
        finally:
            self._turn.append(turn)

    def _neighbours(self) -> tuple[int, ...]:
        at = self.candidates.index(self.best)
        return self.candidates[max(0, at - 1) : at + 2]

    def _begin(self, candidates: Sequence[int]) -> None:
        """Begin a round."""
        self._samples: dict[int, list[float]] = {count: [] for count in candidates}
        self._asked = candidates[0]
        self._steps = 0
        self._slow = 0
        self.timing = len(self.candidates) > 1
        self._quiet = 0 if self.timing else _LEAST_STEPS

    def _sample(self, threads: int, cost: float) -> None:
        """Record a step of a round, and choose the number of threads of the next one."""
        if threads > 1 or self._asked == 1:
            self._samples[self._asked].append(cost)
        self._steps += 1
        done, rest = divmod(self._steps, 1 + _SAMPLES)
        if rest:
            return
        if done < len(self._samples):
            self._asked = list(self._samples)[done]
        else:
            self._settle()

    def _settle(self) -> None:
        """End a round: choose the fastest candidate, and the time of the next round."""
        # The first step of each candidate pays for cold caches and for threads that sleep.
        costs = {n: statistics.median(s[1:]) for n, s in self._samples.items() if len(s) > 1}
        self.costs.update(costs)
        fastest = min(costs, key=costs.__getitem__, default=1)
        if costs.get(fastest, 0.0) < _BETTER * costs.get(self.best, math.inf):
            self.best = fastest
        usual = self.costs.get(self.best, 0.0)
        lost = (1 + _SAMPLES) * sum(max(0.0, cost - usual) for cost in costs.values())
        self._quiet = max(_LEAST_STEPS, math.ceil(lost / (_SHARE * usual)) if usual else 0)
        self.timing = False
        if self._settled is not None:
            self._settled(self.costs)

    def _watch(self, cost: float) -> None:
        """Have the next round begin early if steps have become slow."""
        self._slow = self._slow + 1 if cost > _SLOWER * self.costs.get(self.best, cost) else 0
        if self._slow >= _SLOW_STEPS:
            self._slow = self._quiet = 0


class TrialsBySize:
    """Trials for work of any size; work of the same size, to a factor of two, shares them."""

    def __init__(self) -> None:
        self._trials: dict[Work, Trials] = {}

    def of(self, most: int, nbytes: float, kind: str) -> Trials | None:
        """The trials for work of a kind, None if it is too little for more than one thread."""
        if most <= 1 or nbytes < LEAST_BYTES:
            return None
        work = Work(kind, most, int(nbytes).bit_length())
        trials = self._trials.get(work)
        if trials is None:
            trials = Trials(most, learned.guess(work), partial(learned.note, work))
            trials = self._trials.setdefault(work, trials)
        return trials
