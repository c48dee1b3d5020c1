"""The demo of word vectors: its text, its model, its gradients, and what it prints."""

import re
import sys

import numpy as np
import pytest

pytest.importorskip("tqdm", reason="the demos need rmsjit[demo]")

from rmsjit.__main__ import main
from rmsjit.cli import demo
from rmsjit.demo import words

pytestmark = pytest.mark.slow

SMALL = words.Settings(dimensions=8, window=2, negatives=2, epochs=3, learning_rate=0.01)
QUICK = ["--epochs", "1", "--dimensions", "8", "--window", "1", "--negatives", "1"]
LAST_LINE = re.compile(
    r"The sparse updates took \S+ % of the training time \([\d,]+ µs a step\)\. The same gradients "
    r"made dense, with updates of the whole tables, take [\d,]+ µs a step, \S+ times as long\."
)


@pytest.fixture(scope="module")
def corpus():
    return words.load()


def corpus_of(*paragraphs):
    """A corpus of paragraphs that are given as numbers of words."""
    lengths = [len(paragraph) for paragraph in paragraphs]
    return words.Corpus(
        [f"word{number}" for number in range(1 + max(map(max, paragraphs)))],
        np.concatenate([np.array(paragraph) for paragraph in paragraphs]),
        np.repeat(np.arange(len(paragraphs)), lengths),
    )


# --- The text --------------------------------------------------------------------------------


def test_words_come_by_their_frequency(corpus):
    counts = np.bincount(corpus.text)
    assert len(counts) == len(corpus.vocabulary) == len(set(corpus.vocabulary)) > 500
    assert counts.min() >= words.RAREST
    assert np.all(np.diff(counts) <= 0)
    assert corpus.vocabulary[0] == "the"
    assert corpus.frequencies.sum() == pytest.approx(1)


def test_paragraphs_are_in_order_and_come_once(corpus):
    assert len(corpus.paragraphs) == len(corpus.text) > 20_000
    assert np.all(np.diff(corpus.paragraphs) >= 0)
    starts = np.flatnonzero(np.diff(corpus.paragraphs)) + 1
    long = [part.tobytes() for part in np.split(corpus.text, starts) if len(part) > 20]
    assert len(long) > 300
    assert len(set(long)) > 0.97 * len(long)  # they may differ in rare words and signs


# --- Batches ---------------------------------------------------------------------------------


def test_neighbours_stand_within_the_window_of_one_paragraph(monkeypatch):
    monkeypatch.setattr(words, "FREQUENT", 1.0)
    corpus = corpus_of(range(10), range(10, 13), [13])
    rng = np.random.default_rng(0)
    counts = np.zeros((14, 14), int)
    for _ in range(400):
        np.add.at(counts, tuple(words.skip_grams(corpus, 4, rng)), 1)
    distances = np.abs(np.subtract.outer(corpus.text, corpus.text))
    apart = np.not_equal.outer(corpus.paragraphs, corpus.paragraphs)
    assert not counts[(distances > 4) | (distances == 0) | apart].any()
    np.testing.assert_array_equal(counts, counts.T)
    shares = [counts[(distances == distance) & ~apart].mean() / 400 for distance in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.25], atol=0.05)


def test_frequent_words_are_thinned_out(corpus):
    pairs = words.skip_grams(corpus, 5, np.random.default_rng(0))
    counts = np.bincount(pairs[0], minlength=len(corpus.vocabulary))
    number = corpus.vocabulary.index
    assert counts[number("the")] < 0.05 * counts.sum() < corpus.frequencies[0] * counts.sum()
    assert counts[number("multiplication")] > 10


def test_candidates_are_the_neighbour_and_others(corpus):
    settings = words.Settings(batch_size=100, negatives=3)
    pairs = words.skip_grams(corpus, settings.window, np.random.default_rng(0))
    found = list(words.batches(corpus, settings, np.random.default_rng(0)))
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in found]), pairs[0])
    candidates = np.concatenate([batch[1] for batch in found])
    np.testing.assert_array_equal(candidates[:, 0], pairs[1])
    assert [len(batch[0]) for batch in found[:-1]] == [100] * (len(found) - 1)
    assert candidates.shape == (pairs.shape[1], 4)
    drawn = np.bincount(candidates[:, 1:].ravel(), minlength=len(corpus.vocabulary))
    expected = corpus.frequencies**0.75
    np.testing.assert_allclose(drawn[:20] / drawn.sum(), (expected / expected.sum())[:20], rtol=0.1)
    assert drawn.min() > 0


# --- The model -------------------------------------------------------------------------------


