"""Handwritten digits: a multilayer perceptron in plain NumPy, trained with rmsjit.

`train` shows what a NumPy program needs to use rmsjit: an optimizer, and in each step a call of
``optimizer.apply_gradients(zip(gradients, variables))``, which updates the arrays in place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import rmsjit
from rmsjit.demo import learning_curve, timing
from rmsjit.demo.numpy_rmsprop import NumPyRMSprop

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

PIXELS, CLASSES = 64, 10
TEST_IMAGES = 360  # of 1,797
NOISE = 0.4  # in standard deviations of a pixel
TIMED_STEPS = 200


@dataclass(frozen=True)
class Settings:
    """The options of a run."""

    hidden: tuple[int, ...] = (512, 256)
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 0.001
    seed: int = 0


@dataclass
class History:
    """The mean loss of each epoch, and the accuracy on the test images after it."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Digits:
    """Images of 64 pixels and their labels."""

    train_images: Array
    train_labels: Labels
    test_images: Array
    test_labels: Labels


class Network:
    """A multilayer perceptron with ReLU after each hidden layer and a score for each class."""

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        self.weights = [_he_normal(inputs, outputs, rng) for inputs, outputs in pairwise(sizes)]
        self.biases = [np.zeros(outputs, np.float32) for outputs in sizes[1:]]

    @property
    def variables(self) -> list[Array]:
        """All trainable arrays."""
        return [*self.weights, *self.biases]

    def forward(self, images: Array) -> list[Array]:
        """The values of all layers, from the images to the scores."""
        layers = [images]
        for weights, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(np.maximum(layers[-1] @ weights + bias, 0))
        layers.append(layers[-1] @ self.weights[-1] + self.biases[-1])
        return layers

    def loss_and_gradients(self, images: Array, labels: Labels) -> tuple[float, list[Array]]:
        """The loss of a batch and its gradient with respect to each of `variables`."""
        *inputs, scores = self.forward(images)
        loss, slope = softmax_cross_entropy(scores, labels)
        of_weights, of_biases = [], []
        for weights, values in zip(reversed(self.weights), reversed(inputs), strict=True):
            of_weights.append(values.T @ slope)
            of_biases.append(slope.sum(axis=0))
            if values is not images:
                slope = slope @ weights.T * (values > 0)
        return loss, [*reversed(of_weights), *reversed(of_biases)]

    def accuracy(self, images: Array, labels: Labels) -> float:
        """The fraction of images whose label has the highest score."""
        scores = self.forward(images)[-1]
        return float(np.mean(scores.argmax(axis=1) == labels))


def softmax_cross_entropy(scores: Array, labels: Labels) -> tuple[float, Array]:
    """The mean loss of a batch and its gradient with respect to the scores."""
    scores = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    picked = np.arange(len(labels)), labels
    loss = -log_probabilities[picked].mean()
    slope = np.exp(log_probabilities)
    slope[picked] -= 1
    return float(loss), slope / len(labels)


def train(network: Network, digits: Digits, settings: Settings, quiet: bool = False) -> History:
    """Train `network` in place."""
    from tqdm import tqdm

    optimizer = rmsjit.RMSprop(learning_rate_of(digits, settings))
    rng = np.random.default_rng(settings.seed)
    history = History()
    # None: no bar where the output is no terminal
    with tqdm(range(settings.epochs), unit="epoch", disable=quiet or None) as epochs:
        for _ in epochs:
            losses = []
            for images, labels in batches(digits, settings.batch_size, rng):
                loss, gradients = network.loss_and_gradients(images, labels)
                optimizer.apply_gradients(zip(gradients, network.variables, strict=True))
                losses.append(loss)
            history.losses.append(float(np.mean(losses)))
            history.accuracies.append(network.accuracy(digits.test_images, digits.test_labels))
            epochs.set_postfix_str(
                f"loss {history.losses[-1]:.4f}, test accuracy {100 * history.accuracies[-1]:.1f} %"
            )
    return history


