"""Word vectors: skip-gram with negative sampling in plain NumPy, trained with rmsjit.

A batch contains few of the words, so its gradient is zero in most rows of the two tables.  An
`rmsjit.IndexedSlices` holds only the other rows, and ``optimizer.apply_gradients`` updates only
these rows of the tables.

T. Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality",
Advances in Neural Information Processing Systems 26, 2013.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rmsjit
from rmsjit.demo import timing

Array = NDArray[np.float32]
Words = NDArray[np.int64]  # numbers of words, ordered by frequency

RAREST = 5  # minimum number of occurrences of a word in the vocabulary
FREQUENT = 1e-3  # words with a larger share of the text are subsampled
QUERIES = (
    "class",
    "exception",
    "raise",
    "import",
    "loop",
    "async",
    "true",
    "float",
    "multiplication",
    "bytes",
    "string",
)
NEAREST = 5
TIMED_STEPS = 200


@dataclass(frozen=True)
class Settings:
    """The options of a run."""

    dimensions: int = 64
    window: int = 5
    negatives: int = 5
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 0.003
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """A text as word numbers, without rare words.

    Attributes
    ----------
    vocabulary : list of str
        The word of each number.
    text : int64 array
        The numbers of all words in the text, in order.
    paragraphs : int64 array
        The paragraph of each word in `text`.
    """

    vocabulary: list[str]
    text: Words
    paragraphs: Words

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """The share of each word in the text."""
        return np.bincount(self.text, minlength=len(self.vocabulary)) / len(self.text)


class SkipGram:
    """Two vectors for each word: one for the word itself, one for it as a neighbour of others.

    Parameters
    ----------
    words, dimensions : int
        The shape of both tables.
    rng : Generator
    """

    def __init__(self, words: int, dimensions: int, rng: np.random.Generator) -> None:
        self.vectors = rng.uniform(-0.25, 0.25, (words, dimensions)).astype(np.float32)
        self.neighbours = np.zeros((words, dimensions), np.float32)

    @property
    def variables(self) -> list[Array]:
        """All trainable arrays."""
        return [self.vectors, self.neighbours]

    def loss_and_gradients(
        self, words: Words, candidates: Words
    ) -> tuple[float, list[rmsjit.IndexedSlices]]:
        """The loss of a batch and its gradient with respect to each of `variables`.

        The model learns to tell the true neighbour of a word from random words.

        Parameters
        ----------
        words : int64 array, shape (n,)
        candidates : int64 array, shape (n, 1 + negatives)
            For each word its true neighbour, then the random words.
        """
        of_words, of_candidates = self.vectors[words], self.neighbours[candidates]
        scores = np.einsum("nd,ncd->nc", of_words, of_candidates)
        is_true = np.arange(candidates.shape[1]) == 0
        loss = np.logaddexp(0, np.where(is_true, -scores, scores)).sum() / len(words)
        slope = (1 / (1 + np.exp(-scores)) - is_true).astype(np.float32) / len(words)
        word_rows = np.einsum("nc,ncd->nd", slope, of_candidates)
        candidate_rows = slope[:, :, np.newaxis] * of_words[:, np.newaxis]
        return float(loss), [
            rows_of(self.vectors, words, word_rows),
            rows_of(self.neighbours, candidates, candidate_rows),
        ]

    def nearest(self, word: int, count: int) -> Words:
        """The words with the most similar vectors (by cosine), the nearest first."""
        directions = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        cosines = directions @ directions[word]
        return np.argsort(-cosines)[1 : count + 1]  # the first is the word itself


def rows_of(table: Array, indices: Words, values: Array) -> rmsjit.IndexedSlices:
    """The gradient of a table from the rows `indices` that were used, with duplicates."""
    rows = values.reshape(indices.size, table.shape[1])
    return rmsjit.IndexedSlices(rows, indices.reshape(-1), table.shape)


def train(model: SkipGram, corpus: Corpus, settings: Settings, quiet: bool = False) -> list[float]:
    """Train `model` in place; return the mean loss of each epoch."""
    from tqdm import tqdm

    optimizer = rmsjit.RMSprop(settings.learning_rate)
    rng = np.random.default_rng(settings.seed)
    history = []
    # None: no bar where the output is no terminal
    with tqdm(range(settings.epochs), unit="epoch", disable=quiet or None) as epochs:
        for _ in epochs:
            losses = []
            for batch in batches(corpus, settings, rng):
                loss, gradients = model.loss_and_gradients(*batch)
                optimizer.apply_gradients(zip(gradients, model.variables, strict=True))
                losses.append(loss)
            history.append(float(np.mean(losses)))
            epochs.set_postfix_str(f"loss {history[-1]:.4f}")
    return history


def batches(
    corpus: Corpus, settings: Settings, rng: np.random.Generator
) -> Iterator[tuple[Words, Words]]:
    """The batches of one epoch: words and candidates for `SkipGram.loss_and_gradients`."""
    words, neighbours = skip_grams(corpus, settings.window, rng)
    # Frequent words are drawn more often, but less than in proportion to their frequency.
    shares = corpus.frequencies**0.75
    lots = np.repeat(np.arange(len(shares)), np.rint(10 * shares / shares.min()).astype(int))
    for start in range(0, len(words), settings.batch_size):
        batch = slice(start, start + settings.batch_size)
        others = rng.choice(lots, (len(words[batch]), settings.negatives))
        yield words[batch], np.column_stack([neighbours[batch], others])


def skip_grams(corpus: Corpus, window: int, rng: np.random.Generator) -> Words:
    """Words and their neighbours in the same paragraph, shape (2, pairs), in a random order.

    Some occurrences of frequent words are dropped, which makes the window reach farther.  Pairs are
    dropped with a probability that grows with their distance.
    """
    chances = np.sqrt(FREQUENT / corpus.frequencies)
    kept = rng.random(len(corpus.text)) < chances[corpus.text]
    text, paragraphs = corpus.text[kept], corpus.paragraphs[kept]
    pairs = []
    for distance in range(1, window + 1):
        together = paragraphs[distance:] == paragraphs[:-distance]
        together &= window * rng.random(len(together)) > distance - 1
        left, right = text[:-distance][together], text[distance:][together]
        pairs += [[left, right], [right, left]]
    return rng.permutation(np.concatenate(pairs, axis=1), axis=1)


def load() -> Corpus:
    """The language reference from Python's ``help``, without repeated paragraphs."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    sentences = [re.findall(r"[a-z]{2,}", paragraph.lower()) for paragraph in paragraphs]
    counts = Counter(word for sentence in sentences for word in sentence)
    vocabulary = [word for word, count in counts.most_common() if count >= RAREST]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    known = [[numbers[word] for word in sentence if word in numbers] for sentence in sentences]
    return Corpus(
        vocabulary,
        np.concatenate([np.array(sentence, np.int64) for sentence in known]),
        np.repeat(np.arange(len(known)), [len(sentence) for sentence in known]),
    )


