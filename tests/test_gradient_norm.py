"""The norm of the gradients that steps report: `last_gradient_norm`."""

import copy

import numpy as np
import pytest

import rmsjit

PAIR = [np.array([3.0, -4.0]), np.array([12.0])]  # of norm 13
READS = {
    "clipnorm": ({"clipnorm": 0.5}, 13.0),
    "global_clipnorm": ({"global_clipnorm": 0.5}, 13.0),
    "skip": ({"nonfinite": "skip"}, 13.0),
    "raise": ({"nonfinite": "raise"}, 13.0),
    "track": ({"track_norms": True}, 13.0),
    "track and clipvalue": ({"track_norms": True, "clipvalue": 1.0}, 13.0),
    "clipvalue first": ({"clipvalue": 4.0, "clipnorm": 0.5}, np.sqrt(9 + 16 + 16)),
    "transformers": ({"track_norms": True, "clipnorm": 1, "gradient_transformers": [list]}, 13.0),
    "mean of calls": ({"track_norms": True, "gradient_accumulation_steps": 1}, 13.0),
}


@pytest.mark.parametrize("name", READS)
def test_it_is_that_before_clipping(name):
    settings, expected = READS[name]
    opt, variables = rmsjit.RMSprop(**settings), [np.zeros(2), np.zeros(1)]
    assert opt.last_gradient_norm is None
    opt.apply_gradients(zip(PAIR, variables, strict=True))
    assert opt.last_gradient_norm == pytest.approx(expected, rel=1e-15)
    opt.apply_gradients([(np.array([2.0]), variables[1])])
    assert opt.last_gradient_norm == 2.0


@pytest.mark.parametrize("settings", [{}, {"clipvalue": 1.0}])
def test_steps_that_need_no_norm_compute_none(settings):
    opt = rmsjit.RMSprop(**settings)
    opt.apply_gradients([(PAIR[0], np.zeros(2))])
    assert opt.last_gradient_norm is None


def test_tracking_changes_no_bit():
    rng = np.random.default_rng(1)
    w, plain = np.ones(100, np.float32), np.ones(100, np.float32)
    opt, other = (
        rmsjit.RMSprop(0.1, clipvalue=0.5, track_norms=True),
        rmsjit.RMSprop(0.1, clipvalue=0.5),
    )
    for _ in range(3):
        g = rng.normal(size=100).astype(np.float32)
        opt.apply_gradients([(g, w)])
        other.apply_gradients([(g, plain)])
        assert opt.last_gradient_norm == pytest.approx(np.linalg.norm(g.astype(float)), rel=1e-6)
    np.testing.assert_array_equal(w, plain)


def test_sparse_gradients_count_by_their_values():
    opt = rmsjit.RMSprop(track_norms=True)
    slices = rmsjit.IndexedSlices([[3.0], [4.0]], [1, 1])
    opt.apply_gradients([(slices, np.zeros((2, 1)))])
    assert opt.last_gradient_norm == 5.0


def test_a_skipped_step_reports_what_it_met():
    opt = rmsjit.RMSprop(nonfinite="skip")
    opt.apply_gradients([(np.array([np.inf]), np.zeros(1))])
    assert opt.last_gradient_norm == np.inf


HOOKED = [
    {"track_norms": True, "grad_scale": 0.5},
    {"clipnorm": 1.0, "grad_scale": 0.5, "maximize": True},
    {"clipnorm": 1.0, "clipvalue": 3.5},
    {"global_clipnorm": 1.0, "clipvalue": 3.5, "grad_scale": 2.0},
    {"nonfinite": "skip", "clipvalue": 1.0},
    {"nonfinite": "raise", "clipnorm": 1.0},
    {"track_norms": True, "maximize": True, "clipvalue": 1.0},
]


@pytest.mark.parametrize("settings", HOOKED, ids=str)
@pytest.mark.parametrize("of", ["dense", "sparse", "not finite"])
def test_hooks_do_not_change_it(settings, of):
    norms = []
    for hooks in ({}, {"gradient_transformers": [list]}):
        opt, table, w = rmsjit.RMSprop(**settings, **hooks), np.zeros((2, 1)), np.zeros(2)
        group = opt.add_group([w], lr_multiplier=2.0)
        gradient = {
            "dense": np.array([[3.0], [-4.0]]),
            "sparse": rmsjit.IndexedSlices([[3.0], [-4.0]], [1, 1]),
            "not finite": np.array([[np.inf], [1.0]]),
        }[of]
        if of == "not finite" and settings.get("nonfinite") == "raise":
            with pytest.raises(FloatingPointError):
                opt.apply_gradients([(gradient, table), (np.array([6.0, 8.0]), w)])
            continue
        opt.apply_gradients([(gradient, table), (np.array([6.0, 8.0]), w)])
        assert group in opt.groups
        norms.append((opt.last_gradient_norm, *opt.last_gradient_norms))
    if norms:
        np.testing.assert_array_equal(norms[0], norms[1])


def test_of_the_older_interface():
    opt = rmsjit.train.RMSPropOptimizer(0.1, track_norms=True)
    opt.apply_gradients([(PAIR[0], np.zeros(2))])
    assert opt.last_gradient_norm == 5.0
    assert copy.deepcopy(opt).last_gradient_norm is None


@pytest.mark.parametrize("name", ["global_clipnorm", "skip", "track", "transformers"])
def test_by_groups(name):
    settings, _ = READS[name]
    opt = rmsjit.RMSprop(**settings)
    first, second, third, still = (np.zeros(2) for _ in range(4))
    opt.add_group([second, third], lr_multiplier=0.5)
    frozen = opt.add_group([still], frozen=True)
    opt.add_group([np.zeros(3)])
    assert opt.last_gradient_norms is None
    gradients = [np.array([3.0, 4.0]), np.array([0.0, 5.0]), np.array([12.0, 0.0]), np.full(2, 9.0)]
    pairs = list(zip(gradients, [first, second, third, still], strict=True))
    opt.apply_gradients(pairs)
    assert opt.last_gradient_norms == pytest.approx((5.0, 13.0, 0.0, 0.0))
    assert opt.last_gradient_norm == pytest.approx(np.hypot(5, 13))
    frozen.frozen = False
    opt.apply_gradients(pairs[3:])
    assert opt.last_gradient_norms == pytest.approx((0.0, 0.0, 9 * np.sqrt(2), 0.0))


def test_by_groups_where_there_are_none():
    opt = rmsjit.RMSprop(track_norms=True)
    opt.apply_gradients([(PAIR[0], np.zeros(2))])
    assert opt.last_gradient_norms == (5.0,) == (opt.last_gradient_norm,)


@pytest.mark.parametrize("fault", ["rate", "gradient"])
def test_an_error_leaves_the_norms_of_the_last_step(fault):
    w, b = np.ones(2), np.ones(2)
    rates = iter([0.1, "none"])
    opt = rmsjit.RMSprop(lambda: next(rates), nonfinite="raise", track_norms=True)
    opt.add_group([b], lr_multiplier=0.5)
    opt.apply_gradients([(np.array([3.0, 4.0]), w), (np.zeros(2), b)])
    before = opt.last_gradient_norm, opt.last_gradient_norms
    assert before[0] == 5.0
    gradient = np.full(2, np.nan if fault == "gradient" else 7.0)
    with pytest.raises((TypeError, FloatingPointError)):
        opt.apply_gradients([(gradient, w), (gradient, b)])
    assert (opt.last_gradient_norm, opt.last_gradient_norms) == before
