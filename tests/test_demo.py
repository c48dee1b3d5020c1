"""The demo trains, its picture is drawn, and its comparison compares like with like."""

import importlib.util
import re

import numpy as np
import pytest

import rmsjit
from rmsjit.demo import digits, learning_curve, timing
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(  # found but not imported, which takes seconds in every run
        not all(map(importlib.util.find_spec, ("sklearn", "matplotlib", "tqdm"))),
        reason="the demos need rmsjit[demo]",
    ),
]

SMALL = digits.Settings(hidden=(32,), epochs=3, learning_rate=0.01)


@pytest.fixture(scope="module")
def data():
    return digits.load(seed=0)


def numerical_gradient(network, images, labels, variable, at, step=1e-6):
    """The slope of the loss along one element of a variable."""
    losses = []
    before = variable[at]
    for sign in (1, -1):
        variable[at] = before + sign * step
        losses.append(network.loss_and_gradients(images, labels)[0])
    variable[at] = before
    return (losses[0] - losses[1]) / (2 * step)


def test_gradients_are_those_of_the_loss(data):
    rng = np.random.default_rng(1)
    network = digits.Network([digits.PIXELS, 7, 5, digits.CLASSES], rng)
    network.weights = [weights.astype(np.float64) for weights in network.weights]
    network.biases = [rng.normal(size=bias.shape) for bias in network.biases]
    images, labels = data.train_images[:20].astype(np.float64), data.train_labels[:20]
    _, gradients = network.loss_and_gradients(images, labels)
    for variable, gradient in zip(network.variables, gradients, strict=True):
        assert gradient.shape == variable.shape
        for flat in rng.integers(variable.size, size=5):
            at = np.unravel_index(flat, variable.shape)
            expected = numerical_gradient(network, images, labels, variable, at)
            np.testing.assert_allclose(gradient[at], expected, rtol=1e-5, atol=1e-8)


def test_loss_does_not_overflow():
    scores = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    loss, slope = digits.softmax_cross_entropy(scores, np.array([0, 0]))
    assert loss == pytest.approx(1e4)
    np.testing.assert_array_equal(slope, np.array([[0, 0], [-0.5, 0.5]], np.float32))


def test_everything_is_float32(data):
    network = digits.new_network(SMALL)
    images, labels = next(digits.batches(data, 32, np.random.default_rng(0)))
    _, gradients = network.loss_and_gradients(images, labels)
    assert {array.dtype for array in (images, *network.variables, *gradients)} == {
        np.dtype(np.float32)
    }


def test_data_are_split_by_class_and_standardised_by_the_training_images(data):
    assert len(data.train_labels) + len(data.test_labels) == 1797
    assert len(data.test_labels) == digits.TEST_IMAGES
    assert np.ptp(np.bincount(data.test_labels)) <= 4  # 174 to 183 images show each digit
    np.testing.assert_allclose(data.train_images.mean(axis=0), 0, atol=1e-5)
    deviations = data.train_images.std(axis=0)
    np.testing.assert_allclose(deviations[deviations > 0], 1, atol=1e-4)
    assert np.abs(data.test_images.mean(axis=0)).max() > 1e-3


def test_the_seed_decides_the_split():
    one, same, other = digits.load(1), digits.load(1), digits.load(2)
    np.testing.assert_array_equal(one.test_images, same.test_images)
    assert not np.array_equal(one.test_labels, other.test_labels)


def test_each_epoch_has_every_image_once(data):
    labels = [labels for _, labels in digits.batches(data, 100, np.random.default_rng(0))]
    assert [len(batch) for batch in labels] == [100] * 14 + [37]
    np.testing.assert_array_equal(
        np.bincount(np.concatenate(labels)), np.bincount(data.train_labels)
    )


def test_training_learns_and_is_reproducible(data):
    networks = digits.new_network(SMALL), digits.new_network(SMALL)
    histories = [digits.train(network, data, SMALL, quiet=True) for network in networks]
    assert histories[0] == histories[1]
    losses, accuracies = histories[0].losses, histories[0].accuracies
    assert len(losses) == len(accuracies) == SMALL.epochs
    assert losses[0] > losses[1] > losses[2]
    assert accuracies[-1] > 0.85


def test_the_rate_reaches_zero_at_the_last_step(data):
    rate = digits.learning_rate_of(data, SMALL)
    steps = SMALL.epochs * len(list(digits.batches(data, 32, np.random.default_rng(0))))
    assert rate(0) == SMALL.learning_rate
    assert 0 < rate(steps - 1) < 1e-3 * SMALL.learning_rate
    assert rate(steps) == 0


def test_the_demo_as_it_comes_reaches_97_percent(capsys, tmp_path):
    history = digits.run(digits.Settings(), tmp_path / "curve.png", quiet=True)
    assert history.accuracies[-1] >= 0.97
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Test accuracy {100 * history.accuracies[-1]:.1f} % after 40 epochs")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# --- the comparison with NumPy --------------------------------------------------------------


def test_rivals_train_equal_models_on_the_same_batches(data):
    models = digits.new_network(SMALL), digits.new_network(SMALL)
    start = [variable.copy() for variable in models[0].variables]
    rng = np.random.default_rng(3)
    batches = [batch for batch, _ in zip(digits.batches(data, 32, rng), range(12), strict=False)]
    optimizers = rmsjit.RMSprop(0.001), NumPyRMSprop(lambda step: 0.001)
    comparison = timing.compare(*optimizers, models, batches)
    assert min(comparison) > 0
    assert int(optimizers[0].iterations) == optimizers[1].iterations == len(batches)
    for one, other, before in zip(*(model.variables for model in models), start, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.abs(one - before).max() > 1e-3


def test_rivals_take_turns():
    turns = []

    class Rival:
        variables = ()

        def __init__(self, name):
            self.name = name

        def loss_and_gradients(self):
            turns.append(self.name)
            return 0.0, ()

        def apply_gradients(self, pairs):
            assert list(pairs) == []

    one, other = Rival("one"), Rival("other")
    steps = timing.STEPS_IN_A_ROUND
    timing.compare(one, other, (one, other), [()] * (2 * steps + 1))
    expected = [("one", steps), ("other", 2 * steps), ("one", steps), ("one", 1), ("other", 1)]
    assert turns == [name for name, count in expected for _ in range(count)]


def test_how_a_comparison_is_worded():
    text = str(timing.Comparison(update=25e-6, numpy_update=1.225e-3, rest=475e-6))
    assert text == (
        "The optimizer took 5 % of the training time (25 µs a step). The same rule in "
        "hand-written NumPy takes 1,225 µs a step, 49 times as long."
    )


def test_compiling_ahead_leaves_the_variables_alone():
    variables = [np.ones((4, 3), np.float32), np.ones(3, np.float32)]
    first, second = timing.compile_ahead(variables), timing.compile_ahead(variables)
    assert re.search(r"(Compiled|from the cache) .*in \d+\.\d s$", first)
    assert "from the cache" in second
    assert all((variable == 1).all() for variable in variables)


# --- the picture ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "accuracies"),
    [([2.0, 0.5, 0.01], [0.1, 0.9, 1.0]), ([1.0], [0.5]), ([1.0, np.nan], [1.0, 1.0])],
    ids=["usual", "one epoch", "diverged"],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_curves_are_drawn(tmp_path, suffix, losses, accuracies):
    path = tmp_path / f"curve.{suffix}"
    learning_curve.draw(path, "Title", losses, accuracies)
    assert path.stat().st_size > 5000
