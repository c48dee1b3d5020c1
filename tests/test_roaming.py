"""Steps of known variables through views that are new in every step, such as rows of a table."""

import mmap
import sys

import numpy as np
import pytest

from rmsjit import RMSprop
from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader
from rmsjit.steps import plan as plans
from rmsjit.steps.planner import Planner
from rmsjit.steps.roaming import Locator
from strategies import frames_of, watched

ROWS, WIDTH = 12, 5
LEARNING_RATE, RHO, EPSILON = 0.1, 0.9, 1e-7


def noise(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class Rows:
    """RMSprop of the rows of a table in plain NumPy."""

    def __init__(self, table):
        self.values, self.rms = table.copy(), np.zeros_like(table)

    def step(self, row, gradient):
        self.rms[row] = RHO * self.rms[row] + (1 - RHO) * gradient**2
        self.values[row] -= LEARNING_RATE * gradient / (np.sqrt(self.rms[row]) + EPSILON)


@pytest.fixture
def known():
    """A table whose rows an optimizer has stepped, that optimizer, and the same in plain NumPy."""
    table = noise(ROWS, WIDTH)
    plain, optimizer = Rows(table), RMSprop(LEARNING_RATE)
    for _ in range(2):
        for row in range(ROWS):
            optimizer.apply_gradients([(np.ones(WIDTH), table[row])])
            plain.step(row, np.ones(WIDTH))
    return table, optimizer, plain


@pytest.fixture
def drafted(monkeypatch):
    """The lists of variables for which a step looked for more than a known plan."""
    lists = []
    draft = Planner._drafted

    def note(self, variables, *arguments):
        lists.append(variables)
        return draft(self, variables, *arguments)

    monkeypatch.setattr(Planner, "_drafted", note)
    return lists


@pytest.fixture(params=["compiled", "Python"])
def reader(request, monkeypatch):
    """Both ways to read where arrays are."""
    if request.param == "Python":
        monkeypatch.setattr(loader, "follow", lambda: None)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("count", [1, 2, 3, ROWS])
def test_rows_in_any_order(known, drafted, count):
    table, optimizer, plain = known
    rng = np.random.default_rng(count)
    optimizer.apply_gradients([(np.zeros(WIDTH), row) for row in table[:count]])
    for row in range(count):
        plain.step(row, np.zeros(WIDTH))
    del drafted[:]
    for step in range(30):
        rows = rng.permutation(ROWS)[:count]
        gradients = noise(count, WIDTH, seed=step)
        optimizer.apply_gradients([(g, table[k]) for g, k in zip(gradients, rows, strict=True)])
        for row, gradient in zip(rows, gradients, strict=True):
            plain.step(row, gradient)
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)
    assert not drafted


def test_lists_of_two_structures_in_turn(known, drafted):
    table, optimizer, plain = known
    bias = noise(ROWS, 2, seed=1)
    twin = Rows(bias)
    for step in range(3 * ROWS):
        row = step % ROWS
        optimizer.apply_gradients([(np.ones(WIDTH), table[row])])
        optimizer.apply_gradients([(np.ones(2), bias[row])])
        plain.step(row, np.ones(WIDTH))
        twin.step(row, np.ones(2))
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)
    np.testing.assert_allclose(bias, twin.values, rtol=1e-12)
    assert len(drafted) == ROWS  # the first steps of the rows of `bias`


def test_the_last_view_is_known(known):
    table, optimizer, _ = known
    view = table[3]
    pairs = [(np.ones(WIDTH), view)]
    optimizer.apply_gradients(pairs)
    assert Planner.bound.__code__ not in frames_of(optimizer.apply_gradients, pairs)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("twice", [(4, 4), (4, 5, 4), (5, 4, 4)])
