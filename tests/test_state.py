"""What is known of variables: copies, growth, memory that is gone, slots that were handed in."""

import copy
import io
import itertools
import mmap
import pickle
import warnings
from multiprocessing import shared_memory

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays import overlap
from rmsjit.arrays.overlap import Overlaps
from rmsjit.state.entries import entry_of
from strategies import BOTH, KERAS, same_bits, state_of

PLAIN = KERAS[0]


def step(optimizer, variable, value=1.0):
    optimizer.apply_gradients([(np.full(np.shape(variable), value), variable)])


def names(optimizer):
    return [variable.name.removesuffix(":0") for variable in optimizer.variables_seen]


# --- Copies ----------------------------------------------------------------------------------


def joblib_copy(value):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


COPIERS = {
    "deepcopy": copy.deepcopy,
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "joblib": joblib_copy,
}
every_copier = pytest.mark.parametrize("copier", COPIERS)

HELD = {
    "array": lambda: np.arange(12.0).reshape(3, 4).copy(),
    "F": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "permuted": lambda: np.copy(np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0), order="K"),
    "Variable": lambda: rmsjit.Variable(np.arange(12.0).reshape(3, 4).copy()),
    "large": lambda: np.linspace(0, 1, 20_000).reshape(200, 100).copy(),
}
GIVEN = {
    "itself": lambda W: W,
    "[...]": lambda W: W[...],
    "T": lambda W: np.asarray(W).T,
    "flipped": lambda W: np.asarray(W)[::-1],
    "flat": lambda W: np.asarray(W).reshape(-1),
    "Variable": lambda W: rmsjit.Variable(W),
    "Variable of a view": lambda W: rmsjit.Variable(np.asarray(W)[...]),
    "subclass": lambda W: np.asarray(W).view(np.recarray),
}
ORDERS = {
    "optimizer first": (lambda opt, W: (opt, W), lambda copied: copied),
    "optimizer last": (lambda opt, W: (W, opt), lambda copied: copied[::-1]),
    "dict": (lambda opt, W: {"W": [W], "opt": opt}, lambda d: (d["opt"], d["W"][0])),
    "twice": (lambda opt, W: [opt, W, opt, [W]], lambda copied: copied[:2]),
}


@pytest.mark.slow
@every_copier
@pytest.mark.parametrize("held", HELD)
def test_a_copy_goes_on_whatever_view_the_optimizer_saw(held, copier):
    for given, (put, take) in itertools.product(GIVEN, ORDERS.values()):
        W = HELD[held]()
        if given == "flat" and not np.asarray(W).flags.c_contiguous:
            continue
        optimizer = BOTH.optimizer()
        for _ in range(2):
            step(optimizer, GIVEN[given](W))
        other, copied = take(COPIERS[copier](put(optimizer, W)))
        for name in (given, "itself", given):
            step(optimizer, GIVEN[name](W), 0.5)
            step(other, GIVEN[name](copied), 0.5)
            assert same_bits(copied, W)
        assert len(other.variables()) == len(optimizer.variables())
        assert names(other) == names(optimizer)


@every_copier
@pytest.mark.parametrize("first", [True, False])
def test_a_flat_vector_whose_layers_are_made_anew_at_each_step(copier, first):
    def train(optimizer, flat):
        layers = flat[:6].reshape(2, 3), flat[6:8], flat[8:].reshape(3, 4).T
        optimizer.apply_gradients([(np.ones(v.shape), v) for v in layers])

    flat, optimizer = np.zeros(20), BOTH.optimizer()
    train(optimizer, flat)
    pair = COPIERS[copier]((flat, optimizer) if first else (optimizer, flat))
    copied, other = pair if first else pair[::-1]
    train(other, copied)
    train(optimizer, flat)
    assert same_bits(copied, flat)
    assert len(other.variables()) == len(optimizer.variables())


@every_copier
def test_views_that_stay_and_are_copied_without_their_base(copier):
    """NumPy gives every copied view memory of its own, and these go on."""
    flat, optimizer = np.zeros(10), BOTH.optimizer()
    layers = [flat[:4].reshape(2, 2), flat[4:]]
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(v.shape), v) for v in layers])
    other, copies = COPIERS[copier]((optimizer, layers))
    for o, variables in ((optimizer, layers), (other, copies)):
        o.apply_gradients([(np.full(v.shape, 0.5), v) for v in variables])
    assert all(same_bits(one, two) for one, two in zip(copies, layers, strict=True))
    assert len(other.variables()) == len(optimizer.variables())


@every_copier
def test_a_view_of_an_array_without_a_name(copier):
    W = np.arange(12.0).reshape(3, 4)  # a view of what arange made
    optimizer = BOTH.optimizer()
    step(optimizer, W)
    copied, other = COPIERS[copier]((W, optimizer))
    step(optimizer, W)
    step(other, copied)
    assert same_bits(copied, W)


