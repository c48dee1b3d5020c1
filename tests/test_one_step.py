"""`one_step`: the calls of a block are one step."""

import copy
import threading

import numpy as np
import pytest

import rmsjit
from strategies import state_of

OPTIONS = {
    "plain": {},
    "global norm": {"global_clipnorm": 0.5},
    "schedule": {"learning_rate": rmsjit.schedules.ExponentialDecay(0.1, 1, 0.5)},
    "average": {"use_ema": True, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "momentum": {"momentum": 0.9, "centered": True},
    "hooks": {"gradient_transformers": [lambda pairs: [(2 * g, v) for g, v in pairs]]},
    "skip": {"nonfinite": "skip"},
}


def variables():
    return [np.ones((2, 3)), rmsjit.Variable(np.ones(3), name="bias"), np.ones(())]


def gradients(step):
    return [np.full((2, 3), 0.5 + step), np.arange(3.0) - step, np.array(2.0 * step)]


def in_one_step(opt, *calls):
    """Make calls within a block, each a function of the optimizer."""
    with opt.one_step():
        for call in calls:
            call(opt)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_calls_of_a_block_are_one_call(options):
    apart, together = variables(), variables()
    one, other = rmsjit.RMSprop(**options), rmsjit.RMSprop(**options)
    for step in range(4):
        with one.one_step():
            for pair in zip(gradients(step), apart, strict=True):
                assert one.apply_gradients([pair]) is one.iterations
        other.apply_gradients(zip(gradients(step), together, strict=True))
    assert state_of(one, apart) == state_of(other, together)
    assert one.last_gradient_norm == other.last_gradient_norm


def test_nothing_changes_before_the_end_and_gradients_are_copied():
    w, buffer = np.ones(3), np.ones(3)
    table, rows = np.ones((4, 1)), rmsjit.IndexedSlices(np.ones((1, 1)), np.array([2]))
    opt = rmsjit.RMSprop(0.1, rho=0.0)
    with opt.one_step():
        opt.apply_gradients([(buffer, w)])
        opt.apply_gradients([(rows, table)])
        buffer[...] = np.nan
        rows.values[...] = np.nan
        rows.indices[...] = 0
        assert (w == 1).all()
        assert opt.iterations == 0
    np.testing.assert_allclose(w, 0.9, rtol=1e-6)
    np.testing.assert_allclose(table[:, 0], [1, 1, 0.9, 1], rtol=1e-6)
    assert opt.iterations == 1


def test_a_variable_that_occurs_twice_is_updated_twice():
    w, twin = np.ones(2), np.ones(2)
    one, other = rmsjit.RMSprop(0.1), rmsjit.RMSprop(0.1)
    with one.one_step():
        one.apply_gradients([(np.ones(2), w)])
        one.apply_gradients([(2 * np.ones(2), w[::1])])
    other.apply_gradients([(np.ones(2), twin), (2 * np.ones(2), twin)])
    np.testing.assert_array_equal(w, twin)
    assert one.iterations == 1


@pytest.mark.parametrize("style", ["minimize", "step"])
def test_other_styles_within_a_block(style):
    a, b = np.ones(2), np.ones(2)
    opt = rmsjit.RMSprop(0.1, rho=0.0)
    with opt.one_step():
        for w in (a, b):
            if style == "minimize":
                opt.minimize(lambda w: (w**2).sum(), [w])
            else:
                opt.step({"w": w}, {"w": w})
    assert opt.iterations == 1
    np.testing.assert_allclose([a, b], 0.9, rtol=1e-6)


def test_a_block_without_calls_is_no_step():
    opt = rmsjit.RMSprop()
    with opt.one_step():
        pass
    with opt.one_step():
        opt.apply_gradients([])
    assert opt.iterations == 0


def test_missing_gradients_are_told_at_the_end():
    a, b = np.ones(2), np.ones(2)
    opt = rmsjit.RMSprop(0.1)
    calls = [lambda opt, pair=pair: opt.apply_gradients([pair]) for pair in [(None, a), (b, b)]]
    with pytest.warns(RuntimeWarning, match="no gradient for variable 0: left"):
        in_one_step(opt, *calls)
    with pytest.raises(ValueError, match="no gradient was given"):
        in_one_step(opt, calls[0])
    assert opt.iterations == 1


ERRORS = {
    "of the block": (lambda opt, w: 1 / 0, ZeroDivisionError, "division"),
    "of a shape": (
        lambda opt, w: opt.apply_gradients([(np.ones(3), w)]),
        ValueError,
        "the gradient of variable 1 must have its shape",
    ),
    "of a pair": (lambda opt, w: opt.apply_gradients([w]), TypeError, "pair"),
    "of no iterable": (lambda opt, w: opt.apply_gradients(3), TypeError, "iterable"),
    "of a row, at the end": (
        lambda opt, w: opt.apply_gradients([(rmsjit.IndexedSlices([1.0], [9]), w)]),
        IndexError,
        "got 9",
    ),
    "of a value, at the end": (
        lambda opt, w: opt.apply_gradients([(np.full(2, np.inf), w)]),
        FloatingPointError,
        "variable 1",
    ),
    "of a block in a block": (
        lambda opt, w: opt.one_step().__enter__(),
        RuntimeError,
        "within another one_step",
    ),
    "of two ways to sum": (
        lambda opt, w: opt.apply_gradients([(w, w)], experimental_aggregate_gradients=False),
        ValueError,
        "the same in all calls",
    ),
}


@pytest.mark.parametrize(("fail", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_changes_nothing_and_ends_the_block(fail, error, message):
    a, b = np.ones(2), np.ones(2)
    opt = rmsjit.RMSprop(0.1, nonfinite="raise")
    opt.apply_gradients([(a, a), (b, b)])
    before = state_of(opt, [a, b])
    with pytest.raises(error, match=message):
        in_one_step(opt, lambda opt: opt.apply_gradients([(a, a)]), lambda opt: fail(opt, b))
    assert state_of(opt, [a, b]) == before
    opt.apply_gradients([(a, a), (b, b)])
    assert opt.iterations == 2


def test_a_call_that_fails_may_be_left_out():
    a, b = np.ones(2), np.ones(2)
    opt = rmsjit.RMSprop(0.1)
    with opt.one_step():
        opt.apply_gradients([(np.ones(2), a)])
        with pytest.raises(ValueError, match="shape"):
            opt.apply_gradients([(np.ones(3), b)])
    assert (a != 1).all()
    assert (b == 1).all()


def test_a_copy_is_in_no_block():
    w = np.ones(2)
    opt = rmsjit.RMSprop(0.1)
    with opt.one_step():
        opt.apply_gradients([(np.ones(2), w)])
        twin, own = copy.deepcopy((opt, w))
        twin.apply_gradients([(np.ones(2), own)])
        assert twin.iterations == 1
        for move in (opt.rebind, opt.resize_rows):
            with pytest.raises(RuntimeError, match="after the block of one_step"):
                move(w, np.ones(2))
    assert opt.iterations == 1
    np.testing.assert_array_equal(w, own)


def test_each_thread_has_blocks_of_its_own():
    opt = rmsjit.RMSprop(0.1, num_threads=1)
    mine, others = np.ones(2), np.ones(2)

    def other():
        opt.apply_gradients([(np.ones(2), others)])
        with opt.one_step():
            opt.apply_gradients([(np.ones(2), others)])

    with opt.one_step():
        opt.apply_gradients([(np.ones(2), mine)])
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert opt.iterations == 2
        assert (mine == 1).all()
    assert opt.iterations == 3


class Telling:
    """A strategy that notes what it is told."""

    def __init__(self):
        self.told, self.pairs = [], []

    def reduced(self, engine, request):
        self.pairs.append(len(request.pairs))

    def refused(self, engine, error):
        self.told.append(error)


def test_a_strategy_sees_one_step_and_the_error_of_a_block():
    strategy, w = Telling(), np.ones(2)
    opt = rmsjit.RMSprop(strategy=strategy)
    with opt.one_step():
        opt.apply_gradients([(w, w)])
        opt.apply_gradients([(w, w)])
    with opt.one_step():
        pass  # as a rank without a gradient: the others wait for it
    assert strategy.pairs == [2, 0]
    with pytest.raises(ZeroDivisionError):
        in_one_step(opt, lambda opt: opt.apply_gradients([(w, w)]), lambda opt: 1 / 0)
    assert [type(error) for error in strategy.told] == [ZeroDivisionError]
    with pytest.raises(TypeError, match="iterable"):
        in_one_step(opt, lambda opt: opt.apply_gradients(3))
    assert [type(error) for error in strategy.told] == [ZeroDivisionError, TypeError]
    assert strategy.pairs == [2, 0]
