"""The learning-rate range test: what it finds, when it stops, and what it restores."""

import sys

import numpy as np
import pytest

import rmsjit
from rmsjit.rate_finder import RangeTest
from rmsjit.schedules import ExponentialDecay


class Problem:
    """Least squares, with an optimizer of which two steps were taken."""

    def __init__(self, make=rmsjit.RMSprop, steps=2, dtype=float, **arguments):
        rng = np.random.default_rng(0)
        self.X = rng.normal(size=(50, 4)).astype(dtype)
        self.y = self.X @ np.arange(4.0).astype(dtype)
        self.w = np.zeros(4, dtype)
        self.optimizer = make(**{"learning_rate": 0.1, **arguments})
        self.rates = []
        for _ in range(steps):
            self.step()
        self.rates.clear()

    def step(self):
        error = self.X @ self.w - self.y
        self.optimizer.apply_gradients([(self.X.T @ error / len(self.X), self.w)])
        self.rates.append(self.optimizer._hyperparameters["learning_rate"])
        return np.mean(error**2)

    def test(self, **arguments):
        return rmsjit.lr_range_test(self.step, self.optimizer, {"w": self.w}, **arguments)


def losses(*values):
    """A step that returns these losses, and trains nothing."""
    return iter(values).__next__


def test_of(*values, **arguments):
    return rmsjit.lr_range_test(
        losses(*values),
        rmsjit.RMSprop(),
        [],
        **{"num_steps": len(values), "smoothing": 0.0, **arguments},
    )


test_of.__test__ = False


# What it runs -----------------------------------------------------------------------------------


def test_rates_rise_geometrically():
    problem = Problem()
    found = problem.test(start_lr=1e-6, end_lr=1e-2, num_steps=5)
    assert problem.rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert found.rates.tolist() == problem.rates
    assert not found.diverged


def test_losses_are_those_of_the_same_run_by_hand():
    problem, twin = Problem(momentum=0.9), Problem(momentum=0.9)
    found = problem.test(num_steps=30)
    expected = []
    for rate in found.rates:
        twin.optimizer.learning_rate = rate
        expected.append(twin.step())
    assert found.losses.tolist() == expected


def test_the_average_is_that_of_adam():
    found = test_of(4.0, 2.0, 1.0, smoothing=0.5, start_lr=1.0, end_lr=4.0)
    assert found.smoothed == pytest.approx([4.0, (1 + 1) / 0.75, (0.5 + 0.5 + 0.5) / 0.875])
    logs = [0.0, 0.5 / 0.75, (0.25 + 1.0) / 0.875]  # of the rates 1, 2 and 4
    assert np.log2(found.smoothed_rates) == pytest.approx(logs)


@pytest.mark.parametrize(
    ("values", "suggestion"),
    [
        ((9.0, 8.0, 3.0, 2.5, 5.0), 1e-2),
        ((9.0, 8.5, 8.0, 3.0, 5.0), 1e-1),
        ((3.0, 4.0, 5.0, 6.0, 7.0), None),
        ((2.0, 2.0, 2.0, 2.0, 2.0), None),
        ((-1.0, -2.0, -9.0, -9.5, -9.0), 1e-2),
    ],
)
def test_the_suggestion_is_where_the_loss_falls_fastest(values, suggestion):
    found = test_of(*values, start_lr=1e-3, end_lr=10.0)
    assert found.suggestion == (suggestion and pytest.approx(suggestion))


def test_a_rate_that_was_suggested_trains():
    problem = Problem(steps=0)
    problem.optimizer.learning_rate = problem.test().suggestion
    first = problem.step()
    for _ in range(100):
        last = problem.step()
    assert last < first / 100


# When it stops ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "arguments", "count"),
    [
        ((2.0, 1.0, 4.0, 4.1, 1.0), {}, 4),
        ((2.0, 1.0, 4.0, 4.1, 1.0), {"divergence": 3.5}, 3),
        ((2.0, 1.0, 4.0, 4.1, 1.0), {"divergence": 9.0}, 5),
        ((-1.0, -2.0, 3.9, 4.1, 1.0), {}, 4),
        ((-1.0, -2.0, -1.0, 0.0, -1.0), {}, 5),
    ],
)
def test_it_ends_when_the_loss_rises_too_far(values, arguments, count):
    found = test_of(*values, **arguments)
    assert len(found.losses) == len(found.rates) == len(found.smoothed) == count
    assert found.diverged is (count < 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_a_loss_that_is_not_finite_ends_it_and_is_left_out(value):
    found = test_of(2.0, 1.0, value, 1.0)
    assert found.losses.tolist() == [2.0, 1.0]
    assert found.diverged


def test_a_first_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match=r"^the first loss must be finite, got nan"):
        test_of(np.nan, 1.0)