@every_copier
def test_what_only_its_values_tell_goes_on_and_is_told(copier):
    """The optimizer saw views of what the user's array is a view of too, never that array."""
    W = np.arange(12.0).reshape(3, 4)
    optimizer = BOTH.optimizer()
    step(optimizer, W.T)
    other, copied = COPIERS[copier]((optimizer, W))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(other, copied.T)
        step(other, copied)
    assert len(caught) == (copier != "joblib")
    step(optimizer, W.T)
    step(optimizer, W)
    assert same_bits(copied, W)
    assert len(other.variables()) == len(optimizer.variables())


def test_a_copy_of_a_copy_before_any_step():
    W, optimizer = np.arange(6.0).reshape(2, 3).copy(), BOTH.optimizer()
    step(optimizer, W.T)
    other, copied = copy.deepcopy((optimizer, W))
    for copier in ("pickle", "deepcopy", "pickle"):
        other, copied = COPIERS[copier]((other, copied))
    step(optimizer, W)
    step(other, copied)
    assert same_bits(copied, W)


@every_copier
def test_slots_are_found_in_a_copy_before_any_step(copier):
    W, optimizer = np.arange(6.0).reshape(2, 3).copy(), BOTH.optimizer()
    step(optimizer, W.T)
    copied, other = COPIERS[copier]((W, optimizer))
    for slot in BOTH.slots:
        assert same_bits(other.get_slot(copied, slot), optimizer.get_slot(W, slot))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("together", [True, False])
def test_copies_with_empty_variables(shape, together):
    empty, w, optimizer = np.zeros(shape), np.arange(5.0), rmsjit.RMSprop(0.1)
    optimizer.apply_gradients([(np.zeros(shape), empty), (np.ones(5), w)])
    if together:
        other, empty, v = copy.deepcopy((optimizer, empty, w))
    else:
        other, v = copy.deepcopy((optimizer, w))
    pair = np.zeros(shape), empty if together else np.zeros(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if together else "ignore")
        other.apply_gradients([pair, (np.ones(5), v)])
    optimizer.apply_gradients([(np.ones(5), w)])
    np.testing.assert_array_equal(v, w)


def test_copies_of_slots_that_were_added():
    W, optimizer = np.zeros((2, 3)), PLAIN.optimizer()
    optimizer.add_slot(W.T, "mine", np.arange(6.0).reshape(3, 2))
    optimizer.add_weight("extra", (2,), initializer="ones")
    step(optimizer, W)
    W2, other = copy.deepcopy((W, optimizer))
    assert [w.name for w in other.weights] == [w.name for w in optimizer.weights]
    assert same_bits(other.get_slot(W2.T, "mine"), optimizer.get_slot(W.T, "mine"))


def test_several_that_nobody_holds_do_not_travel():
    """Only the slots do."""
    optimizer = PLAIN.optimizer()
    for size in (100_000, 200_000):
        step(optimizer, np.zeros(size, np.float32))
    assert len(pickle.dumps(optimizer)) < 1.1 * 4 * 300_000
    assert len(copy.deepcopy(optimizer).weights) == 3


APART = {
    "other values": lambda W: W + 1,
    "the same values": lambda W: W.copy(),
}


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("given", ["itself", "T"])
def test_an_optimizer_that_travelled_apart_says_so_once(given, apart):
    W, optimizer = np.zeros((2, 3)), BOTH.optimizer()
    step(optimizer, GIVEN[given](W))
    other, moved = pickle.loads(pickle.dumps(optimizer)), APART[apart](W)
    with pytest.warns(RuntimeWarning, match=r"variable 0 was not copied .* of Variable.* rebind"):
        step(other, GIVEN[given](moved))
    step(other, APART[apart](W))


REBIND = {
    "by the old variable": lambda other, W, v, new: (
        other.rebind(W, new[0]),
        other.rebind(v, new[1]),
    ),
    "by name": lambda other, W, v, new: (
        other.rebind("Variable", new[0]),
        other.rebind("bias:0", new[1]),
    ),
    "by a dict": lambda other, W, v, new: other.rebind({"bias": new[1], "Variable": new[0]}),
    "in order": lambda other, W, v, new: other.rebind(new),
    "by what is seen": lambda other, W, v, new: [
        other.rebind(seen, to) for seen, to in zip(other.variables_seen, new, strict=True)
    ],
}


