"""How steps find out how to be run, on machines made up of a table of times."""

import functools
import random

import pytest

from rmsjit.runtime.learned import Way
from rmsjit.runtime.trials import LEAST_BYTES, SETTLED_AFTER, Trials, TrialsBySize


def trained(trials, steps, seconds):
    """The time of some steps, and of the fastest choice for the same steps.

    `seconds(way, step)` is the time of a step of one byte.
    """
    spent, least = 0.0, 0.0
    for step in range(steps):
        way = trials.choose()
        spent += seconds(way, step)
        least += min(seconds(candidate, step) for candidate in trials.candidates)
        trials.took(way, seconds(way, step), 1)
    return spent, least


def on(prefetching=1.0, **times):
    """A machine by the times of 1, 2, ... threads; others are as slow as one.

    `prefetching` is what fetching ahead makes of them.
    """
    table = {int(name[1:]): time for name, time in times.items()}

    def seconds(way, step):
        return table.get(way.threads, table[1]) * (prefetching if way.prefetches else 1.0)

    return seconds


MACHINES = {
    "threads pay": (2, on(t1=1.0, t2=0.6), 2),
    "threads cost": (2, on(t1=1.0, t2=1.4), 1),
    "threads cost a lot": (2, on(t1=1.0, t2=30.0), 1),
    "no difference": (2, on(t1=1.0, t2=1.0), 1),
    "hardly any difference": (2, on(t1=1.0, t2=0.99), 1),
    "all of many": (32, on(t1=1.0, t16=0.2, t32=0.1), 32),
    "half of many": (32, on(t1=1.0, t16=0.2, t32=0.5), 16),
    "none of many": (32, on(t1=1.0, t16=2.0, t32=5.0), 1),
    "one processor": (1, on(t1=1.0), 1),
}
PREFETCHING = {"gains": (0.8, True), "costs": (1.3, False), "makes no difference": (1.0, False)}
every_machine = pytest.mark.parametrize(
    ("most", "seconds", "fastest"), MACHINES.values(), ids=MACHINES
)
prefetching = pytest.mark.parametrize(
    ("factor", "prefetches"), PREFETCHING.values(), ids=PREFETCHING
)


def with_prefetching(seconds, factor):
    return lambda way, step: seconds(way, step) * (factor if way.prefetches else 1.0)


@every_machine
@prefetching
def test_the_fastest_is_found_and_kept(most, seconds, fastest, factor, prefetches):
    trials, seconds = Trials(most, may_prefetch=True), with_prefetching(seconds, factor)
    trained(trials, SETTLED_AFTER, seconds)
    assert trials.best == (fastest, prefetches)
    trained(trials, 5_000, seconds)
    assert trials.best == (fastest, prefetches)


@every_machine
@prefetching
def test_trials_lose_little_time(most, seconds, fastest, factor, prefetches):
    trials, seconds = Trials(most, may_prefetch=True), with_prefetching(seconds, factor)
    trained(trials, SETTLED_AFTER, seconds)
    spent, _ = trained(trials, 30_000, seconds)
    assert spent <= 1.012 * 30_000 * seconds(Way(fastest, prefetches), 0)


@every_machine
def test_steps_that_can_not_fetch_ahead_try_threads_only(most, seconds, fastest):
    trials = Trials(most)
    trained(trials, 3_000, with_prefetching(seconds, 0.5))
    assert trials.best == (fastest, False)
    assert not any(way.prefetches for way in trials.costs)


def test_a_round_that_tries_fetching_ahead_is_soon_over():
    """It follows the first one at once, on the fastest number of threads only."""
    trials, asked = Trials(2, may_prefetch=True), []
    for _ in range(24):
        asked.append(trials.choose())
        trials.took(asked[-1], 1.0 / asked[-1].threads, 1)
    assert asked == [Way(1)] * 6 + [Way(2)] * 12 + [Way(2, True)] * 6
    assert not trials.timing
    assert trials.best == Way(2)


@pytest.mark.parametrize("first", [False, True])
def test_a_machine_on_which_fetching_ahead_begins_or_stops_to_pay(first):
    before, after = on(t1=1.0, prefetching=0.7), on(t1=1.0, prefetching=1.4)
    if not first:
        before, after = after, before
    trials = Trials(1, may_prefetch=True)
    trained(trials, 5000, before)
    assert trials.best == (1, first)
    trained(trials, 20_000, after)
    assert trials.best == (1, not first)