def learning_rate_of(digits: Digits, settings: Settings) -> rmsjit.schedules.CosineDecay:
    """Cosine decay from `settings.learning_rate` to zero at the last step."""
    steps_per_epoch = -(-len(digits.train_labels) // settings.batch_size)
    return rmsjit.schedules.CosineDecay(
        settings.learning_rate, decay_steps=settings.epochs * steps_per_epoch
    )


def batches(digits: Digits, size: int, rng: np.random.Generator) -> Iterator[tuple[Array, Labels]]:
    """The shuffled training images, with noise against overfitting."""
    order = rng.permutation(len(digits.train_labels))
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        noise = NOISE * rng.standard_normal((len(picked), PIXELS), np.float32)
        yield digits.train_images[picked] + noise, digits.train_labels[picked]


def load(seed: int) -> Digits:
    """The digits of scikit-learn, standardised, with a stratified split into training and test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images.astype(np.float32), labels, test_size=TEST_IMAGES, stratify=labels, random_state=seed
    )
    mean, deviation = train_images.mean(axis=0), train_images.std(axis=0)
    deviation[deviation == 0] = 1  # pixels that are blank in every training image
    return Digits(
        (train_images - mean) / deviation,
        train_labels,
        (test_images - mean) / deviation,
        test_labels,
    )


def new_network(settings: Settings) -> Network:
    """An untrained network, which depends only on the settings."""
    return Network([PIXELS, *settings.hidden, CLASSES], np.random.default_rng(settings.seed))


def run(settings: Settings, picture: Path | None = None, quiet: bool = False) -> History:
    """Run the demo: results go to standard output, everything else to standard error.

    Parameters
    ----------
    settings : Settings
    picture : Path, optional
        File of the learning curve; without it, none is drawn.
    quiet : bool, default False
        Whether to show results only.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    digits, network = load(settings.seed), new_network(settings)
    say(describe(digits, network))
    say(timing.compile_ahead(network.variables))
    with threadpool_limits(1, user_api="blas"):  # matrices this small are slower on several threads
        start = time.perf_counter()
        history = train(network, digits, settings, quiet)
        seconds = time.perf_counter() - start
        comparison = compare(digits, settings)

    accuracy = 100 * history.accuracies[-1]
    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    print(f"Test accuracy {accuracy:.1f} % after {epochs} in {seconds:.1f} s")
    if picture is not None:
        title = f"Handwritten digits: {accuracy:.1f} % of {TEST_IMAGES} unseen images recognised"
        learning_curve.draw(picture, title, history.losses, history.accuracies)
        print(f"Learning curve: {picture}")
    print(comparison)
    return history


def describe(digits: Digits, network: Network) -> str:
    """A summary of the task in one line."""
    sizes = [PIXELS, *map(len, network.biases)]
    numbers = sum(variable.size for variable in network.variables)
    return (
        f"{len(digits.train_labels):,} handwritten digits for training, "
        f"{len(digits.test_labels)} for testing; "
        f"a network of {'-'.join(map(str, sizes))} units with {numbers:,} parameters"
    )


def compare(digits: Digits, settings: Settings) -> timing.Comparison:
    """Train two copies of the new network for some steps, one of them with hand-written NumPy."""
    rate, rng = learning_rate_of(digits, settings), np.random.default_rng(settings.seed)
    epochs = (batches(digits, settings.batch_size, rng) for _ in count())
    return timing.compare(
        rmsjit.RMSprop(rate),
        NumPyRMSprop(rate),
        (new_network(settings), new_network(settings)),
        list(islice(chain.from_iterable(epochs), TIMED_STEPS)),
    )


def _he_normal(inputs: int, outputs: int, rng: np.random.Generator) -> Array:
    """Random weights (He initialisation) that keep the variance of activations under ReLU."""
    scale = np.float32(np.sqrt(2 / inputs))
    return scale * rng.standard_normal((inputs, outputs), np.float32)