@pytest.mark.parametrize("how", REBIND)
@pytest.mark.parametrize("apart", [True, False])
def test_rebind_gives_the_state_to_other_memory(how, apart):
    W, v = np.zeros((2, 3)), rmsjit.Variable(np.zeros(3), name="bias")
    optimizer = BOTH.optimizer()
    step(optimizer, W)
    step(optimizer, v)
    plain, expected = copy.deepcopy((optimizer, [W, v]))
    other = pickle.loads(pickle.dumps(optimizer)) if apart else optimizer
    new = [np.asfortranarray(W), rmsjit.Variable(v.numpy())]
    REBIND[how](other, W, v, new)
    for o, variables in ((other, new), (plain, expected)):
        for variable in variables:
            step(o, variable, 0.5)
    assert all(np.array_equal(one, two) for one, two in zip(new, expected, strict=True))
    assert len(other.variables()) == len(plain.variables())
    assert [w.name for w in other.variables()] == [w.name for w in plain.variables()]


def test_rebind_after_a_step_of_the_new_memory_takes_the_place_of_its_state():
    W, optimizer = np.zeros(3), PLAIN.optimizer()
    step(optimizer, W)
    rms = optimizer.get_slot(W, "rms").numpy()
    new = np.ones(3)
    step(optimizer, new, 7.0)
    optimizer.rebind(W, new)
    assert same_bits(optimizer.get_slot(new, "rms"), rms)
    assert len(optimizer.variables_seen) == 1
    with pytest.raises(KeyError):
        optimizer.get_slot(W, "rms")


TURNS = {
    "itself": lambda a: a,
    "transposed": lambda a: a.T,
    "upside down": lambda a: a[::-1],
    "flat": lambda a: a.reshape(-1),
}


@pytest.mark.parametrize("given", ["itself", "transposed", "upside down"])
@pytest.mark.parametrize("first", TURNS)
@pytest.mark.parametrize("shape", [(3, 3), (2, 5)])
@pytest.mark.parametrize("move", ["rebind", "resize_rows"])
def test_state_moves_by_the_axes_of_the_variable_that_is_given(move, shape, first, given):
    w, optimizer = np.arange(float(np.prod(shape))).reshape(shape).copy(), rmsjit.RMSprop(0.1)
    gradient = w + 1
    optimizer.apply_gradients([(TURNS[first](gradient), TURNS[first](w))])
    old = TURNS[given](w)
    before = optimizer.get_slot(old, "rms").numpy().copy()
    if move == "rebind":
        new = old.copy()
        optimizer.rebind(old, new)
    else:
        new = np.concatenate([old, old[:1]])
        optimizer.resize_rows(old, new)
    np.testing.assert_array_equal(optimizer.get_slot(new, "rms").numpy()[: len(old)], before)


@pytest.mark.parametrize("given", ["itself", "upside down"])
@pytest.mark.parametrize("first", ["itself", "upside down"])
def test_a_stranger_with_the_values_of_a_view_gets_the_state_of_that_view(first, given):
    w, optimizer = np.arange(1.0, 5.0), rmsjit.RMSprop(0.1)
    held = TURNS[first](w), TURNS["upside down"](w)
    for view in held:
        optimizer.apply_gradients([(view.copy(), view)])
    other = copy.deepcopy(optimizer)
    new, expected = TURNS[given](w).copy(), optimizer.get_slot(TURNS[given](w), "rms").numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(other.get_slot(new, "rms").numpy(), expected)


@pytest.mark.parametrize("view", [lambda b: b[1], lambda b: b[::-1], lambda b: b.T])
def test_pickles_with_empty_views_can_be_read(view):
    base, w, optimizer = np.zeros((3, 4, 0)), np.ones(3), rmsjit.RMSprop(0.1)
    for source in (base, pickle.loads(pickle.dumps(base))):
        empty = view(source)
        for _ in range(2):
            optimizer.apply_gradients([(np.zeros(empty.shape), empty), (w, w)])
        for protocol in (2, 4, 5):
            other, _, v = pickle.loads(pickle.dumps((optimizer, source, w), protocol))
            other.apply_gradients([(np.ones(3), v)])


def test_rebind_that_can_not_be_changes_nothing():
    W, b, optimizer = np.zeros((2, 3)), np.zeros(3), PLAIN.optimizer()
    optimizer.build([W, b])
    before = state_of(optimizer, [W, b])
    shared = np.zeros((3, 3))
    for error, arguments in (
        (KeyError, ("nothing", W)),
        (KeyError, (np.zeros(3), np.zeros(3))),
        (ValueError, (W, np.zeros((3, 2)))),
        (ValueError, (W, np.zeros((2, 3), np.float32))),
        (TypeError, (W, [0.0, 1.0])),
        (TypeError, (W, None)),
        (ValueError, ([W],)),
        (ValueError, ({"Variable": np.zeros((2, 3)), "Variable_1": np.zeros(2)},)),
        (ValueError, ([shared[:2], shared[1]],)),
    ):
        with pytest.raises(error):
            optimizer.rebind(*arguments)
        assert state_of(optimizer, [W, b]) == before
        assert names(optimizer) == ["Variable", "Variable_1"]
    step(optimizer, W)