def test_a_row_that_occurs_twice(known, twice):
    """The last gradient is that row itself, as it is before the step."""
    table, optimizer, plain = known
    lists = [(1, 2, 3)[: len(twice)], (6, 7, 8)[: len(twice)], (4, 5, 6)[: len(twice)]]
    for rows in [*lists * 3, twice, *lists, twice]:
        gradients = [*noise(len(rows) - 1, WIDTH), table[rows[-1]]]
        before = [gradient.copy() for gradient in gradients]
        optimizer.apply_gradients([(g, table[k]) for g, k in zip(gradients, rows, strict=True)])
        for row, gradient in zip(rows, before, strict=True):
            plain.step(row, gradient)
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)


OTHER_VIEWS = {
    "shape": lambda table: table.reshape(ROWS, WIDTH, 1)[4],
    "dtype": lambda table: table.view(np.complex128).view(np.float64)[4],
    "reversed": lambda table: table[4, ::-1],
    "memmap": lambda table: table[4].view(np.memmap),
    "chain": lambda table: table[2:].view(np.memmap)[2].view(np.ndarray),
}


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", OTHER_VIEWS)
def test_other_views_of_the_same_memory(name):
    table = noise(ROWS, WIDTH + 1)
    plain, optimizer = Rows(table), RMSprop(LEARNING_RATE)
    for row in [*range(ROWS), 5, 4]:
        optimizer.apply_gradients([(np.ones(WIDTH + 1), table[row])])
        plain.step(row, np.ones(WIDTH + 1))
    shaped = table.reshape(ROWS, 2, 3) if name == "shape" else table
    view = shaped[4] if name == "shape" else OTHER_VIEWS[name](table)
    for step in range(3):
        gradient = noise(*view.shape, seed=step)
        optimizer.apply_gradients([(gradient, view)])
        optimizer.apply_gradients([(np.ones(WIDTH + 1), table[5])])
        flat = gradient[::-1] if name == "reversed" else gradient.reshape(-1)
        plain.step(4, flat)
        plain.step(5, np.ones(WIDTH + 1))
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)


@pytest.mark.usefixtures("reader")
def test_a_row_of_an_array_that_was_resized_is_refused(known):
    table, optimizer, _ = known
    memory = noise(4, WIDTH, seed=2)
    for row in (0, 1, 2, 3, 0):
        optimizer.apply_gradients([(np.ones(WIDTH), memory[row])])
    memory.resize((40, WIDTH), refcheck=False)
    for row in range(3):
        with pytest.raises(ValueError, match="was resized"):
            optimizer.apply_gradients([(np.ones(WIDTH), memory[row])])
    optimizer.apply_gradients([(np.ones(WIDTH), table[0])])


def walk(optimizer, table, times=1):
    for row in list(range(len(table))) * times:
        optimizer.apply_gradients([(np.ones(table.shape[1]), table[row])])


@pytest.fixture
def searched(monkeypatch):
    """The lists of variables that a step looked for in the store."""
    lists = []
    find = Locator.find

    def note(self, arrays, store):
        lists.append(arrays)
        return find(self, arrays, store)

    monkeypatch.setattr(Locator, "find", note)
    return lists