def new_model(corpus: Corpus, settings: Settings) -> SkipGram:
    """An untrained model, which depends only on the corpus and the settings."""
    rng = np.random.default_rng(settings.seed)
    return SkipGram(len(corpus.vocabulary), settings.dimensions, rng)


def run(settings: Settings, quiet: bool = False) -> list[float]:
    """Run the demo: results go to standard output, everything else to standard error.

    Parameters
    ----------
    settings : Settings
    quiet : bool, default False
        Whether to show results only.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    corpus = load()
    model = new_model(corpus, settings)
    say(describe(corpus, model))
    say(compile_ahead(corpus, settings))
    start = time.perf_counter()
    history = train(model, corpus, settings, quiet)
    seconds = time.perf_counter() - start

    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    print(f"Loss {history[-1]:.4f} after {epochs} in {seconds:.1f} s; words with similar vectors:")
    print(*neighbourhoods(corpus, model), sep="\n")
    print(compare(corpus, settings))
    return history


def describe(corpus: Corpus, model: SkipGram) -> str:
    """A summary of the task in one line."""
    rows, columns = model.vectors.shape
    return (
        f"{len(corpus.text):,} words of Python's language reference, {rows:,} of them distinct; "
        f"two trainable tables of {rows:,} x {columns} numbers"
    )


def neighbourhoods(corpus: Corpus, model: SkipGram) -> Iterator[str]:
    """A line for each query with its nearest words."""
    for query in QUERIES:
        if query in corpus.vocabulary:
            nearest = model.nearest(corpus.vocabulary.index(query), NEAREST)
            yield f"  {query:<16}{', '.join(corpus.vocabulary[word] for word in nearest)}"


class DenseRMSprop:
    """`rmsjit.RMSprop` on sparse gradients converted to dense ones."""

    def __init__(self, learning_rate: float) -> None:
        self.optimizer = rmsjit.RMSprop(learning_rate)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Array]], /) -> None:
        """Update whole tables."""
        self.optimizer.apply_gradients(
            (gradient.to_dense(), table) for gradient, table in grads_and_vars
        )


def compare(corpus: Corpus, settings: Settings) -> str:
    """Train two copies of the new model for some steps, one of them with dense gradients."""
    rng = np.random.default_rng(settings.seed)
    times = timing.compare(
        rmsjit.RMSprop(settings.learning_rate),
        DenseRMSprop(settings.learning_rate),
        (new_model(corpus, settings), new_model(corpus, settings)),
        list(islice(batches(corpus, settings, rng), TIMED_STEPS)),
    )
    return (
        f"The sparse updates took {times.of_all}. The same gradients made dense, with updates of "
        f"the whole tables, take {times.beside}."
    )


def compile_ahead(corpus: Corpus, settings: Settings) -> str:
    """Compile the kernels for sparse and dense gradients; see `timing.compile_ahead`."""
    model, rng = new_model(corpus, settings), np.random.default_rng(settings.seed)
    _, sparse = model.loss_and_gradients(*next(batches(corpus, settings, rng)))
    dense = [gradient.to_dense() for gradient in sparse]
    return timing.compile_ahead(model.variables * 2, [*sparse, *dense])