def test_rebind_takes_along_what_rows_have_missed():
    table, plain = np.ones((6, 2)), np.ones((6, 2))
    optimizers = [rmsjit.RMSprop(0.1, momentum=0.9, sparse="exact") for _ in range(2)]
    for row in (0, 3, 1):
        for optimizer, t in zip(optimizers, (table, plain), strict=True):
            optimizer.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 2)), [row]), t)])
    moved = table.copy()
    optimizers[0].rebind(table, moved)
    for optimizer in optimizers:
        optimizer.sync()
    np.testing.assert_allclose(moved, plain, rtol=1e-15)
    for slot in ("rms", "momentum"):
        got, want = optimizers[0].get_slot(moved, slot), optimizers[1].get_slot(plain, slot)
        np.testing.assert_allclose(got, want, rtol=1e-15)


def missing_steps(view):
    """An optimizer and a table, some of whose rows have missed steps, counted in a view of it."""
    table, optimizer = np.arange(24.0).reshape(6, 4), rmsjit.RMSprop(momentum=0.9, sparse="exact")
    optimizer.apply_gradients([(np.ones((6, 4)), table)])
    rows = view(table)
    for row in range(3):
        slices = rmsjit.IndexedSlices(np.ones((1, rows.shape[1])), [row])
        optimizer.apply_gradients([(slices, rows)])
    return optimizer, table


MOVES = {
    "rebind": lambda optimizer, table: optimizer.rebind(table, table.copy()),
    "resize_rows": lambda optimizer, table: optimizer.resize_rows(table, np.ones((7, 4))),
}


@pytest.mark.parametrize("move", MOVES)
def test_what_rows_of_another_view_have_missed_is_not_lost(move):
    optimizer, table = missing_steps(lambda table: table.reshape(12, 2))
    other, twin = missing_steps(lambda table: table.reshape(12, 2))
    with pytest.raises(ValueError, match=r"missed steps in another view, of shape \(12, 2\): sync"):
        MOVES[move](optimizer, table)
    for one, own in ((optimizer, table), (other, twin)):
        one.sync()
        one.apply_gradients([(np.ones((6, 4)), own)])
    np.testing.assert_array_equal(table, twin)
    MOVES[move](optimizer, table)


def test_a_refused_rebind_leaves_the_clock_of_rows_alone():
    optimizer, table = missing_steps(lambda table: table)
    shared = np.ones((8, 4))
    optimizer.build([shared[:4]])
    key = optimizer._store.find(table).clock.rows_key
    with pytest.raises(ValueError, match="overlap"):
        optimizer.rebind(table, shared[2:])
    assert optimizer._store.find(table).clock.rows_key == key


# --- Weights ---------------------------------------------------------------------------------


def test_set_weights_with_live_slots_in_another_order():
    W, V, optimizer = np.ones(4), np.ones(4), PLAIN.optimizer()
    step(optimizer, W)
    step(optimizer, V, 3.0)
    count, *slots = optimizer.weights
    before = [slot.numpy() for slot in slots]
    optimizer.set_weights([count, *slots[::-1]])
    assert [same_bits(s, b) for s, b in zip(slots, before[::-1], strict=True)] == [True, True]


def test_set_weights_writes_all_or_nothing():
    W, optimizer = np.ones(4), BOTH.optimizer()
    step(optimizer, W)
    optimizer.weights[-1].array.flags.writeable = False
    before = state_of(optimizer, [W])
    with pytest.raises(ValueError, match="must be writeable"):
        optimizer.set_weights([np.array(7), *(np.zeros(4) for _ in BOTH.slots)])
    assert state_of(optimizer, [W]) == before


# --- Growth ----------------------------------------------------------------------------------


def compared(variables):
    """How many pairs of memories are compared when variables become known one after the other."""
    known, fresh = Overlaps(), [entry_of(variable) for variable in variables]
    for entry in fresh:
        assert known.meeting(entry) is None
        known.add(entry)
    assert all(known.meeting(entry) is None for entry in fresh[:3] + fresh[-3:])
    return known.compared