def test_a_gradient_that_the_optimizer_refuses_ends_it():
    w = np.ones(2)
    optimizer = rmsjit.RMSprop(nonfinite="raise")
    gradients = iter([1.0, 1.0, np.inf])

    def step():
        optimizer.apply_gradients([(np.full(2, next(gradients)), w)])
        return 1.0

    found = rmsjit.lr_range_test(step, optimizer, [w])
    assert (len(found.losses), found.diverged) == (2, True)
    assert w.tolist() == [1.0, 1.0]


# What it restores -------------------------------------------------------------------------------


def tf1(**arguments):
    return rmsjit.train.RMSPropOptimizer(**arguments)


CASES = {
    "plain": {},
    "momentum": {"momentum": 0.9, "centered": True},
    "schedule": {"learning_rate": ExponentialDecay(0.1, 3, 0.5)},
    "function": {"learning_rate": lambda step: 0.1 / (step + 1)},
    "decay": {"decay": 0.5},
    "skip": {"nonfinite": "skip"},
    "exact": {"sparse": "exact"},
    "float32": {"dtype": np.float32},
    "tf1": {"make": tf1, "momentum": 0.5},
    "form": {"make": rmsjit.forms.keras, "momentum": 0.5},
}


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_as_if_there_had_been_no_test(name, before):
    problem, twin = Problem(steps=before, **CASES[name]), Problem(steps=before, **CASES[name])
    problem.test(num_steps=20)
    assert repr(problem.optimizer) == repr(twin.optimizer)
    assert len(problem.optimizer.variables_seen) == len(twin.optimizer.variables_seen)
    for _ in range(3):
        problem.step()
        twin.step()
    assert problem.w.tolist() == twin.w.tolist()


def test_slots_that_came_with_the_test_go_with_it():
    """Their order numbers variables, for groups and for random bits."""

    def run(tests):
        rng = np.random.default_rng(0)
        a, b = (rng.normal(size=6).astype("float16") for _ in range(2))
        optimizer = rmsjit.RMSprop(0.01, rounding="stochastic", momentum=lambda step: 0.1 * step)
        optimizer.add_group([b], lr_multiplier=0.5, rho=lambda step: 0.9 - 0.01 * step)

        def step():
            optimizer.apply_gradients([(a.copy(), a), (b.copy(), b)])
            return float(a.astype(float) @ a)

        def of_one():
            optimizer.apply_gradients([(b.copy(), b)])
            return float(b.astype(float) @ b)

        if tests:
            rmsjit.lr_range_test(of_one, optimizer, [a, b], num_steps=5)
            assert len(optimizer.weights) == 1
        step()
        before = optimizer.build([a, b]), optimizer.get_config()
        if tests:
            rmsjit.lr_range_test(step, optimizer, [a, b], num_steps=5)
        assert optimizer.get_config() == before[1]
        for _ in range(2):
            step()
        return optimizer.get_config(), a.tolist(), b.tolist()

    assert run(tests=True) == run(tests=False)


def test_legacy_decay_does_not_lower_the_rates_of_the_test():
    with_decay, without = Problem(decay=9.0, steps=0), Problem(steps=0)
    assert with_decay.test().losses.tolist() == without.test().losses.tolist()
    assert with_decay.optimizer.decay == 9.0


def test_what_is_not_trained_is_restored_as_well():
    w, running = np.ones(2), np.zeros(3, int)
    optimizer = rmsjit.RMSprop()

    def step():
        running[...] += 1
        optimizer.apply_gradients([(w, w)])
        return 1.0

    rmsjit.lr_range_test(step, optimizer, [w, running, w[::-1]], num_steps=3)
    assert running.tolist() == [0, 0, 0]
    assert w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyboardInterrupt])
def test_an_error_of_the_step_is_raised_and_all_is_restored(error):
    problem = Problem()
    before, count = problem.w.copy(), iter(range(5))

    def step():
        if next(count) == 4:
            raise error("mine")
        return problem.step()

    with pytest.raises(error, match="mine"):
        rmsjit.lr_range_test(step, problem.optimizer, [problem.w])
    assert problem.w.tolist() == before.tolist()
    assert (problem.optimizer.learning_rate, int(problem.optimizer.iterations)) == (0.1, 2)


