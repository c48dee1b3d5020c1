"""Functions of the user's that change the optimizer while it asks them for its numbers."""

import numpy as np
import pytest

import rmsjit
from rmsjit import IndexedSlices

ROWS = (10, 4)


class Rate:
    """A learning rate that does something else at one of its calls."""

    def __init__(self, call, act, value=0.1):
        self.call, self.act, self.value = call, act, value
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls == self.call:
            self.act()
        return self.value


def gradient(kind, rows=ROWS):
    if kind == "sparse":
        return IndexedSlices(np.ones((1, rows[1])), [1])
    return np.ones((rows[1], rows[0])).T if kind == "strided" else np.ones(rows)


KINDS = ["dense", "sparse", "strided"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_group_that_is_frozen_meanwhile_does_not_move(kind, call):
    rate = Rate(call, lambda: setattr(group, "frozen", True))
    table, opt = np.ones(ROWS), rmsjit.RMSprop(rate)
    group = opt.add_group([table], lr_multiplier=2.0)
    for _ in range(call - 1):
        opt.apply_gradients([(gradient(kind), table)])
    before = table.copy()
    opt.apply_gradients([(gradient(kind), table)])
    np.testing.assert_array_equal(table, before)
    assert opt.iterations.numpy() == call


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_is_moved_meanwhile_stays_with_its_new_variable(kind):
    table, other = np.ones(ROWS), np.full(ROWS, 2.0)
    rate = Rate(3, lambda: opt.rebind(table, other))
    opt = rmsjit.RMSprop(rate, momentum=0.9)
    for _ in range(2):
        opt.apply_gradients([(gradient(kind), table)])
    moved = opt.get_slot(table, "momentum").numpy().copy()
    opt.apply_gradients([(gradient(kind), table)])  # a new variable to it
    np.testing.assert_array_equal(opt.get_slot(other, "momentum").numpy(), moved)
    np.testing.assert_array_equal(other, np.full(ROWS, 2.0))
    fresh, first = np.ones(ROWS), rmsjit.RMSprop(0.1, momentum=0.9)
    first.apply_gradients([(gradient(kind), fresh)])
    np.testing.assert_array_equal(
        opt.get_slot(table, "momentum").numpy(), first.get_slot(fresh, "momentum").numpy()
    )


@pytest.mark.parametrize("before", [0, 1])
def test_a_group_that_is_added_meanwhile_counts(before):
    t, u, v = np.ones(4), np.ones(4), np.ones(4)
    rate = Rate(2, lambda: opt.add_group([v], lr_multiplier=0.0))
    # The rate of a group is asked for last, when the numbers of all others are known.
    opt = rmsjit.RMSprop(0.1 if before else rate)
    if before:
        opt.add_group([u], learning_rate=rate)
    pairs = [(np.ones(4), t), (np.ones(4), u), (np.ones(4), v)]
    opt.apply_gradients(pairs)
    assert v[0] < 1.0
    known = v.copy()
    opt.apply_gradients(pairs)
    np.testing.assert_array_equal(v, known)
    assert t[0] < known[0]
    assert opt.iterations.numpy() == 2


def test_a_rate_that_is_set_by_the_function_that_it_replaces_is_used():
    opt = rmsjit.RMSprop(Rate(1, lambda: setattr(opt, "learning_rate", 0.25), 0.01), rho=0.0)
    w = np.zeros(3)
    for expected in (-0.01, -0.26, -0.51):
        opt.apply_gradients([(np.ones(3), w)])
        np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_a_setting_of_a_group_that_its_function_replaces_is_used():
    w = np.zeros(3)
    opt = rmsjit.RMSprop(0.01, rho=0.0)
    group = opt.add_group([w])
    group.learning_rate = Rate(1, lambda: setattr(group, "learning_rate", 0.25), 0.01)
    for expected in (-0.01, -0.26, -0.51):
        opt.apply_gradients([(np.ones(3), w)])
        np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_a_step_within_a_step_that_adds_the_same_slot():
    w, v = np.ones(3), np.ones(3)
    rate = Rate(2, lambda: opt.apply_gradients([(np.ones(3), w)]))
    opt = rmsjit.RMSprop(rate)
    both = [(np.ones(3), w), (np.ones(3), v)]
    opt.apply_gradients(both)
    opt.momentum = 0.9
    opt.apply_gradients(both)
    slot = opt.get_slot(w, "momentum")
    twin, other = np.ones(3), rmsjit.RMSprop(0.1)
    other.apply_gradients([(np.ones(3), twin)])
    other.momentum = 0.9
    for _ in range(2):
        other.apply_gradients([(np.ones(3), twin)])
    np.testing.assert_array_equal(w, twin)
    np.testing.assert_array_equal(slot.numpy(), other.get_slot(twin, "momentum").numpy())
    assert len(opt.weights) == 1 + 2 * 2
    for pairs in ([(np.ones(3), w)], both):  # whose plans update the same slot
        before = slot.numpy().copy()
        opt.apply_gradients(pairs)
        assert (slot.numpy() > before).all()