MANY = {
    "rows": lambda n: list(np.zeros((n, 8))),
    "rows backwards": lambda n: list(np.zeros((n, 8))[::-1]),
    "rows in any order": lambda n: list(np.zeros((n, 8))[::-2]) + list(np.zeros((n, 8))[::3]),
    "columns": lambda n: list(np.zeros((50, n)).T),
    "columns of float32": lambda n: list(np.zeros((50, n), np.float32).T),
    "blocks of columns": lambda n: list(np.zeros((5, n, 3)).transpose(1, 0, 2)),
    "blocks of columns, inner gaps": lambda n: [
        b[:, ::2] for b in np.zeros((5, n, 3)).transpose(1, 0, 2)
    ],
    "matrices of columns": lambda n: [
        column for M in [np.zeros((9, 10)) for _ in range(n // 10)] for column in M.T
    ],
    "arrays": lambda n: [np.zeros(3) for _ in range(n)],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_to_know_a_variable_takes_no_longer_where_many_are_known(case):
    assert compared(MANY[case](2000)) <= 3 * 2000


def test_columns_of_one_array_and_the_column_between():
    M = np.zeros((50, 400))
    known = Overlaps(entry_of(column) for column in M.T[::2])
    assert known.meeting(entry_of(M[:, 7])) is None
    assert known.meeting(entry_of(M[:, 7:9])) is not None
    assert known.meeting(entry_of(M[3])) is not None
    assert known.meeting(entry_of(M[3, 5:6])) is None
    assert known.meeting(entry_of(M[3:4, 6:7])) is not None
    assert known.meeting(entry_of(M[::3, 1::2])) is None


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 512], ids="chunks of {}".format)
def test_random_views_overlap_or_not_as_numpy_says(length, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", length)
    rng = np.random.default_rng(0)

    def part(length):
        if rng.random() < 0.3:
            return int(rng.integers(length))
        low, high = sorted(rng.integers(0, length + 1, 2))
        return slice(int(low), int(high), int(rng.choice([1, 1, 2, 3])))

    found = [0, 0]
    for _ in range(400):
        base = np.zeros((6, 7, 3), rng.choice(["float32", "float64"]))
        known, index = [], Overlaps()
        for _ in range(8):
            view = base[(*map(part, base.shape), ...)]
            entry = entry_of(view.T if rng.random() < 0.3 else view)
            shared = any(np.shares_memory(view, e.canonical) for e in known if e.key != entry.key)
            assert (index.meeting(entry) is not None) == shared
            found[shared] += 1
            if not shared and entry.key not in [e.key for e in known]:
                known.append(entry)
                index.add(entry)
    assert min(found) > 200


def test_a_span_that_many_others_are_merged_into_is_found(monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", 8)
    table = np.zeros((400, 6))
    known = Overlaps(entry_of(table[k : k + 4, 0]) for k in range(0, 400, 4))
    known.add(entry_of(table[:, 1]))
    for k in range(0, 400, 4):
        assert known.meeting(entry_of(table[k : k + 4, 1:3])) is not None
        assert known.meeting(entry_of(table[k : k + 4, 2:4])) is None


def test_rows_of_a_table_as_variables():
    table, expected = np.zeros((300, 4)), np.zeros((300, 4))
    optimizer, plain = BOTH.optimizer(), BOTH.optimizer()
    rng = np.random.default_rng(0)
    for row in (*rng.permutation(300), *rng.permutation(300)):
        optimizer.apply_gradients([(np.full(4, 1.0 + row), table[row])])
    for _ in range(2):
        plain.apply_gradients([(np.repeat(1.0 + np.arange(300), 4).reshape(300, 4), expected)])
    assert same_bits(table, expected)
    assert len(optimizer.variables_seen) == 300


@pytest.mark.parametrize("pair", [(np.s_[:2], np.s_[1:]), (np.s_[:], np.s_[1]), (0, np.s_[:])])
def test_the_message_for_rows_that_overlap_names_the_way_for_tables(pair):
    table, optimizer = np.zeros((4, 3)), PLAIN.optimizer()
    step(optimizer, table[pair[0]])
    with pytest.raises(ValueError, match=r"share memory; .* IndexedSlices"):
        step(optimizer, table[pair[1]])


def test_variables_that_come_and_go_are_let_go():
    optimizer, kept = PLAIN.optimizer(), np.zeros(5)
    step(optimizer, kept)
    held = [np.zeros(3)[...]]
    step(optimizer, held[0])
    for size in range(10, 400):
        step(optimizer, np.zeros(size))
    assert len(optimizer.variables_seen) < 70
    assert len(optimizer.weights) == len(optimizer.variables_seen) + 1
    assert names(optimizer)[:2] == ["Variable", "Variable_1"]
    for variable in (kept, held[0]):
        np.testing.assert_allclose(optimizer.get_slot(variable, "rms"), 0.1)


HOLDERS = {
    "array": lambda W: W,
    "view": lambda W: W[...],
    "part": lambda W: W[1:2],
    "part of a view": lambda W: W[1:].reshape(1, -1)[:, 1:],
    "Variable": lambda W: rmsjit.Variable(W[...]),
    "subclass": lambda W: W.view(np.recarray),
    "memoryview": memoryview,
    "frombuffer": lambda W: np.frombuffer(W.data),
}


@pytest.mark.slow
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("given", ["itself", "[...]", "flat", "flipped", "Variable"])
def test_state_stays_as_long_as_anything_of_the_memory_is_held(holder, given):
    optimizer, W = PLAIN.optimizer(), np.zeros((3, 4))
    step(optimizer, GIVEN[given](W))
    held = HOLDERS[holder](W)
    del W
    for size in range(1, 100):
        step(optimizer, np.zeros(size))
    assert names(optimizer)[0] == "Variable"
    del held
    for size in range(100, 300):
        step(optimizer, np.zeros(size))
    assert names(optimizer)[0] != "Variable" or holder in ("memoryview", "frombuffer")


def test_parameters_that_are_new_arrays_each_step_are_told_once():
    params, optimizer = [np.zeros(20), np.zeros(5)], PLAIN.optimizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(200):
            params = [p.copy() for p in params]
            optimizer.apply_gradients([(np.ones(p.shape), p) for p in params])
    (told,) = caught
    assert "stepped once each and are gone" in str(told.message)
    assert len(optimizer.variables_seen) < 70


@pytest.mark.parametrize("kind", ["steps", "sizes", "rows"])
def test_other_programs_are_not_told_so(kind):
    optimizer, table = PLAIN.optimizer(), np.zeros((200, 3))
    for k in range(200):
        variable = {"steps": np.zeros(3), "sizes": np.zeros(k), "rows": table[k]}[kind]
        for _ in range(2 if kind == "steps" else 1):
            step(optimizer, variable)


def test_forget():
    W, b, optimizer = rmsjit.Variable(np.zeros(3), name="w"), np.zeros(4), PLAIN.optimizer()
    optimizer.build([W, b])
    optimizer.forget(np.asarray(W)[::-1])
    assert names(optimizer) == ["Variable"]
    assert len(optimizer.weights) == 2
    optimizer.forget("Variable")
    assert optimizer.variables_seen == []
    for unknown in (b, "w", np.zeros(2)):
        with pytest.raises(KeyError, match="does not know"):
            optimizer.forget(unknown)
    step(optimizer, W)
    np.testing.assert_allclose(optimizer.get_slot(W, "rms"), 0.1)


def test_forget_between_steps_of_the_same_objects():
    W, b, optimizer = np.zeros(3), np.zeros(4), PLAIN.optimizer()
    pairs = [(np.ones(3), W), (np.ones(4), b)]
    for _ in range(3):
        optimizer.apply_gradients(pairs)
    optimizer.forget(W)
    optimizer.apply_gradients(pairs)
    np.testing.assert_allclose(optimizer.get_slot(W, "rms"), 0.1)
    np.testing.assert_allclose(optimizer.get_slot(b, "rms"), 1 - 0.9**4)


def test_variables_seen_are_over_the_variables_memory():
    W, optimizer = rmsjit.Variable(np.zeros((2, 3)), name="kernel"), PLAIN.optimizer()
    optimizer.build([W])
    (seen,) = optimizer.variables_seen
    assert (seen.name, seen.shape) == ("kernel:0", (2, 3))
    assert np.shares_memory(seen.array, W.array)


# --- Memory that is gone ---------------------------------------------------------------------


def on_shared_memory(size):
    block = shared_memory.SharedMemory(create=True, size=8 * size)
    array = np.ndarray(size, buffer=block.buf)

    def close():
        block.close()
        block.unlink()

    return array, close


def on_a_mapping(size):
    mapping = mmap.mmap(-1, 8 * size)
    return np.ndarray(size, buffer=mapping), mapping.close


MAPPED = {"shared memory": on_shared_memory, "mapping": on_a_mapping}


@pytest.mark.parametrize("kind", MAPPED)
@pytest.mark.parametrize("view", ["itself", "[...]", "part", "Variable"])
def test_memory_at_the_same_address_inherits_nothing(kind, view):
    views = {**GIVEN, "part": lambda W: W[2:]}
    optimizer, addresses = PLAIN.optimizer(0.1), set()
    for size in (1000, 1000, 900, 1000):
        array, close = MAPPED[kind](size)
        array[...] = 0
        step(optimizer, views[view](array), 1.0 + len(addresses))
        addresses.add(array.__array_interface__["data"][0])
        np.testing.assert_allclose(array[-1], -0.1 / np.sqrt(0.1), rtol=1e-6)
        del array
        close()
    assert len(addresses) < 4
    assert optimizer.variables_seen == []


@pytest.mark.parametrize("kind", MAPPED)
@pytest.mark.parametrize("mode", ["rows", "exact"])
def test_copies_and_readings_after_memory_was_closed(kind, mode):
    optimizer, other = rmsjit.RMSprop(0.1, sparse=mode), np.zeros(3)
    array, close = MAPPED[kind](1_000_000)
    table = array.reshape(-1, 4)
    optimizer.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 4)), [5]), table)])
    step(optimizer, other)
    del array, table
    close()
    optimizer.sync()
    for copier in (copy.deepcopy, COPIERS["pickle"]):
        twin, variable = copier((optimizer, other))
        step(twin, variable)
        assert int(twin.iterations) == 3
    assert len(optimizer.get_weights()) == 3
    optimizer.set_weights(optimizer.get_weights())
    step(optimizer, other)