@pytest.mark.parametrize("first", [1, 2], ids=["from one", "from both"])
def test_a_change_of_the_machine_is_noticed(first):
    """Such as another program that takes a processor, or ends."""
    quiet, crowded = on(t1=1.0, t2=0.6), on(t1=1.0, t2=2.7)
    before, after = (crowded, quiet) if first == 1 else (quiet, crowded)
    trials = Trials(2)
    trained(trials, 5000, before)
    assert trials.best == Way(first)
    spent, least = trained(trials, 5000, after)
    assert trials.best == Way(3 - first)
    assert spent <= 1.1 * least


def test_a_crowded_machine_is_left_at_once():
    """Threads that have become slow are not used until the next round, but for some steps."""
    trials = Trials(2)
    trained(trials, 2000, on(t1=1.0, t2=0.5))
    trained(trials, 20, on(t1=1.0, t2=3.0))
    assert trials.best == Way(1)


@pytest.mark.parametrize("seed", range(10))
def test_noise_does_not_decide(seed):
    """Times that vary by half, and now and then are ten times as long."""
    rng = random.Random(seed)

    @functools.cache
    def seconds(way, step):
        noise = rng.uniform(1.0, 1.5) * (10 if rng.random() < 0.03 else 1)
        return noise * (1.0 if way.threads == 1 else 0.5)

    trials = Trials(2)
    spent, _ = trained(trials, 3000, seconds)
    both = sum(seconds(Way(2), step) for step in range(3000))
    assert spent <= 1.06 * both


def test_the_first_step_of_each_candidate_does_not_count():
    """It loads a kernel, touches new memory, or wakes threads."""
    seen = set()

    def seconds(way, step):
        first = way not in seen
        return 1000.0 if first else on(t1=1.0, t2=0.6)(way, step)

    trials = Trials(2)
    for step in range(12):
        way = trials.choose()
        trials.took(way, seconds(way, step), 1)
        seen.add(way)
    assert trials.best == Way(2)


def test_steps_of_different_sizes_are_compared_by_the_byte():
    trials = Trials(2)
    for step in range(2000):
        way, nbytes = trials.choose(), 1000 * (1 + step * 7 % 5)
        trials.took(way, nbytes * (0.6 if way.threads == 2 else 1.0), nbytes)
    assert trials.best == Way(2)


def test_threads_that_can_not_be_had():
    trials = Trials(4)
    for _ in range(1000):
        trials.choose()
        trials.took(Way(1), 1.0, 1)
    assert trials.best == Way(1)
    assert set(trials.costs) == {Way(1)}


def test_fewer_threads_than_asked_for():
    """The user has set Numba's threads to less than what rmsjit may use."""
    trials = Trials(8)
    for _ in range(100):
        granted = min(trials.choose().threads, 2)
        trials.took(Way(granted), 1.0 / granted, 1)
    assert trials.best.threads > 1


def test_a_step_without_work_tells_nothing():
    trials = Trials(2)
    for _ in range(100):
        trials.took(trials.choose(), 1.0, 0)
    assert trials.timing
    assert not trials.costs


def test_work_of_the_same_size_shares_its_trials():
    """So that new arrays at each step, and plans that are made anew, don't begin again."""
    by_size = TrialsBySize()
    assert by_size.of(4, 1.1e6, "dense") is by_size.of(4, 2.0e6, "dense")
    works = [(4, 1.1e6, "dense"), (4, 3e6, "dense"), (2, 1.1e6, "dense"), (4, 1.1e6, "sparse")]
    different = [by_size.of(*work) for work in works]
    assert len(set(different)) == 4


def test_little_work_has_no_trials():
    by_size = TrialsBySize()
    assert by_size.of(4, LEAST_BYTES - 1, "dense") is None
    assert by_size.of(4, LEAST_BYTES, "dense") is not None
    assert by_size.of(1, 1e9, "sparse") is None
    assert by_size.of(1, 1e9, "dense") is not None  # which may fetch memory ahead
