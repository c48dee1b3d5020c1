"""The moving average of the weights: `use_ema`, as in Keras 3."""

import copy
import pickle

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.dtypes import dtype_named

FORMS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"momentum": 0.9, "centered": True},
    "clipped": {"clipvalue": 0.4},
    "normed": {"clipnorm": 0.5},
    "clip_weights": {"form": rmsjit.Form(clip_weights=True), "clip_weights": 0.5},
}
CASES = [*((name, "float32") for name in FORMS), ("plain", "float64"), ("momentum", "complex64")]
STEPS = 7


def gradients(shape, dtype, steps=STEPS):
    rng = np.random.default_rng(7)
    return [rng.normal(size=shape).astype(dtype) for _ in range(steps)]


def start(shape, dtype):
    return np.random.default_rng(3).normal(size=shape).astype(dtype)


def following(average, weights, step, momentum):
    """The next average by the formula of Keras 3, in the dtype of the weights."""
    number = weights.real.dtype.type
    factor = number(momentum) * number(step > 0)
    return factor * average + (number(1) - factor) * weights


def averaging(ema=0.9, frequency=None, **settings):
    return rmsjit.RMSprop(
        0.05, use_ema=True, ema_momentum=ema, ema_overwrite_frequency=frequency, **settings
    )


@pytest.mark.parametrize("frequency", [None, 1, 3])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_average_follows_the_weights(name, dtype, frequency):
    w, plain, average = (start((5, 3), dtype) for _ in range(3))
    opt, other = averaging(frequency=frequency, **FORMS[name]), rmsjit.RMSprop(0.05, **FORMS[name])
    for step, g in enumerate(gradients(w.shape, dtype)):
        opt.apply_gradients([(g, w)])
        other.apply_gradients([(g, plain)])
        average = following(average, plain, step, 0.9)
        if frequency and (step + 1) % frequency == 0:
            plain[...] = average
        np.testing.assert_array_equal(w, plain)
        np.testing.assert_array_equal(opt.get_slot(w, "average").numpy(), average)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_rounded_once(dtype):
    dtype = dtype_named(dtype)
    w = start((40,), dtype)
    opt = averaging()
    for step, g in enumerate(gradients(w.shape, dtype)):
        before = opt.get_slot(w, "average").numpy().astype("f4") if step else w.astype("f4")
        opt.apply_gradients([(g, w)])
        expected = following(before, w.astype("f4"), step, 0.9).astype(dtype)
        got = opt.get_slot(w, "average").numpy()
        # The new weight enters before it is rounded, so a tie may go the other way.
        np.testing.assert_allclose(got.astype("f4"), expected.astype("f4"), rtol=2**-7)


def test_an_average_may_be_wider_than_its_variable():
    slots = (rmsjit.Slot("rms"), rmsjit.Slot("average", start="variable", dtype="float32"))
    opt, w = rmsjit.RMSprop(0.01, form=rmsjit.Form(slots)), np.ones(4, np.float16)
    opt.build([w])
    assert opt.use_ema
    assert opt.get_slot(w, "average").dtype == np.float32
    assert rmsjit.RMSprop.from_config(opt.get_config()).form == opt.form


@pytest.mark.parametrize("layout", ["F", "reversed", "strided"])
def test_layouts(layout):
    memory = start((6, 8), "float64")
    views = {"F": np.asfortranarray(memory), "reversed": memory[::-1], "strided": memory[:, ::2]}
    w = views[layout]
    plain = np.ascontiguousarray(w)
    opt, other = averaging(), averaging()
    for g in gradients(w.shape, w.dtype):
        opt.apply_gradients([(g, w)])
        other.apply_gradients([(g, plain)])
    averages = opt.get_slot(w, "average").numpy(), other.get_slot(plain, "average").numpy()
    np.testing.assert_array_equal(*averages)