def test_a_memory_map_of_a_file(tmp_path):
    optimizer = PLAIN.optimizer(0.1)
    for _ in range(2):
        W = np.memmap(tmp_path / "w", np.float64, "w+", shape=10_000)
        step(optimizer, W[...])
        np.testing.assert_allclose(W[-1], -0.1 / np.sqrt(0.1), rtol=1e-6)
        W._mmap.close()
        del W


@pytest.mark.parametrize("rows", [2, 9, 40_000])
@pytest.mark.parametrize("given", ["itself", "[...]", "flat"])
def test_an_array_that_was_resized_is_named(given, rows):
    table, optimizer = np.zeros((5, 3)), PLAIN.optimizer()
    for _ in range(2):
        step(optimizer, GIVEN[given](table))
    table.resize((rows, 3), refcheck=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"variable 0 was resized .* resize_rows.* forget"):
            step(optimizer, GIVEN[given](table))
    assert np.all(table[5:] == 0)
    copy.deepcopy(optimizer)
    optimizer.forget(table)
    step(optimizer, GIVEN[given](table))
    np.testing.assert_allclose(optimizer.get_slot(GIVEN[given](table), "rms"), 0.1)


RESIZED = {
    "in place": lambda table, rows: table.resize((rows, 2), refcheck=False),
    "new": lambda table, rows: np.concatenate([table, np.zeros((9, 2))])[:rows].copy(),
    "F": lambda table, rows: np.asfortranarray(np.vstack([table, np.zeros((9, 2))])[:rows]),
}