@pytest.mark.parametrize("rows", [ROWS, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory", [np.zeros, lambda n: np.ndarray(n, buffer=bytearray(8 * n))])
def test_every_row_is_looked_for_a_few_times_only(searched, memory, rows):
    """However many there are: the table of records grows."""
    table, optimizer = memory(rows * WIDTH).reshape(rows, WIDTH), RMSprop(LEARNING_RATE)
    walk(optimizer, table, times=4)
    del searched[:]
    walk(optimizer, table)
    assert not searched
    plain = Rows(np.zeros((1, WIDTH)))
    for _ in range(5):
        plain.step(0, np.ones(WIDTH))
    np.testing.assert_allclose(table, np.repeat(plain.values, rows, axis=0), rtol=1e-12)


@pytest.mark.usefixtures("reader")
def test_rows_of_a_mapping_that_was_closed_leave_nothing():
    optimizer, first, addresses = RMSprop(LEARNING_RATE), Rows(np.zeros((1, WIDTH))), set()
    first.step(0, np.ones(WIDTH))
    for _ in range(4):
        mapping = mmap.mmap(-1, 4 * WIDTH * 8)
        table = np.ndarray((4, WIDTH), buffer=mapping)
        walk(optimizer, table)
        np.testing.assert_allclose(table, np.repeat(first.values, 4, axis=0), rtol=1e-12)
        walk(optimizer, table, times=3)
        addresses.add(address_of(table))
        del table
        mapping.close()
    assert len(addresses) < 4


@pytest.mark.usefixtures("reader")
def test_rows_that_were_forgotten_start_again(known):
    table, optimizer, plain = known
    optimizer.forget(table[7])
    plain.rms[7] = 0
    for row in (6, 7, 8, 7):
        optimizer.apply_gradients([(np.ones(WIDTH), table[row])])
        plain.step(row, np.ones(WIDTH))
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)


WRITTEN = {
    "its own row": lambda table, slot: table[2],
    "another row": lambda table, slot: table[9],
    "its own row, reversed": lambda table, slot: table[2, ::-1],
    "another row, reversed": lambda table, slot: table[9, ::-1],
    "two rows": lambda table, slot: table.reshape(-1)[2 * WIDTH + 2 : 3 * WIDTH + 2],
    "its slot": lambda table, slot: slot,
}


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_gradient_in_memory_that_the_step_writes(known, name):
    table, optimizer, plain = known
    rows = [9, 3, 2]
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(WIDTH), table[row]) for row in rows])
        for row in rows:
            plain.step(row, np.ones(WIDTH))
    gradient = WRITTEN[name](table, optimizer.get_slot(table[2], "rms").array)
    before = gradient.copy()
    gradients = [np.ones(WIDTH), np.ones(WIDTH), gradient]
    optimizer.apply_gradients([(g, table[k]) for g, k in zip(gradients, rows, strict=True)])
    for row, of_row in zip(rows, [np.ones(WIDTH), np.ones(WIDTH), before], strict=True):
        plain.step(row, of_row)
    np.testing.assert_allclose(table, plain.values, rtol=1e-12)


def run_with_interruption(step, moment, interrupt):
    """Run `step`, and `interrupt` before its line of that number; false if it has fewer lines."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == moment:
                sys.settrace(None)
                interrupt()
        return trace

    watched("trace", trace, step)
    return lines >= moment


@pytest.mark.usefixtures("reader")
def test_a_signal_handler_that_steps_another_row_meanwhile(known):
    """Before each line in turn, since a handler may run at any of them."""
    table, optimizer, plain = known
    one, other = 7, 8
    gradient, another = noise(2, WIDTH)
    views = table[one], table[other]  # unlike those of the two steps, the same in every round
    moment, interrupted = 1, True
    while interrupted:
        optimizer.apply_gradients([(gradient, table[3])])
        interrupted = run_with_interruption(
            lambda: optimizer.apply_gradients([(gradient, table[one])]),
            moment,
            lambda: optimizer.apply_gradients([(another, table[other])]),
        )
        plain.step(3, gradient)
        plain.step(one, gradient)
        if interrupted:
            plain.step(other, another)
        for view, row in zip(views, (one, other), strict=True):
            optimizer.apply_gradients([(gradient, view)])
            plain.step(row, gradient)
        moment += 1
    assert moment > 60
    np.testing.assert_allclose(table, plain.values, rtol=1e-9)


@pytest.mark.usefixtures("reader")
def test_nothing_is_kept_alive_but_the_last_list(known):
    """The state keeps the table alive, and plans do not add to that."""
    table, optimizer, _ = known
    references = sys.getrefcount(table)
    for _ in range(3):
        for row in range(ROWS):
            optimizer.apply_gradients([(np.ones(WIDTH), table[row])])
    assert sys.getrefcount(table) <= references + 1


def test_plans_of_views_are_not_laid_out_again(known, monkeypatch):
    table, optimizer, _ = known
    monkeypatch.setattr(plans.Plan, "__init__", None)
    for row in range(ROWS):
        optimizer.apply_gradients([(np.ones(WIDTH), table[row])])
    assert optimizer.iterations == 3 * ROWS
