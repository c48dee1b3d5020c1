"""Plans that are moved from one list of variables to another of the same shapes and dtypes."""

import threading

import numpy as np
import pytest

import rmsjit
from rmsjit import IndexedSlices, RMSprop
from rmsjit.steps import plan as plans

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.5},
    "centered": {"centered": True, "momentum": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "clipnorm": {"clipnorm": 0.3},
    "global_clipnorm": {"global_clipnorm": 0.3, "momentum": 0.5},
    "skip": {"nonfinite": "skip"},
    "exact": {"sparse": "exact"},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def noise(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def made(monkeypatch):
    """The plans that were laid out, not moved."""
    laid_out = []
    begin = plans.Plan.__init__

    def note(self, *arguments, **keywords):
        laid_out.append(self)
        begin(self, *arguments, **keywords)

    monkeypatch.setattr(plans.Plan, "__init__", note)
    return laid_out


@every_setting
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_as_variables_are_as_arrays_of_their_own(settings, dtype):
    table = noise(20, 6, dtype=dtype)
    arrays = [row.copy() for row in table]
    together, each = RMSprop(0.1, **settings), [RMSprop(0.1, **settings) for _ in arrays]
    for step in range(60):
        k = step * 7 % 20
        gradient = noise(6, seed=step, dtype=dtype)
        together.apply_gradients([(gradient, table[k])])
        each[k].apply_gradients([(gradient, arrays[k])])
    assert np.array_equal(table, arrays)


@every_setting
def test_networks_in_turn_are_as_with_optimizers_of_their_own(settings):
    shapes = [(4, 3), (3,), (5,)]
    networks = [[noise(*s, seed=n) for s in shapes] for n in range(3)]
    copies = [[array.copy() for array in network] for network in networks]
    together, each = RMSprop(0.1, **settings), [RMSprop(0.1, **settings) for _ in networks]
    for step in range(30):
        n = (0, 1, 2, 1)[step % 4]
        gradients = [noise(*s, seed=step) for s in shapes]
        together.apply_gradients(zip(gradients, networks[n], strict=True))
        each[n].apply_gradients(zip(gradients, copies[n], strict=True))
    for network, copy in zip(networks, copies, strict=True):
        assert all(map(np.array_equal, network, copy))


def test_one_plan_serves_for_all_rows(made):
    table, optimizer = noise(30, 6), RMSprop(0.1)
    for step in range(150):
        optimizer.apply_gradients([(np.ones(6), table[step % 30])])
    assert len(made) == 1
    assert optimizer.iterations == 150


def test_a_plan_serves_for_its_own_shapes_dtypes_and_kinds_only(made):
    optimizer = RMSprop(0.1)
    variables = [np.ones(6), np.ones((2, 3)), np.ones(6, "f4"), np.ones((3, 4))[:, :2], np.ones(7)]
    for variable in variables:
        optimizer.apply_gradients([(np.ones_like(variable), variable)])
    optimizer.apply_gradients([(np.ones(6).tolist(), np.ones(6))])
    slices = IndexedSlices(np.ones((1, 3)), np.array([0]), (2, 3))
    optimizer.apply_gradients([(slices, np.ones((2, 3)))])
    assert len(made) == len(variables) + 2


def test_two_variables_that_overlap_are_refused():
    memory, optimizer = np.zeros(40), RMSprop(0.1)
    optimizer.apply_gradients([(np.ones(8), memory[0:8])])
    optimizer.apply_gradients([(np.ones(8), memory[8:16])])
    with pytest.raises(ValueError, match="share"):
        optimizer.apply_gradients([(np.ones(8), memory[12:20])])
    with pytest.raises(ValueError, match="share"):
        optimizer.apply_gradients([(np.ones(8), memory[20:28]), (np.ones(8), memory[24:32])])
    assert not memory[16:].any()


def test_a_variable_twice():
    arrays, one, optimizer, other = np.ones((2, 4)), np.ones(4), RMSprop(0.1), RMSprop(0.1)
    g, h = noise(4), noise(4, seed=1)
    optimizer.apply_gradients([(g, arrays[0]), (h, arrays[1])])
    optimizer.apply_gradients([(g, arrays[0]), (h, arrays[0])])
    for gradient in (g, g, h):
        other.apply_gradients([(gradient, one)])
    assert np.array_equal(arrays[0], one)


@pytest.mark.parametrize("where", ["variable", "slot"])
def test_a_gradient_in_what_the_step_writes(where):
    table, copy = noise(3, 6), noise(3, 6)
    optimizer, other = RMSprop(0.1), RMSprop(0.1)
    for k in (0, 1, 2, 1):
        optimizer.apply_gradients([(np.ones(6), table[k])])
        other.apply_gradients([(np.ones(6), copy[k])])
    written = table[2] if where == "variable" else optimizer.get_slot(table[2], "rms").array
    gradient = written[::-1]
    before = gradient.copy()
    optimizer.apply_gradients([(gradient, table[2])])
    other.apply_gradients([(before, copy[2])])
    assert np.array_equal(table, copy)


def test_a_read_only_variable_is_named():
    table, optimizer = np.ones((3, 4)), RMSprop(0.1)
    for row in table[:2]:
        optimizer.apply_gradients([(np.ones(4), row)])
    row = table[2]
    row.flags.writeable = False
    with pytest.raises(ValueError, match="variable 0 must be writeable"):
        optimizer.apply_gradients([(np.ones(4), row)])
    assert (table[2] == 1).all()


def test_a_further_slot_and_forgotten_variables():
    table, optimizer = noise(4, 5), RMSprop(0.1)
    fresh = table.copy()
    for k in (0, 1, 2, 3, 0, 1):
        optimizer.apply_gradients([(np.ones(5), table[k])])
    optimizer.forget(table[2])
    optimizer.add_slot(table[3], "mine")
    again = RMSprop(0.1)
    fresh[2] = table[2]
    optimizer.apply_gradients([(np.ones(5), table[2])])
    again.apply_gradients([(np.ones(5), fresh[2])])
    assert np.array_equal(table[2], fresh[2])


def test_a_rate_that_steps_other_rows_meanwhile():
    table, copy = noise(6, 4), noise(6, 4)
    inner = []

    def rate():
        if len(inner) < 40 and not running:
            running.append(True)
            inner.append(len(inner) % 3 + 3)
            optimizer.apply_gradients([(np.ones(4), table[inner[-1]])])
            running.pop()
        return 0.1

    running = []
    optimizer, other = RMSprop(rate), RMSprop(0.1)
    for step in range(40):
        optimizer.apply_gradients([(np.ones(4), table[step % 3])])
        other.apply_gradients([(np.ones(4), copy[step % 3])])
        other.apply_gradients([(np.ones(4), copy[inner[step]])])
    assert len(inner) == 40
    assert np.array_equal(table, copy)


def test_threads_that_step_rows_of_one_table():
    table, copy = noise(8, 16), noise(8, 16)
    optimizer, other = RMSprop(0.01, momentum=0.5), RMSprop(0.01, momentum=0.5)
    gradients = noise(400, 16, seed=3)

    def work(mine):
        for step in range(400):
            row = table[mine[step % len(mine)]]
            optimizer.apply_gradients([(gradients[step], row)])

    shares = [(0, 1, 2), (3, 4), (5, 6, 7)]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for share in shares:
        for step in range(400):
            other.apply_gradients([(gradients[step], copy[share[step % len(share)]])])
    assert np.array_equal(table, copy)
    assert optimizer.iterations == 1200


def test_a_variable_of_rmsjit_keeps_its_plan(made):
    variables, optimizer = [rmsjit.Variable(np.ones(4)) for _ in range(3)], RMSprop(0.1)
    for variable in variables * 2:
        optimizer.apply_gradients([(np.ones(4), variable)])
    assert len(made) == 3


def test_factors_of_a_norm_do_not_stay():
    """A step that clips by value only, after one that clipped by norm, of the same plan."""
    v, optimizer = np.ones(4), RMSprop(0.1, clipnorm=0.01)
    optimizer.apply_gradients([(noise(4), v)])
    copy, twin = v.copy(), RMSprop(0.1, clipvalue=0.5)
    twin.build([copy])
    twin.set_weights(optimizer.get_weights())
    optimizer.clipnorm, optimizer.clipvalue = None, 0.5
    for each, variable in ((optimizer, v), (twin, copy)):
        each.apply_gradients([(noise(4, seed=1), variable)])
    assert np.array_equal(v, copy)


def test_pairs_that_have_not_moved_are_read_once(monkeypatch):
    """As a strategy's sums are, which it makes itself, with variables that it has checked."""
    W, gradient, other = noise(3), noise(3, seed=1), noise(3, seed=2)
    opt = RMSprop(0.1)
    pairs = ((gradient, W),)
    for _ in range(2):
        opt.apply_gradients(pairs)
    bindings = opt._engine._plans.last.plan.bindings
    read, bind = [], bindings.bind
    monkeypatch.setattr(
        bindings, "bind", lambda *given, **by_name: read.append(1) or bind(*given, **by_name)
    )
    address = gradient.__array_interface__["data"][0]

    def bound():
        binding = bindings.bind_unmoved(pairs)
        assert binding.gradients.tolist() == [address]
        assert binding.alive is pairs
        bindings.free.append(binding)

    for reads in (1, 1):
        bound()
        assert len(read) == reads
    opt.apply_gradients([(other, W)])
    for reads in (3, 3):
        bound()
        assert len(read) == reads
    opt._engine.store.epoch[0] += 1  # something that the plan depends on has changed
    assert bindings.bind_unmoved(pairs) is None


def test_gradients_that_are_copied_are_copied_at_every_step():
    W, gradient = noise(3), noise(6, seed=1)
    opt = RMSprop(0.1)
    pairs = ((gradient[::2], W),)
    for _ in range(2):
        opt.apply_gradients(pairs)
    bindings = opt._engine._plans.last.plan.bindings
    for value in (1.0, 2.0):
        gradient[...] = value
        binding = bindings.bind_unmoved(pairs)
        _, [copy] = binding.alive
        assert (copy == value).all()
        bindings.free.append(binding)