def test_a_variable_that_is_not_named_is_an_error_after_one_step():
    w, other = np.ones(2), np.ones(3)
    optimizer = rmsjit.RMSprop()

    def step():
        optimizer.apply_gradients([(w, w), (other, other)])
        return 1.0

    with pytest.raises(ValueError, match=r"^variables must contain every variable .*number 1"):
        rmsjit.lr_range_test(step, optimizer, [w])
    assert w.tolist() == [1.0, 1.0]
    assert not optimizer.variables_seen


# Arguments and the plot -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0.0}, ValueError, "start_lr must be positive, got 0"),
        ({"start_lr": "a"}, TypeError, "start_lr must be a number, got 'a'"),
        ({"end_lr": 1e-8}, ValueError, "end_lr must be above start_lr, 1e-07, got 1e-08"),
        ({"end_lr": np.inf}, ValueError, "end_lr must be finite"),
        ({"num_steps": 1}, ValueError, "num_steps must be at least 2, got 1"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be an integer, got 2.0"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be from 0 to below 1, got 1.0"),
        ({"divergence": 1.0}, ValueError, "divergence must be above 1, got 1.0"),
        ({"optimizer": None}, TypeError, "optimizer must be one of rmsjit's, got NoneType"),
        ({"step": 5}, TypeError, "step must be callable, got 5"),
        ({"step": lambda: None}, TypeError, "the loss that step returns must be a number"),
        ({"variables": [[1.0]]}, TypeError, r"variables\['variables\[0\]'\] must be a NumPy"),
        ({"variables": []}, ValueError, "variables must contain every variable"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, error, message):
    problem = Problem()
    given = {"step": problem.step, "optimizer": problem.optimizer, "variables": [problem.w]}
    with pytest.raises(error, match=f"^{message}"):
        rmsjit.lr_range_test(**{**given, **arguments})


@pytest.mark.slow
def test_the_result_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    Problem(steps=0).test().plot(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    test_of(2.0, 2.0).plot(path)
    with pytest.raises(ValueError, match="unknown"):
        test_of(3.0, 2.0).plot(tmp_path / "curve.unknown")


@pytest.mark.parametrize(
    ("values", "expected"),
    [((3.0, 1.0, 4.0), (0.9, 3.6)), ((2.0, 2.0), (1.99, 2.26)), ((0.0, 0.0), (-0.05, 1.3))],
)
def test_the_drawing_shows_the_fall_and_not_the_divergence(values, expected):
    assert test_of(*values)._shown() == pytest.approx(expected)


def test_the_plot_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        test_of(2.0, 1.0).plot("never.png")


def test_the_result_is_short_in_print():
    assert repr(test_of(2.0, 3.0)) == "RangeTest(suggestion=None, diverged=False)"
    assert isinstance(test_of(2.0, 3.0), RangeTest)


@pytest.mark.parametrize("loss", [3.0, 0.7, 0.1, 1 / 3, -2.0])
def test_a_constant_loss_suggests_nothing(loss):
    assert rmsjit.lr_range_test(lambda: loss, rmsjit.RMSprop(0.1), {}).suggestion is None


def test_groups_with_a_rate_of_their_own_are_tested_and_get_it_back():
    optimizer, w, b = rmsjit.RMSprop(0.1), np.ones(2), np.ones(2)
    group = optimizer.add_group(b, learning_rate=0.5)
    moves = []

    def step():
        before = w.copy(), b.copy()
        optimizer.apply_gradients([(np.ones(2), w), (np.ones(2), b)])
        moves.append((w - before[0], b - before[1]))
        return 1.0

    rmsjit.lr_range_test(step, optimizer, [w, b], num_steps=3)
    for of_w, of_b in moves:
        np.testing.assert_array_equal(of_w, of_b)
    assert group.learning_rate == 0.5
    optimizer.apply_gradients([(np.ones(2), b)])
    assert 1.0 - b[0] > 1.0


def test_it_is_not_for_a_block_of_calls():
    """Whose step would come after all was restored."""
    problem = Problem(steps=1)
    before = problem.w.copy()
    refused = pytest.raises(RuntimeError, match="must not be within one_step")
    with refused, problem.optimizer.one_step():
        problem.test()
    np.testing.assert_array_equal(problem.w, before)