@pytest.mark.parametrize("rows", [3, 8, 5])
@pytest.mark.parametrize("how", RESIZED)
@pytest.mark.parametrize("mode", ["rows", "exact"])
def test_rows_that_stay_keep_their_slots(mode, how, rows):
    table, plain = np.ones((5, 2)), np.ones((5, 2))
    optimizers = [rmsjit.RMSprop(0.1, momentum=0.9, sparse=mode) for _ in range(2)]
    for row in (0, 4, 1):
        for optimizer, t in zip(optimizers, (table, plain), strict=True):
            optimizer.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 2)), [row]), t)])
    old, new = optimizers[0], RESIZED[how](table, rows)
    old.resize_rows(table, new)
    table = table if new is None else new
    optimizers[1].sync()
    kept = min(rows, 5)
    np.testing.assert_allclose(table[:kept], plain[:kept], rtol=1e-15)
    for slot in ("rms", "momentum"):
        got, want = old.get_slot(table, slot), optimizers[1].get_slot(plain, slot)
        np.testing.assert_allclose(got[:kept], want[:kept], rtol=1e-15)
        assert got.shape == (rows, 2)
        assert np.all(got[kept:] == 0)
    old.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 2)), [rows - 1]), table)])
    assert len(old.variables_seen) == 1


def test_resize_rows_refuses_what_is_no_such_table():
    table, optimizer = np.zeros((4, 2)), PLAIN.optimizer()
    step(optimizer, table)
    for error, arguments in (
        (KeyError, (np.zeros((4, 2)), np.zeros((5, 2)))),
        (ValueError, (table, np.zeros((5, 3)))),
        (ValueError, (table, np.zeros((5, 2), np.float32))),
        (ValueError, (table, np.zeros(()))),
        (TypeError, ("Variable",)),
    ):
        with pytest.raises(error):
            optimizer.resize_rows(*arguments)
    assert optimizer.get_slot(table, "rms").shape == (4, 2)


# --- Slots that are handed in ----------------------------------------------------------------