def test_gradients_are_those_of_the_loss():
    rng = np.random.default_rng(1)
    model = words.SkipGram(7, 3, rng)
    model.vectors, model.neighbours = rng.normal(size=(2, 7, 3))
    batch = np.array([1, 5, 1]), np.array([[2, 2, 4], [1, 6, 0], [0, 2, 3]])
    _, gradients = model.loss_and_gradients(*batch)
    for table, gradient in zip(model.variables, gradients, strict=True):
        expected = np.empty_like(table)
        for at in np.ndindex(table.shape):
            losses, before = [], table[at]
            for step in (1e-5, -1e-5):
                table[at] = before + step
                losses.append(model.loss_and_gradients(*batch)[0])
            table[at] = before
            expected[at] = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(gradient.to_dense(), expected, atol=1e-6)


def test_gradients_name_the_rows_of_the_batch_only(corpus):
    model = words.new_model(corpus, SMALL)
    batch = next(words.batches(corpus, SMALL, np.random.default_rng(0)))
    _, gradients = model.loss_and_gradients(*batch)
    for table, indices, gradient in zip(model.variables, batch, gradients, strict=True):
        np.testing.assert_array_equal(gradient.indices, indices.ravel())
        assert gradient.values.shape == (indices.size, 8)
        assert gradient.dense_shape == table.shape
        assert gradient.dtype == table.dtype == np.float32


def test_nearest_words_point_the_same_way():
    model = words.SkipGram(5, 2, np.random.default_rng(0))
    model.vectors = np.array([[1, 0], [-1, 0.1], [0, 9], [5, 0.1], [3, 3]], np.float32)
    assert model.nearest(0, 3).tolist() == [3, 4, 2]
    assert model.nearest(2, 1).tolist() == [4]


def test_training_learns_and_is_reproducible(corpus):
    runs = []
    for seed in (0, 0, 1):
        settings = words.Settings(**{**vars(SMALL), "seed": seed})
        model = words.new_model(corpus, settings)
        runs.append((words.train(model, corpus, settings, quiet=True), model.vectors))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    first, *_, last = runs[0][0]
    assert last < first < 3 * np.log(2)  # what knowing nothing costs, with two negatives


def test_words_that_are_used_alike_get_similar_vectors(corpus):
    settings = words.Settings(epochs=8, dimensions=32, learning_rate=0.01)
    model = words.new_model(corpus, settings)
    words.train(model, corpus, settings, quiet=True)
    alike = [("true", "false"), ("import", "imported"), ("float", "complex")]
    alike += [("bytes", "bytearray"), ("multiplication", "addition"), ("raise", "typeerror")]
    number, found = corpus.vocabulary.index, 0
    for query, other in alike:
        found += number(other) in model.nearest(number(query), 20)
    assert found >= 4  # of about 1,150 words


# --- The command -----------------------------------------------------------------------------


@pytest.mark.slow
def test_demo(capsys):
    assert main(["demo", "words", *QUICK]) == 0
    out, err = capsys.readouterr()
    first, *table, last = out.splitlines()
    assert re.fullmatch(
        r"Loss \d\.\d{4} after 1 epoch in \d+\.\d s; words with similar vectors:", first
    )
    assert [line.split()[0] for line in table] == list(words.QUERIES)
    assert all(re.fullmatch(r"  [a-z]+ +[a-z]+(, [a-z]+){4}", line) for line in table)
    assert LAST_LINE.fullmatch(last)
    assert re.search(r"[\d,]+ words of Python's language reference", err)
    assert re.search(r"compiled kernels .*in \d+\.\d s|Compiled the kernels in", err)
    assert "loss" not in err  # the progress bar, which is for terminals


def test_quiet_demo(capsys):
    assert main(["demo", "words", *QUICK, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 + len(words.QUERIES)
    assert err == ""


def test_options_reach_the_demo(monkeypatch):
    calls = []
    monkeypatch.setattr(demo.words, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    options = "--epochs 2 --seed 7 --dimensions 9 --window 3 --negatives 4 --batch-size 16 --quiet"
    assert main(["demo", "words", *options.split(), "--learning-rate", "1e-2"]) == 0
    settings = words.Settings(
        dimensions=9, window=3, negatives=4, epochs=2, batch_size=16, learning_rate=0.01, seed=7
    )
    assert calls == [((settings,), {"quiet": True})]


@pytest.mark.parametrize("option", ["--epochs", "--dimensions", "--window", "--negatives"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_wrong_options_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "words", option, value])
    assert exit_.value.code == 2
    assert f"must be a whole number of at least 1, got '{value}'" in capsys.readouterr().err


def test_help_lists_options_with_their_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "words", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for name, value in vars(words.Settings()).items():
        assert re.search(rf"--{name.replace('_', '-')} \w+ [^(]+\(default: {value}\)", out)


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["demo", "words"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "can't import tqdm;" in err