def test_threads_give_the_same_bits(always_parallel):
    results = []
    for threads in (1, 3):
        w, opt = start((5000,), "float32"), averaging(num_threads=threads, frequency=2)
        for g in gradients(w.shape, w.dtype, 4):
            opt.apply_gradients([(g, w)])
        results.append((w, opt.get_slot(w, "average").numpy()))
    np.testing.assert_array_equal(results[0], results[1])
    assert any(always_parallel)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rows_that_are_not_named_keep_their_average(momentum):
    table = start((6, 3), "float32")
    first, average = table.copy(), table.copy()
    opt = rmsjit.RMSprop(0.05, momentum=momentum, use_ema=True, ema_momentum=0.5)
    for step, rows in enumerate([[1, 4, 1], [4], [0, 1]]):
        values = np.ones((len(rows), 3), np.float32)
        opt.apply_gradients([(rmsjit.IndexedSlices(values, rows), table)])
        named = sorted(set(rows))
        average[named] = following(average[named], table[named], step, 0.5)
    np.testing.assert_array_equal(opt.get_slot(table, "average").numpy(), average)
    np.testing.assert_array_equal(opt.get_slot(table, "average").numpy()[5], first[5])


def test_exact_is_refused():
    with pytest.raises(ValueError, match="average of the weights depends on every step"):
        rmsjit.RMSprop(use_ema=True, sparse="exact")


def test_a_variable_that_comes_later_starts_from_its_own_value():
    w, late, opt = np.ones(2), np.full(2, 5.0), averaging(ema=0.5)
    opt.apply_gradients([(np.ones(2), w)])
    opt.apply_gradients([(np.ones(2), w), (np.ones(2), late)])
    expected = 0.5 * 5.0 + 0.5 * late
    np.testing.assert_array_equal(opt.get_slot(late, "average").numpy(), expected)


def test_a_skipped_step_leaves_the_average():
    w, opt = np.ones(2), averaging(nonfinite="skip")
    for g in (1.0, 2.0):
        opt.apply_gradients([(np.full(2, g), w)])
    before = opt.get_slot(w, "average").numpy().copy()
    opt.apply_gradients([(np.full(2, np.nan), w)])
    assert opt.skipped_steps == 1
    np.testing.assert_array_equal(opt.get_slot(w, "average").numpy(), before)


def test_the_average_overwrites_before_constraints():
    w = rmsjit.Variable(np.array([2.0, -2.0]), constraint=lambda w: np.clip(w, -1, 1))
    opt = averaging(frequency=1)
    opt.apply_gradients([(np.ones(2), w)])
    assert abs(opt.get_slot(w, "average").numpy()).max() > 1
    np.testing.assert_array_equal(w.numpy(), np.clip(opt.get_slot(w, "average").numpy(), -1, 1))


# --- what is done with it -------------------------------------------------------------------


def trained(steps=4, **settings):
    w, opt = start((4, 2), "float64"), averaging(**settings)
    for g in gradients(w.shape, w.dtype, steps):
        opt.apply_gradients([(g, w)])
    return w, opt


def test_averaged_exchanges_in_place_and_back():
    w, opt = trained()
    own, average = w.copy(), opt.get_slot(w, "average").numpy().copy()
    assert not (own == average).all()
    with opt.averaged([w, w[...]]):  # two views of one variable
        np.testing.assert_array_equal(w, average)
    np.testing.assert_array_equal(w, own)
    np.testing.assert_array_equal(opt.get_slot(w, "average").numpy(), average)


def test_averaged_gives_back_after_an_exception():
    w, opt = trained()
    own = w.copy()
    with pytest.raises(ZeroDivisionError), opt.averaged([w]):
        raise ZeroDivisionError
    np.testing.assert_array_equal(w, own)


def test_finalize_variable_values():
    w, opt = trained()
    average = opt.get_slot(w, "average").numpy().copy()
    opt.finalize_variable_values([w])
    np.testing.assert_array_equal(w, average)


def test_finalize_does_nothing_without_an_average():
    w = np.ones(2)
    rmsjit.RMSprop().finalize_variable_values([w])
    np.testing.assert_array_equal(w, 1)


