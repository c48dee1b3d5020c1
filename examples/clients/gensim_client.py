"""gensim: further training of ``KeyedVectors``, in place.

A batch of words names its rows, and the step costs what these cost, however many words there are.
Afterwards gensim must compute the lengths of the vectors again.
"""

import numpy as np
from gensim.models import KeyedVectors

import rmsjit
from comparison import report

# --- glue ---


def step(optimizer, keyed, words, gradients):
    """Update the vectors of some words, which may repeat, by a gradient for each."""
    rows = [keyed.key_to_index[word] for word in words]
    optimizer.apply_gradients([(rmsjit.IndexedSlices(gradients, rows), keyed.vectors)])
    keyed.fill_norms(force=True)


# --- the program ---


def vectors():
    keyed = KeyedVectors(vector_size=8)
    values = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
    keyed.add_vectors([f"word{k}" for k in range(100)], values)
    return keyed


def train(update):
    """Bring pairs of words closer; `update` gets the vectors, the words and their gradients."""
    keyed, rng = vectors(), np.random.default_rng(1)
    for _ in range(50):
        left, right = rng.integers(100, size=(2, 8))
        gap = keyed.vectors[left] - keyed.vectors[right]
        words = [f"word{k}" for k in [*left, *right]]
        update(keyed, words, np.concatenate([gap, -gap]))
    return [keyed.vectors]


def with_rmsjit():
    optimizer = rmsjit.RMSprop(0.01)
    return train(lambda *arguments: step(optimizer, *arguments))


def with_numpy():
    """gensim has no RMSprop; this is its rule for the rows that are named."""
    rms = np.zeros((100, 8), "float32")

    def update(keyed, words, gradients):
        rows = np.array([keyed.key_to_index[word] for word in words])
        total = np.zeros_like(rms)
        np.add.at(total, rows, gradients)
        rows = np.unique(rows)
        rms[rows] = 0.9 * rms[rows] + 0.1 * total[rows] ** 2
        keyed.vectors[rows] -= 0.01 * total[rows] / (np.sqrt(rms[rows]) + 1e-7)

    return train(update)


def main():
    report("NumPy", with_rmsjit(), with_numpy())


if __name__ == "__main__":
    main()