def test_an_allocator_that_gives_memory_twice_is_refused():
    W, V, shared = np.ones(10), np.ones(10), {}
    taken = np.ones(30)
    for face, allocate in (
        (BOTH, lambda shape, dtype: shared.setdefault(shape, np.zeros(shape, dtype))),
        (PLAIN, lambda shape, dtype: W),
        (PLAIN, lambda shape, dtype: taken[5:15]),
    ):
        optimizer = face.optimizer(slot_allocator=allocate)
        pairs = [(np.ones(10), W), (np.ones(10), taken[:10])]
        before = W.tobytes()
        with pytest.raises(ValueError, match="slots must have memory of their own"):
            optimizer.apply_gradients(pairs)
        assert W.tobytes() == before
        assert optimizer.variables_seen == []
    again = np.zeros(10)
    optimizer = PLAIN.optimizer(slot_allocator=lambda shape, dtype: again)
    step(optimizer, V)
    with pytest.raises(ValueError, match="slots must have memory of their own"):
        step(optimizer, W)


def test_a_slot_as_a_variable_is_refused():
    W, optimizer = np.ones(10), PLAIN.optimizer()
    step(optimizer, W)
    slot = optimizer.get_slot(W, "rms")
    for variable in (slot, slot.array, slot.array[3:5]):
        with pytest.raises(ValueError, match="the slot rms of an earlier step"):
            optimizer.apply_gradients([(np.ones(10), W), (np.ones(variable.shape), variable)])


# --- Masked arrays ---------------------------------------------------------------------------

MASKED = np.ma.masked_array([1.0, 1e30, 1.0], [0, 1, 0])
GRADIENTS = {
    "array": (MASKED, (3,)),
    "nothing masked": (np.ma.masked_array(np.ones(3)), (3,)),
    "list": ([MASKED, MASKED], (2, 3)),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_masked_gradient_is_refused(kind):
    gradient, shape = GRADIENTS[kind]
    W, optimizer = np.ones(shape), PLAIN.optimizer()
    step(optimizer, W)
    before = state_of(optimizer, [W])
    for _ in range(2):
        with pytest.raises(TypeError, match=r"gradient of variable 0 .*masked.*filled\(0\)"):
            optimizer.apply_gradients([(gradient, W)])
        assert state_of(optimizer, [W]) == before


def test_other_masked_arrays_are_refused():
    rows = np.ma.masked_array(np.ones((2, 3)), np.eye(2, 3))
    for make in (
        lambda: step(PLAIN.optimizer(), np.ma.masked_array(np.ones(3))),
        lambda: PLAIN.optimizer().build([np.ma.masked_array(np.ones(3))]),
        lambda: rmsjit.Variable(MASKED),
        lambda: rmsjit.IndexedSlices(rows, [0, 1]),
        lambda: rmsjit.IndexedSlices(np.ones((2, 3)), np.ma.masked_array([0, 1])),
    ):
        with pytest.raises(TypeError, match="must not be a masked array"):
            make()


def test_copies_know_how_many_steps_were_skipped():
    w, optimizer = np.ones(2), rmsjit.RMSprop(nonfinite="skip")
    optimizer.apply_gradients([(np.array([1.0, np.nan]), w)])
    twin = copy.deepcopy(optimizer)
    twin.apply_gradients([(np.array([1.0, np.nan]), w)])
    assert (optimizer.skipped_steps, twin.skipped_steps) == (1, 2)


# --- structures -----------------------------------------------------------------------------

STRUCTURES = {
    "one array": lambda w, b: w,
    "dictionary": lambda w, b: {"w": w, "b": b},
    "nested": lambda w, b: [{"w": w}, (b,)],
    "generator": lambda w, b: (v for v in (w, b)),
    "values": lambda w, b: {"w": w, "b": b}.values(),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_methods_that_take_variables_take_structures_and_single_arrays(name):
    w, b = np.ones((3, 2)), np.ones(2)
    optimizer = rmsjit.RMSprop(0.1, use_ema=True)
    optimizer.build(STRUCTURES[name](w, b))
    assert len(optimizer.variables_seen) == (1 if name == "one array" else 2)
    group = optimizer.add_group(STRUCTURES[name](w, b), lr_multiplier=0.0)
    optimizer.apply_gradients([(np.ones((3, 2)), w), (np.ones(2), b)])
    assert (w == 1).all()
    assert (b == 1).all() == (name != "one array")
    group.lr_multiplier = 1.0
    optimizer.apply_gradients([(np.ones((3, 2)), w), (np.ones(2), b)])
    own = w.copy()
    with optimizer.averaged(STRUCTURES[name](w, b)):
        assert (w != own).all()
    optimizer.finalize_variable_values(STRUCTURES[name](w, b))
    assert (w != own).all()


def test_a_slot_that_is_not_there():
    optimizer = rmsjit.RMSprop(0.1)
    with pytest.raises(KeyError, match=r"no slot 'rms' for this variable yet: the first step .*"):
        optimizer.get_slot(np.ones(2), "rms")
    with pytest.raises(KeyError, match=r"no slot 'rsm'; its slots are \['rms'\]"):
        optimizer.get_slot(np.ones(2), "rsm")