def test_nothing_is_changed_by_an_error():
    w, opt = trained()
    own, locked = w.copy(), w.view()
    locked.flags.writeable = False
    for variables, error in ([[w, np.ones(2)], KeyError], [[w, locked], ValueError]):
        with pytest.raises(error):
            opt.finalize_variable_values(variables)
        with pytest.raises(error), opt.averaged(variables):
            pass
        np.testing.assert_array_equal(w, own)
    with pytest.raises(ValueError, match="use_ema=True"), rmsjit.RMSprop().averaged([w]):
        pass


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ema_momentum": 1.5}, ValueError),
        ({"ema_momentum": "0.9"}, TypeError),
        ({"ema_overwrite_frequency": 0}, ValueError),
        ({"ema_overwrite_frequency": 2.0}, TypeError),
    ],
)
def test_wrong_arguments(arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=name):
        rmsjit.RMSprop(use_ema=True, **arguments)
    opt = averaging()
    with pytest.raises(error, match=name):
        setattr(opt, name, arguments[name])
    with pytest.raises(ValueError, match="use_ema=True"):
        setattr(rmsjit.RMSprop(), name, 1)


# --- copies and checkpoints -----------------------------------------------------------------


def continued(opt, w, steps=3):
    for g in gradients(w.shape, w.dtype, steps):
        opt.apply_gradients([(g, w)])
    return w.copy(), opt.get_slot(w, "average").numpy().copy()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue(copied):
    w, opt = trained(frequency=5)
    other, twin = copied((w, opt))
    np.testing.assert_array_equal(continued(opt, w), continued(twin, other))


def test_checkpoints_continue(tmp_path):
    w, opt = trained(frequency=5)
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    twin, named = rmsjit.load(tmp_path / "run.npz")
    assert (twin.use_ema, twin.ema_momentum, twin.ema_overwrite_frequency) == (True, 0.9, 5)
    np.testing.assert_array_equal(continued(opt, w), continued(twin, named["w"]))


def test_weights_contain_the_average():
    w, opt = trained()
    other, twin = w.copy(), averaging()
    twin.build([other])
    twin.set_weights(opt.get_weights())
    np.testing.assert_array_equal(continued(opt, w), continued(twin, other))


def test_momentum_may_come_later(tmp_path):
    w, opt = trained()
    opt.momentum = 0.9
    continued(opt, w)
    rmsjit.save(tmp_path / "run.npz", opt, {"w": w})
    twin, named = rmsjit.load(tmp_path / "run.npz")
    np.testing.assert_array_equal(continued(opt, w), continued(twin, named["w"]))


def test_new_rows_start_from_their_own_values():
    w, opt = trained()
    average = opt.get_slot(w, "average").numpy().copy()
    larger = np.concatenate([w, np.full((2, 2), 9.0)])
    opt.resize_rows(w, larger)
    expected = np.concatenate([average, larger[4:]])
    np.testing.assert_array_equal(opt.get_slot(larger, "average").numpy(), expected)


# --- Keras ----------------------------------------------------------------------------------


def test_the_configuration_of_keras_is_read():
    config = {"learning_rate": 0.01, "use_ema": True, "ema_momentum": 0.8, "clipnorm": None}
    config |= {"ema_overwrite_frequency": 5, "gradient_accumulation_steps": None}
    opt = rmsjit.forms.from_config(config | {"loss_scale_factor": None})
    assert (opt.use_ema, opt.ema_momentum, opt.ema_overwrite_frequency) == (True, 0.8, 5)
    with pytest.raises(ValueError, match=r"can't both be set.*RMSprop takes both"):
        rmsjit.forms.from_config(config | {"gradient_accumulation_steps": 2})


@pytest.mark.live
@pytest.mark.parametrize("frequency", [None, 4])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01}])
def test_20_steps_as_in_keras(settings, frequency):
    keras = pytest.importorskip("keras")
    w = start((30,), "float32")
    theirs = keras.Variable(w.copy())
    arguments = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": frequency}
    opt = rmsjit.forms.keras(0.01, **settings, **arguments)
    other = keras.optimizers.RMSprop(0.01, **settings, **arguments)
    other.build([theirs])
    for g in gradients(w.shape, w.dtype, 20):
        opt.apply_gradients([(g, w)])
        other.apply([keras.ops.convert_to_tensor(g)], [theirs])
        average = np.asarray(other._model_variables_moving_average[0])
        np.testing.assert_array_equal(w, np.asarray(theirs))
        np.testing.assert_array_equal(opt.get_slot(w, "average").numpy(), average)
    opt.finalize_variable_values([w])
    other.finalize_variable_values([theirs])
    np.testing.assert_array_equal(w, np.asarray(theirs))
