"""Gradient accumulation: one step for several calls, as in Keras 3."""

import copy
import pickle
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import rmsjit
import rmsjit.interop
from rmsjit.arrays import recycled
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.checkpoints.content import SavedRound, SavedWeight
from rmsjit.checkpoints.rounds import round_differences
from rmsjit.steps import additions

N = 3
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "clipvalue": {"clipvalue": 0.3},
    "clipnorm": {"clipnorm": 0.4},
    "global_clipnorm": {"global_clipnorm": 0.4},
    "decay": {"form": rmsjit.Form(weight_decay="decoupled"), "weight_decay": 0.1},
    "bias_correction": {"form": rmsjit.Form(bias_correction=True)},
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "transformers": {
        "clipnorm": 0.4,
        "gradient_transformers": [lambda pairs: [(2 * g, v) for g, v in pairs]],
    },
}


@pytest.fixture(params=["by NumPy", "by kernels"])
def adding(request, monkeypatch):
    """Both ways to add gradients up: few numbers, and many, in memory that is used again."""
    if request.param == "by kernels":
        monkeypatch.setattr(additions, "LEAST_BYTES", 0)
        monkeypatch.setattr(recycled, "_LEAST_BYTES", 0)


in_both_ways = pytest.mark.usefixtures("adding")


def gradients(shape, dtype="float64", count=4 * N):
    rng = np.random.default_rng(11)
    return [rng.normal(size=shape).astype(dtype) for _ in range(count)]


def accumulating(calls=N, **settings):
    return rmsjit.RMSprop(0.05, gradient_accumulation_steps=calls, **settings)


