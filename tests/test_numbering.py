"""The numbers of variables, on which random bits depend, as processes agree on them."""

import numpy as np
import pytest

import rmsjit
from rmsjit.state.numbering import agree_on, forget_numbers, numbers_of

pytest.importorskip("ml_dtypes")


def optimizer(**settings):
    return rmsjit.RMSprop(0.125, momentum=0.5, state_dtype="bfloat16", seed=3, **settings)


def built(*sizes):
    """A store with slots of variables of these sizes, and the keys of the variables."""
    opt, variables = optimizer(), [np.zeros(size, np.float32) for size in sizes]
    opt.build(variables)
    store = opt._store
    return store, [store.find(variable).key for variable in variables]


def test_numbers_follow_the_order_of_slots():
    store, keys = built(1, 2, 3)
    later = (0, np.dtype(np.float32), 7)
    assert numbers_of(store, [later, keys[1]]) == {
        **dict(zip(keys, range(3), strict=True)),
        later: 3,
    }


@pytest.mark.parametrize(
    ("agreed", "expected"),
    [({2: 0}, [1, 2, 0]), ({0: 5}, [5, 0, 1]), ({0: 1, 1: 2, 2: 0}, [1, 2, 0])],
)
def test_what_was_agreed_on_is_kept(agreed, expected):
    store, keys = built(1, 2, 3)
    agree_on(store, {keys[k]: number for k, number in agreed.items()})
    assert [numbers_of(store)[key] for key in keys] == expected
    forget_numbers(store)
    assert [numbers_of(store)[key] for key in keys] == [0, 1, 2]


def test_an_agreement_makes_new_plans_only_if_it_changes_a_number():
    store, keys = built(1)
    before = store.epoch[0]
    agree_on(store, {keys[0]: 4})
    assert store.epoch[0] == before + 1
    agree_on(store, {keys[0]: 4})
    assert store.epoch[0] == before + 1


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_parts_have_the_random_bits_of_the_whole(rounding):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(1000), rng.standard_normal((4, 1000))
    dtype = np.float16 if rounding == "stochastic" else np.float32
    whole, other = start.astype(dtype), np.ones(3, dtype)
    opt = optimizer(rounding=rounding)
    opt.build([other])  # so that the number is 1
    for gradient in gradients:
        opt.apply_gradients([(gradient.astype(dtype), whole)])
    for part in (slice(0, 616), slice(616, 1000)):
        own, piece = optimizer(rounding=rounding), start[part].astype(dtype)
        own.build([piece])
        entry = own._store.find(piece)
        entry.number, entry.first = 1, part.start
        for gradient in gradients:
            own.apply_gradients([(gradient[part].astype(dtype), piece)])
        assert piece.tobytes() == whole[part].tobytes()
        for slot in ("rms", "momentum"):
            wanted = opt.get_slot(whole, slot).numpy()[part]
            assert own.get_slot(piece, slot).numpy().tobytes() == wanted.tobytes()
