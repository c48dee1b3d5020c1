"""How many threads a kind of step should use, and whether it should fetch memory ahead.

Both depend on the processor, its caches, the pauses between steps and everything else that runs on
the machine, so no size is the right limit everywhere.  The results depend on neither, so the steps
themselves are timed: they can try several ways at no cost but time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

from rmsjit.runtime import learned
from rmsjit.runtime.learned import Costs, Way, Work

LEAST_BYTES = 1 << 16  # any processor moves less than this before other threads have started
_SAMPLES = 5  # timed steps of each way in a round
SETTLED_AFTER = 36  # steps at most: the first round has four ways, the second two
_BETTER = 0.97  # of the time of the present choice, to replace it
_SHARE = 0.01  # of all time, at most, that rounds may lose
_LEAST_STEPS = 100  # between two rounds
_SLOWER = 1.5  # times the usual time, at which conditions must have changed
_SLOW_STEPS = 5  # in a row that are so slow before a new round


class Trials:
    """Chooses how steps of one kind are run.

    The first round tries one, half and all threads, each for some steps, and the second one tries
    fetching memory ahead with the fastest.  Later rounds, from time to time, compare the present
    choice with those that differ from it in one thing: the next smaller or larger number of
    threads, or fetching ahead.  The time between rounds is such that they lose at most a hundredth
    of all time.

    Parameters
    ----------
    most : int
        The maximum number of threads.
    may_prefetch : bool
        Whether such steps can fetch memory ahead.
    guess : dict of Way to float
        The costs that an earlier process found: its fastest candidate is the first to be tried.
    settled : callable, optional
        Called with the costs at the end of each round.

    Attributes
    ----------
    candidates : tuple of Way
        One thread, half the maximum, and the maximum, without and with fetching ahead.
    best : Way
        The present choice.
    costs : dict of Way to float
        For each candidate that was tried, seconds per byte in its last round.
    timing : bool
        Whether the next step must be timed for a round.
    """

    def __init__(
        self,
        most: int,
        may_prefetch: bool = False,
        guess: Costs = MappingProxyType({}),
        settled: Callable[[dict[Way, float]], None] | None = None,
    ) -> None:
        self._counts = sorted({1, max(1, most // 2), most})
        self._may_prefetch = may_prefetch
        choices = (False, True) if may_prefetch else (False,)
        self.candidates = tuple(Way(count, ahead) for count in self._counts for ahead in choices)
        self.best = Way(1)
        self._settled = settled
        self.costs: dict[Way, float] = {}
        self._quiet = 0  # steps until the next round
        self._slow = 0
        self._turn = [True]  # popped while a step is recorded; others then skip theirs
        guessed = learned.fastest(guess)
        first = [way for way in self.candidates if not way.prefetches or way == guessed]
        self._begin(sorted(first, key=lambda way: guess.get(way, math.inf)))

    def choose(self) -> Way:
        """How to run the next step."""
        if self._quiet > 0:
            self._quiet -= 1
            return self.best
        if not self.timing:
            self._begin(self._neighbours())
        return self._asked

    def took(self, way: Way, seconds: float, nbytes: float) -> None:
        """Record a step.

        Parameters
        ----------
        way : Way
            How it was run: on one thread if no others could be started.
        seconds : float
        nbytes : float
            The amount of work.
        """
        if nbytes <= 0:
            return
        try:
            turn = self._turn.pop()
        except IndexError:  # another thread records, or what this signal handler has interrupted
            return
        try:
            if self.timing:
                self._sample(way, seconds / nbytes)
            elif way == self.best:
                self._watch(seconds / nbytes)
        finally:
            self._turn.append(turn)

    def _neighbours(self) -> list[Way]:
        """The present choice, and what differs from it in one thing."""
        if self._is_untried(self._other_way()):
            return [self.best, self._other_way()]
        at = self._counts.index(self.best.threads)
        counts = self._counts[max(0, at - 1) : at + 2]
        found = [self.best._replace(threads=count) for count in counts]
        return [*found, self._other_way()] if self._may_prefetch else found

    def _other_way(self) -> Way:
        return self.best._replace(prefetches=not self.best.prefetches)

    def _is_untried(self, way: Way) -> bool:
        return way in self.candidates and way not in self.costs

    def _begin(self, candidates: Sequence[Way]) -> None:
        """Begin a round."""
        self._samples: dict[Way, list[float]] = {way: [] for way in candidates}
        self._asked = candidates[0]
        self._steps = 0
        self._slow = 0
        self.timing = len(self.candidates) > 1
        self._quiet = 0 if self.timing else _LEAST_STEPS

    def _sample(self, way: Way, cost: float) -> None:
        """Record a step of a round, and choose how to run the next one."""
        if way.threads > 1 or self._asked.threads == 1:
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
        import statistics  # not at the first step, which should be fast

        # The first step of each candidate pays for cold caches and for threads that sleep.
        costs = {way: statistics.median(s[1:]) for way, s in self._samples.items() if len(s) > 1}
        self.costs.update(costs)
        fastest = learned.fastest(costs) or Way(1)
        if costs.get(fastest, 0.0) < _BETTER * costs.get(self.best, math.inf):
            self.best = fastest
        usual = self.costs.get(self.best, 0.0)
        lost = (1 + _SAMPLES) * sum(max(0.0, cost - usual) for cost in costs.values())
        self._quiet = max(_LEAST_STEPS, math.ceil(lost / (_SHARE * usual)) if usual else 0)
        if self._is_untried(self._other_way()):
            self._quiet = 0
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
        """The trials for work of a kind, None if work is small, or has only one way."""
        may_prefetch = kind == "dense"
        if nbytes < LEAST_BYTES or (most <= 1 and not may_prefetch):
            return None
        work = Work(kind, most, int(nbytes).bit_length())
        trials = self._trials.get(work)
        if trials is None:
            noted = partial(learned.note, work)
            trials = Trials(most, may_prefetch, learned.guess(work), noted)
            trials = self._trials.setdefault(work, trials)
        return trials