def added(arrays):
    """The sum from left to right."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total = total + array
    return total


def rounds(items, calls=N):
    return [items[k : k + calls] for k in range(0, len(items), calls)]


def slices(values, rows):
    return rmsjit.IndexedSlices(np.array(values, float).reshape(len(rows), 1), rows)


@in_both_ways
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_is_a_step_with_its_mean_or_sum(name, reduction):
    w, plain = np.ones((4, 2)), np.ones((4, 2))
    opt = accumulating(gradient_accumulation_reduction=reduction, **SETTINGS[name])
    other = rmsjit.RMSprop(0.05, **SETTINGS[name])
    for number, given in enumerate(rounds(gradients(w.shape))):
        for call, g in enumerate(given):
            assert opt.accumulated_calls == call
            before = w.copy()
            assert opt.apply_gradients([(g, w)]).numpy() == number + (call == N - 1)
            assert (before == w).all() == (call < N - 1)
        total = added(given)
        other.apply_gradients([(total / N if reduction == "mean" else total, plain)])
        np.testing.assert_array_equal(w, plain)


@in_both_ways
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_added_up_in_float32(dtype):
    dtype = dtype_named(dtype)
    w, plain = np.ones(50, dtype), np.ones(50, dtype)
    opt, other = accumulating(), rmsjit.RMSprop(0.05)
    for given in rounds(gradients(w.shape, dtype)):
        for g in given:
            opt.apply_gradients([(g, w)])
        other.apply_gradients([(added([g.astype("f4") for g in given]) / 3, plain)])
        np.testing.assert_array_equal(w, plain)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_large_variables_of_any_order_on_threads(dtype, reduction):
    """As many as threads add up, beside one that is not and one without a gradient in each call."""
    rng = np.random.default_rng(3)
    shapes = [(300, 257), (257, 300), (40_001,), (3,)]
    drawn = [[rng.normal(size=(2, *s)) for s in shapes] for _ in range(2 * N)]
    calls = [[(g[0] + (1j * g[1] if "c" in dtype else 0)).astype(dtype) for g in c] for c in drawn]
    summed, apart = ([np.zeros(s, dtype) for s in shapes] for _ in range(2))
    summed[1] = np.zeros(shapes[1], dtype, order="F")
    opt, plain = accumulating(gradient_accumulation_reduction=reduction), rmsjit.RMSprop(0.05)
    for those in rounds(calls):
        for number, call in enumerate(those):
            pairs = list(zip(call, summed, strict=True))
            opt.apply_gradients(pairs[: 3 if number == 1 else 4])
        wanted = [added([c[k] for c in those]) for k in range(3)]
        wanted.append(those[0][3] + those[2][3])
        if reduction == "mean":
            parts = [w.view(w.real.dtype) / np.array(N, w.real.dtype) for w in wanted]
            wanted = [part.view(dtype) for part in parts]
        plain.apply_gradients(zip(wanted, apart, strict=True))
    for one, other in zip(summed, apart, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_large_variable_may_come_twice_in_a_call(calls, threads):
    """And beside another one, which is divided once as well."""
    summed, apart = ([np.zeros(90_000), np.zeros(50_000)] for _ in range(2))
    view = summed[0].reshape(300, 300)
    opt = accumulating(calls, num_threads=threads)
    plain = rmsjit.RMSprop(0.05)
    drawn = gradients((3, 90_000), count=4 * calls)
    for those in rounds(drawn, calls):
        for first, second, third in those:
            pairs = [(first, summed[0]), (third[:50_000], summed[1])]
            opt.apply_gradients([*pairs, (second.reshape(300, 300), view)])
        totals = added([part for g in those for part in g[:2]]), added([g[2] for g in those])
        wanted = [totals[0] / calls, totals[1][:50_000] / calls]
        plain.apply_gradients(zip(wanted, apart, strict=True))
    for one, other in zip(summed, apart, strict=True):
        np.testing.assert_array_equal(one, other)


@in_both_ways
def test_a_sum_that_somebody_keeps_is_not_overwritten():
    kept, w = [], np.zeros(3)
    opt = accumulating(
        2, gradient_transformers=[lambda pairs: [kept.append(pairs[0][0]), pairs][1]]
    )
    for k in range(8):
        opt.apply_gradients([(np.full(3, float(k)), w)])
    assert [sums.tolist() for sums in kept] == [[k] * 3 for k in (0.5, 2.5, 4.5, 6.5)]


@in_both_ways
def test_a_copy_of_a_round_is_not_overwritten():
    w = np.zeros(3)
    opt = accumulating(2)
    opt.apply_gradients([(np.ones(3), w)])
    state = opt._accumulator.__getstate__()  # as pickle holds it while other calls go on
    for k in range(4):
        opt.apply_gradients([(np.full(3, float(k)), w)])
    (total,) = state["_round"][2].values()
    assert total.total.tolist() == [1.0, 1.0, 1.0]


@in_both_ways
def test_gradients_are_not_kept_by_reference():
    w, g, opt = np.zeros(2), np.ones(2), accumulating(2, gradient_accumulation_reduction="sum")
    opt.apply_gradients([(g, w)])
    g[...] = 100.0
    opt.apply_gradients([(np.zeros(2), w)])
    np.testing.assert_allclose(opt.get_slot(w, "rms").numpy(), 0.1)


@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 0.5}])
def test_rows_of_tables_are_merged(clipping):
    table, plain = np.ones((6, 1)), np.ones((6, 1))
    opt, other = accumulating(**clipping), rmsjit.RMSprop(0.05, **clipping)
    opt.apply_gradients([(slices([1, 2, 3], [4, 0, 4]), table)])
    opt.apply_gradients([(slices([5], [2]), table)])
    opt.apply_gradients([(slices([-1, 7], [0, 5]), table)])
    other.apply_gradients([(slices([1 / 3, 5 / 3, 4 / 3, 7 / 3], [0, 2, 4, 5]), plain)])
    np.testing.assert_allclose(table, plain, rtol=1e-15)
    np.testing.assert_array_equal(table[[1, 3]], 1.0)


@in_both_ways
@pytest.mark.parametrize("order", [0, 1])
def test_a_dense_and_a_sparse_gradient_of_one_variable(order):
    table, plain = np.ones((3, 1)), np.ones((3, 1))
    opt, other = accumulating(2), rmsjit.RMSprop(0.05)
    given = [slices([2, 4], [2, 2]), np.full((3, 1), 8.0)]
    for g in given[:: 1 - 2 * order]:
        opt.apply_gradients([(g, table)])
    other.apply_gradients([(np.array([[4.0], [4.0], [7.0]]), plain)])
    np.testing.assert_array_equal(table, plain)


def test_exact_rows():
    table, plain = np.ones((4, 1)), np.ones((4, 1))
    opt, other = accumulating(2, sparse="exact", momentum=0.9), rmsjit.RMSprop(0.05, momentum=0.9)
    for rows in ([0], [1, 1], [3], [2]):
        opt.apply_gradients([(slices([1.0] * len(rows), rows), table)])
    for dense in ([0.5, 1, 0, 0], [0, 0, 0.5, 0.5]):
        other.apply_gradients([(np.array(dense).reshape(4, 1), plain)])
    opt.sync()
    np.testing.assert_allclose(table, plain, rtol=1e-14)


@in_both_ways
def test_variables_need_not_have_a_gradient_in_every_call():
    a, b, opt = np.zeros(1), np.zeros(1), accumulating(2)
    opt.apply_gradients([(np.ones(1), a)])
    opt.apply_gradients([(np.full(1, 4.0), b)])
    np.testing.assert_allclose(opt.get_slot(a, "rms").numpy(), 0.1 * 0.5**2)
    np.testing.assert_allclose(opt.get_slot(b, "rms").numpy(), 0.1 * 2.0**2)


def test_views_are_one_variable():
    w, opt = np.zeros(4), accumulating(2)
    opt.apply_gradients([(np.ones(4), w)])
    opt.apply_gradients([(np.ones(4), w[...])])
    assert len(opt.variables_seen) == 1
    np.testing.assert_allclose(opt.get_slot(w, "rms").numpy(), 0.1)


VIEWS = {
    "itself": lambda w: w,
    "again": lambda w: w[...],
    "transposed": lambda w: w.T,
    "upside down": lambda w: w[::-1],
    "turned": lambda w: w[::-1, ::-1].T,
    "flat": lambda w: w.reshape(-1),
    "column": lambda w: w.reshape(-1, 1),
}


def call_of(view, kind, seed):
    """A gradient for a view of a square table, and the same for the table itself."""
    gradient = np.random.default_rng(seed).normal(size=(3, 3))
    if kind == "sparse":
        gradient = np.zeros((3, 3))
        seen = VIEWS[view](gradient)
        seen[1] = seed + 1.0
        return rmsjit.IndexedSlices(seen[1:2].copy(), [1], seen.shape), gradient
    return VIEWS[view](gradient), gradient


@in_both_ways
@pytest.mark.parametrize("kinds", [("dense", "dense"), ("dense", "sparse"), ("sparse", "sparse")])
@pytest.mark.parametrize("second", VIEWS)
@pytest.mark.parametrize("first", VIEWS)
def test_any_views_of_a_variable_in_one_round(first, second, kinds):
    w, twin = (np.arange(9.0).reshape(3, 3).copy() for _ in range(2))
    opt, other = accumulating(2, momentum=0.9), rmsjit.RMSprop(0.05, momentum=0.9)
    for seed in (0, 2):
        whole = []
        for k, (view, kind) in enumerate(zip((first, second), kinds, strict=True)):
            gradient, known = call_of(view, kind, seed + k)
            opt.apply_gradients([(gradient, VIEWS[view](w))])
            whole.append(known)
        mean = (whole[0] + whole[1]) / 2
        if kinds == ("sparse", "sparse") and first == second:  # only the rows that were named
            rows = rmsjit.IndexedSlices(VIEWS[first](mean)[1:2], [1])
            other.apply_gradients([(rows, VIEWS[first](twin))])
        else:
            other.apply_gradients([(mean, twin)])
    np.testing.assert_array_equal(w, twin)
    assert len(opt.variables_seen) == 1


@in_both_ways
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_copies_and_checkpoints_of_any_view(view, kind, calls, tmp_path):
    w, opt = np.arange(9.0).reshape(3, 3).copy(), accumulating(2, momentum=0.9)
    for seed in range(calls):
        opt.apply_gradients([(call_of(view, kind, seed)[0], VIEWS[view](w))])
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    loaded, found = rmsjit.load(tmp_path / "run.npz")
    copies = {
        "deep copy": copy.deepcopy((opt, w)),
        "pickle": pickle.loads(pickle.dumps((opt, w), protocol=5)),
        "of a copy": copy.deepcopy(copy.deepcopy((opt, w))),
        "checkpoint": (loaded, found["w"]),
    }
    opt.flush()
    for name, (other, v) in copies.items():
        other.flush()
        np.testing.assert_array_equal(v, w, name)
        if calls > 1 or kind == "dense":
            slot = other.get_slot(v, "momentum").numpy()
            np.testing.assert_array_equal(slot, opt.get_slot(w, "momentum").numpy(), name)
    for other, v in [(opt, w), *copies.values()]:
        other.apply_gradients([(np.ones((3, 3)), v)])
        other.flush()
        np.testing.assert_array_equal(v, w)


def test_a_copy_of_a_view_of_more_memory():
    whole = np.zeros(4)
    w = whole[1:]
    w[:] = [1, 2, 3]
    opt = accumulating(2)
    for _ in range(2):
        opt.apply_gradients([(np.ones(3), w[...])])
    other, v = copy.deepcopy((opt, w))
    with pytest.warns(RuntimeWarning, match="continues with the state of"):
        other.apply_gradients([(np.ones(3), v)])
    other.flush()
    opt.apply_gradients([(np.ones(3), w)])
    opt.flush()
    np.testing.assert_array_equal(v, w)


def test_a_copy_without_its_variables_says_what_it_drops():
    w, opt = np.ones(3), accumulating(2)
    opt.apply_gradients([(np.ones(3), w)])
    alone = pickle.loads(pickle.dumps(opt))
    with pytest.warns(RuntimeWarning, match="Variable was not copied with its sum"):
        alone.flush()
    assert (int(alone.iterations), alone.accumulated_calls) == (0, 0)


@in_both_ways
def test_calls_of_several_threads_all_count():
    w, opt = np.zeros(1000), accumulating(10, gradient_accumulation_reduction="sum")
    gradient, calls = np.ones(1000), 100

    def work():
        for _ in range(calls):
            opt.apply_gradients([(gradient, w)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(opt.iterations) * 10 + opt.accumulated_calls == 4 * calls


@pytest.mark.parametrize("still", ["frozen", "not trainable"])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_gradients_of_what_does_not_move_are_not_read(still, nonfinite):
    w, v = np.ones(2), rmsjit.Variable(np.ones(3), trainable=still == "frozen")
    opt = accumulating(2, nonfinite=nonfinite)
    if still == "frozen":
        group = opt.add_group([v], frozen=True)
    for wrong in (np.full(3, np.nan), np.ones((2, 2))):
        opt.apply_gradients([(np.ones(2), w), (wrong, v)])
    assert int(opt.iterations) == 1
    assert (w < 1).all()
    for _ in range(2):
        opt.apply_gradients([(np.full(3, np.nan), v)])
    assert int(opt.iterations) == 2
    np.testing.assert_array_equal(v, np.ones(3))
    if still == "frozen":
        group.frozen = False
        for _ in range(2):
            opt.apply_gradients([(np.ones(3), v)])
        assert (v.numpy() < 1).all()


def test_flush_of_what_does_not_move_counts():
    w, opt = np.ones(2), accumulating(3)
    opt.add_group([w], frozen=True)
    opt.apply_gradients([(np.ones(2), w)])
    opt.flush()
    assert (int(opt.iterations), opt.accumulated_calls) == (1, 0)
    np.testing.assert_array_equal(w, 1.0)


@pytest.mark.parametrize("others", [False, True])
def test_flush_of_what_may_move_by_now_does_not_move_it(others):
    w, b, opt = np.ones(2), np.ones(2), accumulating(2, momentum=0.9)
    for _ in range(2):
        opt.apply_gradients([(np.ones(2), w)])
    group = opt.add_group([w], frozen=True)
    opt.apply_gradients([(np.ones(2), w), *([(np.ones(2), b)] if others else [])])
    group.frozen = False
    before = w.copy()
    opt.flush()
    assert (int(opt.iterations), opt.accumulated_calls) == (2, 0)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("how", ["copy", "save"])
def test_a_copy_of_a_round_of_what_does_not_move_counts(how, tmp_path):
    w, opt = np.ones(2), accumulating(2)
    opt.add_group([w], frozen=True)
    opt.apply_gradients([(np.ones(2), w)])
    if how == "copy":
        opt, w = copy.deepcopy((opt, w))
    else:
        rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
        opt, found = rmsjit.load(tmp_path / "run.npz")
        w = found["w"]
    opt.flush()
    assert (int(opt.iterations), opt.accumulated_calls) == (1, 0)
    np.testing.assert_array_equal(w, 1.0)


def test_a_saved_round_goes_on_in_its_order(tmp_path):
    """By which slots are made, variables numbered and random bits drawn."""

    def run(saves):
        a, b = np.ones(64, "float16"), np.ones(64, "float16")
        opt = accumulating(2, rounding="stochastic")
        opt.add_group([b], lr_multiplier=0.5)
        opt.apply_gradients([(a.copy(), a), (b.copy(), b)])
        if saves:
            rmsjit.save(tmp_path / "run.npz", opt, {"b": b, "a": a})
            opt, found = rmsjit.load(tmp_path / "run.npz")
            a, b = found["a"], found["b"]
        for _ in range(3):
            opt.apply_gradients([(a.copy(), a), (b.copy(), b)])
        return a.tolist(), b.tolist(), opt.get_config()["groups"]

    assert run(saves=True) == run(saves=False)


class Flushing:
    """A gradient that takes a step while it is read, as a signal handler might."""

    def __init__(self, act):
        self.act = act

    def __array__(self, dtype=None, copy=None):
        self.act()
        return np.ones(1)


@in_both_ways
@pytest.mark.parametrize("act", ["flush", "call"])
def test_a_step_within_a_call_loses_no_call(act):
    w, opt = np.zeros(1), accumulating(3, gradient_accumulation_reduction="sum")
    acts = {
        "flush": opt.flush,
        "call": lambda: [opt.apply_gradients([(np.ones(1), w)]) for _ in range(2)],
    }
    opt.apply_gradients([(np.ones(1), w)])
    opt.apply_gradients([(Flushing(acts[act]), w)])
    assert (int(opt.iterations), opt.accumulated_calls) == (1, 1)
    rms = opt.get_slot(w, "rms").numpy().copy()
    opt.flush()
    gradient = (opt.get_slot(w, "rms").numpy() - 0.9 * rms) / 0.1
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-6)


def low(value):
    return np.minimum(value, 0.9)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda these: pickle.loads(pickle.dumps(these))])
def test_constraints_are_applied_in_copies(copied):
    variable, opt = rmsjit.Variable(np.ones(2), constraint=low), accumulating(2)
    opt.apply_gradients([(np.full(2, -1.0), variable)])
    other, twin = copied((opt, variable))
    other.flush()
    np.testing.assert_array_equal(twin.numpy(), 0.9)


def test_constraints_are_applied_if_a_call_names_the_array():
    variable, opt = rmsjit.Variable(np.ones((2, 1)), constraint=low), accumulating(2)
    opt.apply_gradients([(np.full((2, 1), -1.0), variable)])
    opt.apply_gradients([(slices([-1.0], [0]), variable.array)])
    np.testing.assert_array_equal(variable.numpy(), 0.9)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda these: pickle.loads(pickle.dumps(these))])
def test_rows_of_another_view_stay_rows_in_copies(copied):
    w, opt = np.arange(12.0).reshape(4, 3), accumulating(2, momentum=0.9)
    for _ in range(2):
        opt.apply_gradients([(np.ones((4, 3)), w)])
    sparse = rmsjit.IndexedSlices(np.ones(2), [0, 1])
    opt.apply_gradients([(sparse, w.reshape(-1))])
    other, v = copied((opt, w))
    for one, table in ((opt, w), (other, v)):
        one.apply_gradients([(sparse, table.reshape(-1))])
    np.testing.assert_array_equal(v, w)
    assert (w[1:, 2] == v[1:, 2]).all()


@pytest.mark.parametrize("view", ["transposed", "flat", "upside down"])
def test_a_copy_in_a_round_can_be_saved_at_once(view, tmp_path):
    w, opt = np.arange(9.0).reshape(3, 3).copy(), accumulating(2)
    for seed in range(3):
        opt.apply_gradients([(call_of(view, "dense", seed)[0], VIEWS[view](w))])
    other, v = copy.deepcopy((opt, w))
    rmsjit.save(tmp_path / "run.npz", other, {"w": v})
    loaded, found = rmsjit.load(tmp_path / "run.npz")
    opt.flush(), loaded.flush()
    np.testing.assert_array_equal(found["w"], w)


def test_numbers_of_variables_are_those_of_the_step():
    """Not those of the calls, in which variables have no slots yet."""
    a, b = np.ones(2), np.ones(2)
    opt, other = accumulating(2, gradient_accumulation_reduction="sum"), rmsjit.RMSprop(0.05)
    for one in (opt, other):
        one.add_group(1, lr_multiplier=0.5)
    c, d = np.ones(2), np.ones(2)
    opt.apply_gradients([(np.ones(2), a)])
    opt.apply_gradients([(np.ones(2), b)])
    other.apply_gradients([(np.ones(2), c), (np.ones(2), d)])
    np.testing.assert_array_equal([a, b], [c, d])


def test_a_schedule_is_given_the_number_of_calls():
    class Noting(rmsjit.schedules.LearningRateSchedule):
        seen = ()

        def __call__(self, step):
            self.seen += (int(step),)
            return 0.1

    schedule = Noting()
    opt, w = rmsjit.RMSprop(schedule, gradient_accumulation_steps=N), np.ones(1)
    for g in gradients((1,)):
        opt.apply_gradients([(g, w)])
    assert schedule.seen == (2, 5, 8, 11)
    assert int(opt.iterations) == 4


# --- flush ----------------------------------------------------------------------------------


@in_both_ways
def test_flush_steps_with_the_calls_that_there_are():
    w, plain, opt, other = np.ones(2), np.ones(2), accumulating(), rmsjit.RMSprop(0.05)
    given = gradients((2,), count=5)
    for g in given:
        opt.apply_gradients([(g, w)])
    assert opt.flush().numpy() == 2
    assert opt.accumulated_calls == 0
    other.apply_gradients([(added(given[:3]) / 3, plain)])
    other.apply_gradients([(added(given[3:]) / 2, plain)])
    np.testing.assert_array_equal(w, plain)
    assert opt.flush().numpy() == 2
    np.testing.assert_array_equal(w, plain)


def test_flush_without_accumulation_does_nothing():
    assert rmsjit.RMSprop().flush().numpy() == 0


# --- errors ---------------------------------------------------------------------------------


@in_both_ways
@pytest.mark.parametrize("at", range(N))
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (np.ones(3), ValueError),
        (np.ones(2, complex), TypeError),
        (rmsjit.IndexedSlices([1.0], [2]), IndexError),
        (None, ValueError),
    ],
)
def test_a_wrong_call_changes_nothing(wrong, error, at):
    w, plain, opt, other = np.ones(2), np.ones(2), accumulating(), accumulating()
    for call, g in enumerate(gradients((2,), count=2 * N)):
        if call % N == at:
            with pytest.raises(error):
                opt.apply_gradients([(g, w), (wrong, w)] if wrong is not None else [(None, w)])
        opt.apply_gradients([(g, w)])
        other.apply_gradients([(g, plain)])
        np.testing.assert_array_equal(w, plain)
    assert int(opt.iterations) == 2


@in_both_ways
def test_a_step_that_fails_can_be_repeated():
    w, plain = np.ones(2), np.ones(2)
    rate = [0.05]
    opt, other = rmsjit.RMSprop(lambda: rate[0], gradient_accumulation_steps=2), accumulating(2)
    first, second = gradients((2,), count=2)
    opt.apply_gradients([(first, w)])
    rate[0] = np.nan
    with pytest.raises(ValueError, match="learning_rate"):
        opt.apply_gradients([(second, w)])
    assert opt.accumulated_calls == 1
    rate[0] = 0.05
    for g in (first, second):
        other.apply_gradients([(g, plain)])
    opt.apply_gradients([(second, w)])
    np.testing.assert_array_equal(w, plain)


@in_both_ways
def test_nonfinite():
    bad = np.full(1, np.inf)
    w, opt = np.ones(1), accumulating(2, nonfinite="skip")
    opt.apply_gradients([(bad, w)])
    opt.apply_gradients([(np.ones(1), w)])
    assert (opt.skipped_steps, opt.accumulated_calls, int(opt.iterations), w[0]) == (1, 0, 0, 1.0)
    opt = accumulating(2, nonfinite="raise")
    with pytest.raises(FloatingPointError, match="variable 0"):
        opt.apply_gradients([(bad, w)])
    assert opt.accumulated_calls == 0


def test_an_empty_list_is_not_a_call():
    opt = accumulating()
    opt.apply_gradients([])
    assert opt.accumulated_calls == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gradient_accumulation_steps": 0}, ValueError),
        ({"gradient_accumulation_steps": 2.0}, TypeError),
        ({"gradient_accumulation_steps": True}, TypeError),
        (
            {"gradient_accumulation_steps": 2, "gradient_accumulation_reduction": "max"},
            ValueError,
        ),
    ],
)
def test_wrong_arguments(arguments, error):
    with pytest.raises(error, match=list(arguments)[-1]):
        rmsjit.RMSprop(**arguments)


# --- state ----------------------------------------------------------------------------------


def in_a_round(**settings):
    """A table, a vector and an optimizer, two calls after its first step."""
    table, w, opt = np.ones((4, 1)), np.ones(2), accumulating(4, **settings)
    for rows in ([0], [1, 1], [3], [2], [2], [0, 2]):
        pairs = [(slices([1.0] * len(rows), rows), table), (np.full(2, len(rows)), w)]
        opt.apply_gradients(pairs)
    assert opt.accumulated_calls == 2
    return table, w, opt


def ended(table, w, opt):
    opt.apply_gradients([(slices([3.0], [1]), table), (np.full(2, 0.5), w)])
    opt.flush()
    assert int(opt.iterations) == 2
    return table, w


@in_both_ways
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda these: pickle.loads(pickle.dumps(these))])
def test_copies_go_on_with_a_round(copied):
    these = in_a_round()
    others = copied(these)
    for ours, theirs in zip(ended(*these), ended(*others), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_copies_can_be_flushed_at_once():
    table, w, opt = in_a_round()
    variable = rmsjit.Variable(w, constraint=lambda w: np.minimum(w, 0.9))
    opt.apply_gradients([(np.ones(2), variable)])
    other_table, other, twin = copy.deepcopy((table, variable, opt))
    opt.flush(), twin.flush()
    np.testing.assert_array_equal(table, other_table)
    np.testing.assert_array_equal(variable.numpy(), other.numpy())
    assert other.numpy().max() <= 0.9


@pytest.mark.parametrize("into", ["new", "own", "other"])
def test_checkpoints_go_on_with_a_round(tmp_path, into):
    table, w, opt = in_a_round()
    path = tmp_path / "run.npz"
    rmsjit.save(path, opt, {"table": table, "w": w})
    expected = [v.copy() for v in ended(*copy.deepcopy((table, w, opt)))]
    if into == "new":
        opt, named = rmsjit.load(path)
        table, w = named["table"], named["w"]
    else:
        if into == "other":
            table, w, opt = np.zeros((4, 1)), np.zeros(2), accumulating(4)
        opt.apply_gradients([(np.ones((4, 1)), table), (np.ones(2), w)])
        rmsjit.load(path, opt, {"table": table, "w": w})
    assert opt.accumulated_calls == 2
    for ours, theirs in zip(ended(table, w, opt), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_without_a_round_ends_the_round(tmp_path):
    table, w, opt = in_a_round()
    named = {"table": table, "w": w}
    opt.flush()
    rmsjit.save(tmp_path / "run.npz", opt, named)
    opt.apply_gradients([(np.ones(2), w)])
    rmsjit.load(tmp_path / "run.npz", opt, named)
    assert opt.accumulated_calls == 0


def test_a_round_needs_an_optimizer_that_accumulates(tmp_path):
    table, w, opt = in_a_round()
    named = {"table": table, "w": w}
    rmsjit.save(tmp_path / "run.npz", opt, named)
    with pytest.raises(ValueError, match="2 calls were saved that wait for a step"):
        rmsjit.load(tmp_path / "run.npz", rmsjit.RMSprop(0.05), named)


@pytest.mark.parametrize(
    ("shape", "rows", "match"),
    [
        ((4, 1), [0, 4], "rows up to 4"),
        ((4, 1), [[0, 1]], "for rows"),
        ((), [0, 1], "for rows"),
        ((4, 2), [0, 1], "gradient in the sum"),
    ],
)
def test_sums_that_do_not_fit_are_refused(shape, rows, match):
    sums = [
        SavedWeight("w", "gradient", np.ones((2, 1))),
        SavedWeight("w", "rows", np.array(rows, np.int64)),
    ]
    checkpoint = SimpleNamespace(accumulated=SavedRound(2, sums))
    found = round_differences(checkpoint, accumulating(), {"w": np.ones(shape)})
    assert any(match in difference for difference in found)


def test_every_variable_of_a_round_must_be_saved(tmp_path):
    w, opt = np.ones(2), accumulating()
    opt.apply_gradients([(np.ones(2), w)])
    with pytest.raises(ValueError, match="variables must contain"):
        rmsjit.save(tmp_path / "run.npz", opt, {})


def test_moving_variables_in_a_round_is_refused():
    table, w, opt = in_a_round()
    with pytest.raises(RuntimeError, match="flush"):
        opt.rebind(w, w.copy())
    with pytest.raises(RuntimeError, match="flush"):
        opt.resize_rows(table, np.ones((5, 1)))
    opt.flush()
    opt.rebind(w, w.copy())


def test_an_exchange_of_state_in_a_round_is_refused():
    table, w, opt = in_a_round()
    with pytest.raises(RuntimeError, match="flush"):
        rmsjit.interop.to_chainer_arrays(opt, {"table": table, "w": w})


def test_a_forgotten_variable_has_no_sum():
    _table, w, opt = in_a_round()
    before = w.copy()
    opt.forget(w)
    opt.flush()
    np.testing.assert_array_equal(w, before)


def test_configuration():
    opt = accumulating(4, gradient_accumulation_reduction="sum")
    again = rmsjit.RMSprop.from_config(opt.get_config())
    assert again.gradient_accumulation_steps == 4
    assert again.gradient_accumulation_reduction == "sum"
    assert rmsjit.RMSprop().gradient_accumulation_steps is None


# --- Keras ----------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "clipnorm": 0.5, "weight_decay": 0.01},
        {"centered": True, "global_clipnorm": 0.5},
    ],
)
def test_20_steps_as_in_keras(settings):
    keras = pytest.importorskip("keras")
    rate = {"initial_learning_rate": 0.01, "decay_steps": 7, "decay_rate": 0.9}
    w, calls = np.linspace(-1, 1, 30, dtype="float32"), 3
    theirs = keras.Variable(w.copy())
    opt = rmsjit.forms.keras(
        rmsjit.schedules.ExponentialDecay(**rate), gradient_accumulation_steps=calls, **settings
    )
    other = keras.optimizers.RMSprop(
        keras.optimizers.schedules.ExponentialDecay(**rate),
        gradient_accumulation_steps=calls,
        **settings,
    )
    other.build([theirs])
    for g in gradients(w.shape, w.dtype, 20 * calls):
        opt.apply_gradients([(g, w)])
        other.apply([keras.ops.convert_to_tensor(g)], [theirs])
        assert int(opt.iterations) == int(other.iterations)
        np.testing.assert_allclose(w, np.asarray(theirs), rtol=1e-6, atol=5e-7)


def test_setting_the_iterations_within_a_round_is_refused():
    opt, w = rmsjit.RMSprop(0.1, gradient_accumulation_steps=2), np.ones(2)
    opt.iterations = 7
    opt.apply_gradients([(np.ones(2), w)])
    with pytest.raises(RuntimeError, match="setting iterations must come after a step, got 1 call"):
        opt.iterations = 5
    opt.apply_gradients([(np.ones(2), w)])
    assert (int(opt.iterations), opt.accumulated_calls) == (8, 0)
    opt.iterations = 5
    assert int(opt.iterations) == 5


def test_a_call_without_a_gradient_of_a_variable_adds_zero_for_it():
    """Without a warning, unless no call of the round has one."""
    opt, a, b = rmsjit.RMSprop(0.1, gradient_accumulation_steps=2), np.zeros(2), np.zeros(3)
    alone, expected = rmsjit.RMSprop(0.1), [a.copy(), b.copy()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.apply_gradients([(None, a), (np.ones(3), b)])
        opt.apply_gradients([(np.ones(2), a), (None, b)])
    alone.apply_gradients([(np.full(2, 0.5), expected[0]), (np.full(3, 0.5), expected[1])])
    for got, wanted in zip((a, b), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    opt.apply_gradients([(None, a), (np.ones(3), b)])
    with pytest.warns(RuntimeWarning, match="no gradient for variable 0: left unchanged"):
        opt.apply_gradients([(None, a), (np.ones(3), b)])


@pytest.mark.parametrize("trainable", [True, False])
def test_a_call_with_gradients_of_frozen_variables_alone_counts(trainable):
    opt = rmsjit.RMSprop(0.1, gradient_accumulation_steps=2)
    w, f = np.zeros(1), rmsjit.Variable(np.zeros(1), trainable=trainable)
    if trainable:
        opt.add_group([f], frozen=True)
    opt.apply_gradients([(None, w), (np.ones(1), f)])
    assert opt.accumulated_calls == 1
    opt.apply_gradients([(np.ones(1), w), (np.ones(1), f)])
    assert int(opt.iterations) == 1
    assert w[0] < 0 == f.numpy()[0]
    with pytest.raises(ValueError, match=r"no gradient was given for any variable, .*: variable 0"):
        opt.apply_gradients([(None, w)])


@pytest.mark.parametrize("layout", [(..., slice(None, None, 2)), (slice(None, None, -1),), (...,)])
def test_copies_of_a_round_name_the_same_rows(layout):
    """So rows that no call has named keep their values, whatever the strides."""
    results = []
    for duplicate in (lambda both: both, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))):
        table = np.ones((4, 4))[layout]
        opt = rmsjit.RMSprop(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
        values = np.ones((1, table.shape[1]))
        opt.apply_gradients([(rmsjit.IndexedSlices(values, [1]), table)])
        opt, table = duplicate((opt, table))
        opt.apply_gradients([(rmsjit.IndexedSlices(values, [2]), table)])
        results.append(table.tolist())
    assert results[0][0][0] == results[0][3][0] == 1.0
    assert results[1:] == results[:1] * 2


@pytest.mark.parametrize("how", ["save", "copy", "pickle"])
@pytest.mark.parametrize("first", [(1, 0), (1,)])
def test_the_order_of_a_step_is_kept(how, first, tmp_path):
    """On which random bits and the order of weights depend."""

    def run(resumes):
        rng, variables = np.random.default_rng(0), [np.ones(30, "f2"), np.ones(20, "f2")]
        opt = rmsjit.RMSprop(0.001, gradient_accumulation_steps=2, rounding="stochastic", seed=1)
        for call in range(4):
            for_call = first if call == 0 else (0, 1)
            opt.apply_gradients(
                [(rng.normal(size=variables[k].size).astype("f2"), variables[k]) for k in for_call]
            )
            if call == 0 and resumes:
                if how == "save":
                    rmsjit.save(tmp_path / "run.npz", opt, dict(zip("ab", variables, strict=True)))
                    opt, loaded = rmsjit.load(tmp_path / "run.npz")
                    variables = list(loaded.values())
                elif how == "copy":
                    opt, variables = copy.deepcopy((opt, variables))
                else:
                    opt, variables = pickle.loads(pickle.dumps((opt, variables)))
        return [v.tobytes() for v in variables], [w.shape for w in opt.get_weights()]

    assert run(True) == run(False)


def test_a_gradient_of_a_frozen_variable_is_never_read():
    w, gradient = np.zeros(3), np.ones(3)
    opt = rmsjit.RMSprop(0.01, gradient_accumulation_steps=3)
    group = opt.add_group([w], frozen=True)
    opt.apply_gradients([(gradient, w)])
    group.frozen = False
    gradient[:] = np.nan
    opt.flush()
    assert w.tolist() == [0.0, 0.0, 0.0]
    assert int(opt.iterations) == 1
