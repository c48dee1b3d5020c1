"""How the number of threads is found out, on machines made up of a table of times."""

import functools
import random

import pytest

from rmsjit.runtime.trials import LEAST_BYTES, Trials, TrialsBySize


def trained(trials, steps, seconds):
    """The time of some steps, and of the fastest choice for the same steps.

    `seconds(threads, step)` is the time of a step of one byte.
    """
    spent, least = 0.0, 0.0
    for step in range(steps):
        threads = trials.choose()
        spent += seconds(threads, step)
        least += min(seconds(count, step) for count in trials.candidates)
        trials.took(threads, seconds(threads, step), 1)
    return spent, least


def on(**times):
    """A machine by the times of 1, 2, ... threads; others are as slow as one."""
    table = {int(name[1:]): time for name, time in times.items()}
    return lambda threads, step: table.get(threads, table[1])


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
every_machine = pytest.mark.parametrize(
    ("most", "seconds", "fastest"), MACHINES.values(), ids=MACHINES
)


@every_machine
def test_the_fastest_is_found_and_kept(most, seconds, fastest):
    trials = Trials(most)
    trained(trials, 6 * len(trials.candidates), seconds)
    assert trials.best == fastest
    trained(trials, 5_000, seconds)
    assert trials.best == fastest


@every_machine
def test_trials_lose_little_time(most, seconds, fastest):
    trials = Trials(most)
    trained(trials, 6 * len(trials.candidates), seconds)
    spent, _ = trained(trials, 30_000, seconds)
    assert spent <= 1.012 * 30_000 * seconds(fastest, 0)


@pytest.mark.parametrize("first", [1, 2], ids=["from one", "from both"])
def test_a_change_of_the_machine_is_noticed(first):
    """Such as another program that takes a processor, or ends."""
    quiet, crowded = on(t1=1.0, t2=0.6), on(t1=1.0, t2=2.7)
    before, after = (crowded, quiet) if first == 1 else (quiet, crowded)
    trials = Trials(2)
    trained(trials, 5000, before)
    assert trials.best == first
    spent, least = trained(trials, 5000, after)
    assert trials.best == 3 - first
    assert spent <= 1.1 * least


def test_a_crowded_machine_is_left_at_once():
    """Threads that have become slow are not used until the next round, but for some steps."""
    trials = Trials(2)
    trained(trials, 2000, on(t1=1.0, t2=0.5))
    trained(trials, 20, on(t1=1.0, t2=3.0))
    assert trials.best == 1


@pytest.mark.parametrize("seed", range(10))
def test_noise_does_not_decide(seed):
    """Times that vary by half, and now and then are ten times as long."""
    rng = random.Random(seed)

    @functools.cache
    def seconds(threads, step):
        noise = rng.uniform(1.0, 1.5) * (10 if rng.random() < 0.03 else 1)
        return noise * (1.0 if threads == 1 else 0.5)

    trials = Trials(2)
    spent, _ = trained(trials, 3000, seconds)
    both = sum(seconds(2, step) for step in range(3000))
    assert spent <= 1.06 * both


def test_the_first_step_of_each_candidate_does_not_count():
    """It loads a kernel, touches new memory, or wakes threads."""
    seen = set()

    def seconds(threads, step):
        first = threads not in seen
        return 1000.0 if first else on(t1=1.0, t2=0.6)(threads, step)

    trials = Trials(2)
    for step in range(12):
        threads = trials.choose()
        trials.took(threads, seconds(threads, step), 1)
        seen.add(threads)
    assert trials.best == 2


def test_steps_of_different_sizes_are_compared_by_the_byte():
    trials = Trials(2)
    for step in range(2000):
        threads, nbytes = trials.choose(), 1000 * (1 + step * 7 % 5)
        trials.took(threads, nbytes * (0.6 if threads == 2 else 1.0), nbytes)
    assert trials.best == 2


def test_threads_that_can_not_be_had():
    trials = Trials(4)
    for _ in range(1000):
        trials.choose()
        trials.took(1, 1.0, 1)
    assert trials.best == 1
    assert set(trials.costs) == {1}


def test_fewer_threads_than_asked_for():
    """The user has set Numba's threads to less than what rmsjit may use."""
    trials = Trials(8)
    for _ in range(100):
        granted = min(trials.choose(), 2)
        trials.took(granted, 1.0 / granted, 1)
    assert trials.best > 1


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
    assert by_size.of(1, 1e9, "dense") is None
