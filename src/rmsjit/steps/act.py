"""An act: kernel calls that are run as one."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import act, loader
from rmsjit.runtime import forks, threads
from rmsjit.runtime.cache import Kernel
from rmsjit.runtime.learned import Way
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import Trials

_GATE = address_of(forks.gate)

DONE, CLOSED, FULL, STALE = act.DONE, act.CLOSED, act.FULL, act.STALE


class Call(NamedTuple):
    """A kernel and the words to call it with.

    Attributes
    ----------
    kernel : Kernel
    words : int64 array
    alive : object
        Keeps the memory behind the addresses in the words alive.
    """

    kernel: Kernel
    words: NDArray[np.int64]
    alive: Any = None


class Validity(NamedTuple):
    """The number that an epoch must still have for a plan and its acts to be used.

    Attributes
    ----------
    epoch : int64 array, shape (1,)
        See `rmsjit.state.slots.SlotStore.epoch`.
    expected : int
    """

    epoch: NDArray[np.int64]
    expected: int

    @classmethod
    def of_now(cls, epoch: NDArray[np.int64]) -> Validity:
        """Until the epoch changes."""
        return cls(epoch, int(epoch[0]))

    @property
    def holds(self) -> bool:
        """Whether nothing has changed."""
        return bool(self.expected == self.epoch[0])


class Act:
    """Kernel calls that are run one after the other, without a return to Python.

    Parameters
    ----------
    calls : sequence of Call
    counter : integer 0-d array, optional
        Incremented in the same act, so that no other code sees one done without the other.
    valid : Validity, optional
        The act refuses to run unless it holds.
    launch : Launch
        On how many threads.
    nbytes : int
        The memory traffic, by which a stall is told from much work.
    trials : Trials, optional
        Told how long the calls took.
    """

    __slots__ = (
        "_address",
        "_alive",
        "_nbytes",
        "_run",
        "_trials",
        "_way",
        "counter",
        "threads",
        "words",
    )

    def __init__(
        self,
        calls: Sequence[Call],
        counter: NDArray[Any] | None = None,
        valid: Validity | None = None,
        launch: Launch = ONE_THREAD,
        nbytes: int = 0,
        trials: Trials | None = None,
    ) -> None:
        kernels = [word for call in calls for word in (call.kernel.address, address_of(call.words))]
        self.words = words = np.array([0] * act.WORDS + kernels, np.int64)
        words[act.KERNELS] = len(calls)
        words[act.THREADS] = launch.threads
        words[act.GET_THREADS], words[act.SET_THREADS] = launch.get_threads, launch.set_threads
        if launch.threads > 1:
            words[act.ON_THREADS] = loader.run_on_threads().address
        words[act.GATE] = _GATE
        if valid is not None:
            words[act.EPOCH], words[act.EXPECTED_EPOCH] = address_of(valid.epoch), valid.expected
        if counter is not None:
            words[act.COUNTER], words[act.COUNTER_BYTES] = address_of(counter), counter.itemsize
            words[act.COUNTER_LIMIT] = _highest(counter.dtype)
        self.counter = counter
        self.threads = launch.threads
        self._way = Way(launch.threads, launch.prefetches)
        self._nbytes, self._trials = nbytes, trials
        self._address = address_of(words)
        self._alive = calls, valid
        self._run = loader.run_act().call

    def run(self) -> int:
        """Run the calls.

        Returns
        -------
        int
            DONE; or, with nothing done, CLOSED if threads must not be launched now, FULL if the
            counter has reached its maximum, or STALE if the epoch has changed.
        """
        trials = self._trials
        if self.threads == 1 and (trials is None or not trials.timing):
            return self._run(self._address)  # type: ignore[no-any-return]
        start = time.perf_counter()
        status: int = self._run(self._address)
        seconds = time.perf_counter() - start
        if status == DONE and self.threads > 1:
            threads.launched(seconds, self._nbytes)
        if status == DONE and trials is not None:
            trials.took(self._way, seconds, self._nbytes)
        return status


@functools.cache
def _highest(dtype: np.dtype[Any]) -> int:
    """The maximum of an integer dtype, its bits read as a signed number."""
    highest = np.array(np.iinfo(dtype).max, dtype)
    return int(highest.view(f"i{dtype.itemsize}"))
