"""Slots in blocks of 8 bits."""

import contextlib
import copy
import json
import pickle

import autograd.numpy
import numpy as np
import pytest

import rmsjit
from reference import reference_sparse_step
from rmsjit import Form, IndexedSlices, RMSprop
from rmsjit.arrays.blocks import (
    BLOCK,
    FINE,
    LEAST_PACKED,
    SQUARES,
    WIDE,
    in_records_of,
    packed,
    part_of,
    record_length,
    record_of,
    rows_of_records,
    unpacked,
)
from rmsjit.arrays.layout import layout_of

SIZE = 5000  # some blocks, the last of which is not full
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"momentum": 0.9, "centered": True},
    "rms alone": {"momentum": 0.9, "state_dtype": {"rms": "8bit"}},
    "with bfloat16": {"momentum": 0.9, "state_dtype": {"rms": "8bit", "momentum": "bfloat16"}},
    "decay": {"weight_decay": 0.1},
    "norm": {"global_clipnorm": 1.0},
    "average": {"use_ema": True},
    "torch": {"form": Form.with_slots("rms", "momentum", learning_rate="outside"), "momentum": 0.9},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
every_map = pytest.mark.parametrize("meaning", [SQUARES, WIDE, FINE], ids=lambda one: one.name)
MAPS = {"rms": SQUARES, "mg": WIDE, "momentum": FINE}
RANGES = {SQUARES: 30, WIDE: 18, FINE: 11}  # powers of 2 below the largest number of a block


def normal(shape, seed, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def reduced(learning_rate=0.1, **settings):
    return RMSprop(learning_rate, **{"state_dtype": "8bit", **settings})


def slot(opt, variable, name="rms"):
    return opt.get_slot(variable, name).numpy()


# --- the format -----------------------------------------------------------------------------


def numbers_of(offset, meaning):
    """All numbers that a block with this offset can hold."""
    levels = np.arange(meaning.most + 1, dtype=np.int32) + offset
    sizes = (levels << meaning.dropped).view(np.float32)
    if not meaning.signed:
        return sizes
    sizes = sizes[1:] - sizes[0]
    return np.concatenate([-sizes[::-1], [0], sizes])


@every_map
@pytest.mark.parametrize("largest", [1.0, 3e38, 1e-3, 1e-30, 1e-40])
def test_each_number_becomes_the_nearest_that_the_block_can_hold(meaning, largest):
    smallest = -min(RANGES[meaning], 14)
    values = np.float32(largest) * np.exp2(np.linspace(0, smallest, BLOCK, dtype="f4"))
    if meaning.signed:
        values[1::2] *= -1
    records = packed(values, record_of(meaning))
    held = unpacked(records, BLOCK).astype("f8")
    candidates = numbers_of(records["offsets"].item(), meaning).astype("f8")
    best = np.abs(candidates - values[:, np.newaxis]).min(axis=1)
    np.testing.assert_allclose(np.abs(held - values), best, rtol=1e-6, atol=0)


def test_what_is_too_small_for_a_block():
    values = np.zeros(BLOCK, "f4")
    for meaning in (WIDE, FINE):
        values[:3] = 1.0, 2.0**-40, -(2.0 ** -(RANGES[meaning] + 3))
        record = record_of(meaning)
        assert unpacked(packed(values, record), 4).tolist() == [pytest.approx(1, 0.01), 0, 0, 0]
        values[2] = -(2.0 ** -RANGES[meaning])
        assert unpacked(packed(values, record), 4)[2] == pytest.approx(values[2], rel=1 / 3)
    plus = unpacked(packed(np.abs(values), record_of(SQUARES)), 4)
    assert plus[0] == 1
    assert plus[1] == plus[3]
    assert 0 < plus[1] < 2.0**-31


@every_map
@pytest.mark.parametrize("scale", [1e-44, 1e-39, *np.logspace(-1, 1, 9), 1e36])
def test_what_is_held_stays(meaning, scale):
    values = normal(1000, 0) if meaning.signed else normal(1000, 0) ** 2
    values *= np.float32(scale)
    held = unpacked(packed(values, record_of(meaning)), 1000)
    again = unpacked(packed(held, record_of(meaning)), 1000)
    np.testing.assert_array_equal(again, held)
    if scale < 1e-37:
        return  # numbers that are not normal have fewer bits
    assert np.isfinite(held).all()
    spacing = 1 / 32 if meaning is FINE else 1 / 16
    smallest = np.abs(values).max() / 2.0 ** RANGES[meaning]
    assert (np.abs(held - values) < spacing * np.abs(values) + smallest).all()


# --- steps ----------------------------------------------------------------------------------


def neighbours_hold(held, exact, offsets, meaning):
    """Whether each number is that above or below the exact one in its block."""
    for first, offset in zip(range(0, len(exact), BLOCK), offsets, strict=True):
        part, given = exact[first : first + BLOCK], held[first : first + BLOCK]
        numbers = numbers_of(offset, meaning)
        at = np.searchsorted(numbers, part, side="right")
        low, high = numbers[np.maximum(at - 1, 0)], numbers[np.minimum(at, len(numbers) - 1)]
        assert ((given == low) | (given == high)).all()
        assert np.abs(part).max() <= numbers.max()


@every_map
@pytest.mark.parametrize("length", [60, 256, 300])
def test_parts_of_whole_records_are_parts_of_the_numbers(length, meaning):
    size = 10 * length - 7  # the last record is not full
    values = np.abs(normal(size, 3))
    records = packed(values, record_of(meaning, length))
    whole = unpacked(records, size)
    for start, stop in ((0, 3 * length), (3 * length, size), (size, size), (0, 0)):
        part = part_of(records, start, stop)
        assert unpacked(part, stop - start).tobytes() == whole[start:stop].tobytes()
        assert part_of(values, start, stop).tobytes() == values[start:stop].tobytes()
    again = unpacked(in_records_of(records, size, 256), size)
    np.testing.assert_allclose(again, whole, rtol=1 / 16, atol=values.max() / 2 ** RANGES[meaning])
    assert in_records_of(values, size, 256) is values


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (np.zeros((100, 60)), 1),
        (np.zeros((1000, 5)), 256),
        (np.zeros((1000, 12)), 64),
        (np.zeros((2000, 3, 4))[:, :2], 32),
        (np.zeros(20_000)[::2], 256),
        (np.zeros(20_000)[::-2], 10_000),
        (np.zeros((60, 101)).T[1:], 100),
    ],
)
def test_rows_that_are_whole_records(array, rows):
    layout = layout_of(array)
    assert rows_of_records(array.shape, layout, record_length(array.shape, layout)) == rows


@every_setting
def test_a_step_is_that_of_float32_and_its_state_is_packed(settings):
    wide_settings = {k: v for k, v in settings.items() if k != "state_dtype"}
    wide, narrow = RMSprop(0.1, **wide_settings), reduced(**settings)
    v = normal(SIZE, 0)
    w = v.copy()
    for optimizer, variable in ((wide, w), (narrow, v)):
        optimizer.apply_gradients([(normal(SIZE, 1), variable)])
    for step in range(3):
        w[...] = v
        held = [np.asarray(weight).astype("f4") for weight in narrow.get_weights()]
        wide.set_weights([np.int64(step + 1), *held[1:]])
        gradient = normal(SIZE, 2 + step)
        narrow.apply_gradients([(gradient, v)])
        wide.apply_gradients([(gradient, w)])
        np.testing.assert_array_equal(v, w)
        for name in [n for n in ("rms", "mg") if n in narrow.get_slot_names()]:
            offsets = narrow._store.find(v).slots[name]["offsets"].ravel()
            neighbours_hold(slot(narrow, v, name), slot(wide, w, name), offsets, MAPS[name])


def test_memory_is_a_quarter():
    opt, v = reduced(momentum=0.9), np.ones(1 << 16, np.float32)
    opt.build([v])
    held = sum(array.nbytes for array in opt._store.find(v).slots.values())
    assert held == 2 * (len(v) + 4 * len(v) // BLOCK)


def test_small_variables_have_float32():
    opt, v = reduced(momentum=0.9), np.ones(LEAST_PACKED - 1, np.float32)
    wide, w = RMSprop(0.1, momentum=0.9), v.copy()
    for _ in range(3):
        opt.apply_gradients([(np.ones_like(v), v)])
        wide.apply_gradients([(np.ones_like(w), w)])
    np.testing.assert_array_equal(v, w)
    np.testing.assert_array_equal(slot(opt, v), slot(wide, w))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_variables_of_other_dtypes(dtype):
    from rmsjit.arrays.dtypes import dtype_named

    v, small = np.ones(SIZE, dtype_named(dtype)), np.ones(3, dtype_named(dtype))
    opt = reduced(0.001, master_weights=True)
    for _ in range(3):
        opt.apply_gradients([(np.ones_like(v), v), (np.ones_like(small), small)])
    assert abs(slot(opt, v).mean() - 0.271) < 1e-3
    assert abs(slot(opt, small).astype("f8").mean() - 0.271) < 1e-3


@pytest.mark.parametrize("name", ["momentum", "mg"])
def test_the_mean_of_what_is_rounded_is_exact(name):
    size = 200_000
    narrow, wide = (
        RMSprop(0.1, momentum=0.9, centered=True, state_dtype=dtype) for dtype in ("8bit", None)
    )
    v, w = np.zeros(size, np.float32), np.zeros(size, np.float32)
    gradient = np.full(size, 0.731, np.float32)
    narrow.apply_gradients([(gradient, v)])
    wide.apply_gradients([(gradient, w)])
    exact = slot(wide, w, name)[0]
    unit = 2.0 ** (np.floor(np.log2(exact)) - (3 if name == "mg" else 4))
    error = slot(narrow, v, name).astype("f8").mean() - exact
    assert abs(error) < 4 * unit / 2 / np.sqrt(size)


@pytest.mark.parametrize(("rho", "steps"), [(0.9, 100), (0.99, 400)])
def test_the_mean_step_is_that_of_float32(rho, steps):
    """A step divides by the root of rms, so that the mean of rms itself is another one."""
    opt, exact = reduced(1.0, rho=rho), RMSprop(1.0, rho=rho)
    v, w = np.zeros(64 * BLOCK, np.float32), np.zeros(64 * BLOCK, np.float32)
    ratios = []
    for step in range(steps):
        v[...] = w[...] = 0
        gradient = normal(v.shape, step)
        opt.apply_gradients([(gradient, v)])
        exact.apply_gradients([(gradient, w)])
        ratios.append(np.mean(v.astype("f8") / w))
    assert np.mean(ratios[steps // 2 :]) == pytest.approx(1, abs=1e-3)
    assert slot(opt, v).mean() > 1.002 * slot(exact, w).mean()


@pytest.mark.parametrize("name", ["rms", "momentum", "mg"])
def test_as_many_of_equal_elements_are_rounded_up_as_should_be(name):
    """In every block, up to one element; the random bits only choose which.

    But some blocks of rms are rounded by the larger one of two chances.
    """
    narrow, wide = (
        RMSprop(0.1, momentum=0.9, centered=True, state_dtype=dtype) for dtype in ("8bit", None)
    )
    blocks = 1000
    v, w = np.zeros(blocks * BLOCK, np.float32), np.zeros(blocks * BLOCK, np.float32)
    gradient = np.full(v.shape, 0.731, np.float32)
    narrow.apply_gradients([(gradient, v)])
    wide.apply_gradients([(gradient, w)])
    exact, held = float(slot(wide, w, name)[0]), slot(narrow, v, name).reshape(blocks, BLOCK)
    low, high = np.unique(held)
    share = (exact - low) / (high - low)
    raised = np.count_nonzero(held == high, axis=1)
    as_exact = np.abs(raised - BLOCK * share) <= 1
    as_larger = np.abs(raised - BLOCK * (1 - (1 - share) ** 2)) <= 1
    assert (as_exact | as_larger).all()
    assert np.mean(as_larger) == (pytest.approx(1 / 32, abs=0.015) if name == "rms" else 0)
    others = {row.tobytes() for row in held}  # in each block, as far as there are any
    assert len(others) > 100


@pytest.mark.parametrize(("name", "meaning"), MAPS.items())
def test_an_offset_follows_the_largest_value_at_a_distance(name, meaning):
    """It leaves room for growth, is kept while numbers fit, and is not much larger than needed."""
    opt = reduced(rho=0.5, momentum=0.5, centered=True)
    v = np.zeros(LEAST_PACKED, np.float32)
    sizes = np.exp2(np.cumsum(np.random.default_rng(0).normal(size=60)))
    kept = 0
    before = None
    for size in sizes.astype("f4"):
        opt.learning_rate = float(size)
        opt.apply_gradients([(size * normal(v.shape, kept), v)])
        records = opt._store.find(v).slots[name]
        largest = np.abs(records[meaning.name].astype(int)).max(axis=1)
        spare = meaning.most - largest
        assert (spare >= 0).all()
        assert (spare <= (2 if meaning.signed else 1) + 8).all()
        if before is not None:
            kept += np.count_nonzero(before == records["offsets"])
        before = records["offsets"].copy()
    assert 0 < kept < before.size * (len(sizes) - 1)


def test_an_offset_rarely_changes_while_gradients_are_alike():
    """Or each change would pack its block once more; other slots are packed late anyway."""
    opt, v = reduced(momentum=0.9, centered=True), np.zeros(100 * BLOCK, np.float32)
    seen = []
    for step in range(40):
        opt.apply_gradients([(normal(v.shape, step), v)])
        seen.append(opt._store.find(v).slots["rms"]["offsets"].copy())
    assert np.mean(np.diff(seen[20:], axis=0) == 0) > 0.9


def test_rms_does_not_stall():
    opt, v = reduced(0.0, rho=0.999), np.zeros(LEAST_PACKED, np.float32)
    for _ in range(3000):
        opt.apply_gradients([(np.ones_like(v), v)])
    assert slot(opt, v).astype("f8").mean() == pytest.approx(1 - 0.999**3000, rel=1e-2)


def test_bits_do_not_depend_on_threads_nor_on_the_pieces():
    ends = []
    for threads in (1, 2):
        opt = reduced(momentum=0.9, num_threads=threads, clipnorm=1.0)
        variables = [np.zeros(300_001, "f4"), np.zeros(7, "f4"), np.zeros(5000, "f4")]
        for step in range(3):
            opt.apply_gradients([(normal(v.shape, step), v) for v in variables])
        ends.append([v.tobytes() for v in variables])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("name", "settings"), [("momentum", {"momentum": 0.999}), ("mg", {"centered": True})]
)
def test_small_values_grow_beside_large_ones(name, settings):
    """A step adds much less than the spacing of the large values to them."""
    narrow, wide = (make(1e-3, rho=0.999, **settings) for make in (reduced, RMSprop))
    v, w = np.zeros(LEAST_PACKED, np.float32), np.zeros(LEAST_PACKED, np.float32)
    late = np.arange(len(v)) % 8 == 0
    for step in range(1500):
        gradient = normal(len(v), step) + 1
        gradient[late] = -0.01 if step < 500 and step % 2 else 0.01
        narrow.apply_gradients([(gradient, v)])
        wide.apply_gradients([(gradient, w)])
    held, exact = (slot(opt, u, name)[late].mean() for opt, u in ((narrow, v), (wide, w)))
    assert held == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("gradient", [1.83e19, 1.844e19])
def test_rms_stays_finite_if_it_can(gradient):
    opt, v = reduced(0.01, rho=0.5), np.zeros(LEAST_PACKED, np.float32)
    for _ in range(10):
        before = v.copy()
        opt.apply_gradients([(np.full_like(v, gradient), v)])
        assert np.isfinite(slot(opt, v)).all()
        assert np.abs(v - before).min() > 0.009


@pytest.mark.parametrize("rho", [0.9, 0.99])
def test_a_variance_is_not_less_than_rounding_can_tell(rho):
    """All gradients are alike, so it is nearly 0, and so would be what steps are divided by."""
    opt, v = reduced(1.0, centered=True, rho=rho), np.zeros(LEAST_PACKED, np.float32)
    for _ in range(300):
        v[...] = 0
        opt.apply_gradients([(np.ones_like(v), v)])
        root = np.sqrt(slot(opt, v))
        assert np.abs(v).max() <= 4 / root.min() * 1.1
    assert np.abs(v).mean() > 3


def test_a_gradient_that_is_not_finite_leaves_the_others_of_its_block_alone():
    opt, v = reduced(), np.zeros(LEAST_PACKED, "f4")
    gradient = np.ones_like(v)
    opt.apply_gradients([(gradient, v)])
    gradient[[3, 5, 7]] = np.inf, np.nan, 1e30
    opt.apply_gradients([(gradient, v)])
    others = np.delete(slot(opt, v), [3, 5, 7])
    assert others.max() < 0.25
    assert np.isfinite(np.delete(v, [3, 5])).all()


# --- state ----------------------------------------------------------------------------------


def test_a_slot_is_a_copy_that_can_be_assigned():
    opt, v = reduced(), np.asfortranarray(normal((80, 70), 0))
    opt.apply_gradients([(normal((80, 70), 1), v)])
    rms = opt.get_slot(v, "rms")
    assert rms.shape == v.shape
    assert rms.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        rms.array[...] = 0
    values = np.exp2(np.random.default_rng(0).integers(-6, 0, v.shape)).astype("f4")
    rms.assign(values)
    np.testing.assert_array_equal(slot(opt, v), values)
    np.testing.assert_array_equal(slot(opt, v.T), values.T)
    np.testing.assert_array_equal(slot(opt, v), rms.assign_add(0 * values).numpy())


READINGS = {
    "asarray": np.asarray,
    "float64": lambda rms: np.asarray(rms, np.float64),
    "ufunc": lambda rms: np.add(rms, 0),
    "function": lambda rms: np.concatenate([rms]),
    "operator": lambda rms: 1 * rms,
    "index": lambda rms: rms[:],
    "value": lambda rms: rms.value(),
    "list": lambda rms: np.array(list(rms)),
    "autograd": lambda rms: autograd.numpy.reshape(rms, rms.shape),
    "copy": copy.copy,
    "pickle": lambda rms: pickle.loads(pickle.dumps(rms)),
}


@pytest.mark.parametrize("taped", [False, True])
@pytest.mark.parametrize("reading", READINGS)
def test_a_slot_is_read_like_an_array(reading, taped):
    opt, v = reduced(), normal((80, 70), 0)
    opt.apply_gradients([(normal((80, 70), 1), v)])
    with rmsjit.GradientTape() if taped else contextlib.nullcontext():
        read = READINGS[reading](opt.get_slot(v, "rms"))
    np.testing.assert_array_equal(read, slot(opt, v))


def test_weights_are_set_to_nearest():
    opt, v = reduced(momentum=0.9), normal((60, 90), 0)
    opt.build([v])
    values = [np.int64(7), normal((60, 90), 1) ** 2, normal((60, 90), 2)]
    opt.set_weights(values)
    assert int(opt.iterations) == 7
    for given, held in zip(values[1:], opt.get_weights()[1:], strict=True):
        assert np.abs(held - given)[np.abs(given) > 0.01].max() < np.abs(given).max() / 16
    again = opt.get_weights()
    opt.set_weights(again)
    assert all(map(np.array_equal, again, opt.get_weights()))


def continued(how, opt, variable, folder):
    if how == "pickle":
        return pickle.loads(pickle.dumps((opt, variable)))
    if how == "copy":
        return copy.deepcopy((opt, variable))
    path = folder / f"run.{how}"
    rmsjit.save(path, opt, {"v": variable})
    new, other = reduced(momentum=0.9, seed=3), np.zeros_like(variable)
    rmsjit.load(path, new, {"v": other})
    return new, other


@pytest.mark.parametrize("how", ["pickle", "copy", "npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_run_goes_on_bit_for_bit(how, order, tmp_path):
    opt, v = reduced(momentum=0.9, seed=3), np.array(normal((90, 60), 0), order=order)
    for step in range(3):
        opt.apply_gradients([(normal((90, 60), step), v)])
    other, w = continued(how, opt, v, tmp_path)
    for step in range(3, 6):
        for each, variable in ((opt, v), (other, w)):
            each.apply_gradients([(normal((90, 60), step), variable)])
    np.testing.assert_array_equal(v, w)
    np.testing.assert_array_equal(slot(opt, v), slot(other, w))


def test_a_checkpoint_goes_into_another_order_of_axes(tmp_path):
    opt, v = reduced(momentum=0.9), normal((90, 60), 0)
    opt.apply_gradients([(normal((90, 60), 1), v)])
    rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
    new, w = reduced(momentum=0.9), np.asfortranarray(np.zeros_like(v))
    rmsjit.load(tmp_path / "run.npz", new, {"v": w})
    np.testing.assert_allclose(slot(new, w), slot(opt, v), rtol=1e-6)


def test_a_checkpoint_makes_the_optimizer(tmp_path):
    opt, v = reduced(momentum=0.9), normal(SIZE, 0)
    opt.apply_gradients([(normal(SIZE, 1), v)])
    rmsjit.save(tmp_path / "run.npz", opt, {"v": v})
    loaded, variables = rmsjit.load(tmp_path / "run.npz")
    assert loaded.state_dtype == {"rms": "8bit", "momentum": "8bit"}
    np.testing.assert_array_equal(slot(loaded, variables["v"]), slot(opt, v))
    assert (tmp_path / "run.npz").stat().st_size < 1.65 * v.nbytes
    with pytest.raises(ValueError, match="8bit"):
        rmsjit.load(tmp_path / "run.npz", RMSprop(0.1, momentum=0.9), {"v": v})


def test_the_configuration():
    opt = reduced(momentum=0.9)
    config = json.loads(json.dumps(opt.get_config()))
    assert RMSprop.from_config(config).form == opt.form


def test_a_momentum_that_is_set_later_is_packed_too():
    opt, v = reduced(), normal(SIZE, 0)
    opt.apply_gradients([(normal(SIZE, 1), v)])
    opt.momentum = 0.9
    opt.apply_gradients([(normal(SIZE, 2), v)])
    assert (slot(opt, v, "momentum") < 0).any()
    assert opt._store.find(v).slots["momentum"].dtype == record_of(FINE)


def test_rows_keep_their_slots():
    opt, table = reduced(), normal((80, 64), 0)
    opt.apply_gradients([(normal((80, 64), 1), table)])
    before = slot(opt, table)
    larger = np.concatenate([table, np.zeros((10, 64), "f4")])
    opt.resize_rows(table, larger)
    np.testing.assert_allclose(slot(opt, larger)[:80], before, rtol=1e-6)
    assert (slot(opt, larger)[80:] < before.max() * 2.0**-30).all()


# --- rows of tables -------------------------------------------------------------------------

ROWS = 120
WIDTHS = [64, 300, 512, 40]  # one block; 256 and 44; two blocks; one that is no multiple of 32
every_width = pytest.mark.parametrize("width", WIDTHS)


def all_rows(gradient):
    return IndexedSlices(gradient, np.arange(len(gradient)), gradient.shape)


@every_width
@every_setting
def test_a_gradient_of_all_rows_is_that_of_the_table(width, settings):
    """Bit for bit, whichever kernel reads and writes the blocks."""
    dense, sparse = reduced(**settings), reduced(**settings)
    v = normal((ROWS, width), 0)
    w = v.copy()
    for step in range(3):
        gradient = normal(v.shape, step + 1)
        dense.apply_gradients([(gradient, v)])
        sparse.apply_gradients([(all_rows(gradient), w)])
    np.testing.assert_array_equal(v, w)
    for one, other in zip(dense.get_weights(), sparse.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@every_width
def test_named_rows_take_the_step_of_the_reference_and_others_stay(width):
    opt, v, named = reduced(momentum=0.9), normal((ROWS, width), 0), np.array([7, 3, 7, 119])
    others = np.delete(np.arange(ROWS), named)
    opt.apply_gradients([(normal(v.shape, 1), v)])
    settings = {"lr": 0.1, "rho": 0.9, "momentum": 0.9, "eps": 1e-7, "eps_inside": True}
    for step in range(3):
        values = normal((len(named), width), 2 + step)
        before = {name: slot(opt, v, name) for name in ("rms", "momentum")}
        new, slots = reference_sparse_step(
            v, values, named, before, compute_dtype=np.float32, **settings
        )
        opt.apply_gradients([(IndexedSlices(values, named, v.shape), v)])
        np.testing.assert_allclose(v, new, rtol=1e-5, atol=1e-6)
        for name, exact in slots.items():
            held = slot(opt, v, name)
            np.testing.assert_array_equal(held[others], before[name][others])
            for row in set(named.tolist()):
                offsets = opt._store.find(v).slots[name]["offsets"][row]
                neighbours_hold(held[row], exact[row], offsets, MAPS[name])


def test_memory_of_rows():
    opt, v = reduced(momentum=0.9), np.zeros((1000, 300), np.float32)
    opt.apply_gradients([(IndexedSlices(np.ones((1, 300), "f4"), [2], v.shape), v)])
    held = sum(array.nbytes for array in opt._store.find(v).slots.values())
    assert held == 2 * 1000 * (300 + 2 * 4)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_in_a_wider_array(threads):
    """They are copied in and out; the norm of the dense gradient makes a step run backwards."""
    wide = np.zeros((500, 150), "f4")
    tables = [wide[:, 10:110], np.zeros((500, 100), "f4")]
    rms = []
    for table in tables:
        opt = reduced(global_clipnorm=1.0, num_threads=threads)
        opt.apply_gradients([(normal(table.shape, 0), table)])
        rows = IndexedSlices(normal((50, 100), 1), np.arange(50) * 7, table.shape)
        opt.apply_gradients([(rows, table)])
        rms.append(slot(opt, table))
    np.testing.assert_array_equal(*tables)
    np.testing.assert_allclose(*rms, rtol=1 / 8)  # random bits are those of the copy
    assert not wide[:, :10].any()
    assert not wide[:, 110:].any()


def test_bits_of_rows_do_not_depend_on_threads():
    ends = []
    for threads in (1, 2):
        opt, table = reduced(momentum=0.9, num_threads=threads), np.zeros((2000, 72), "f4")
        for step in range(3):
            indices = np.random.default_rng(step).integers(0, 2000, 3000)
            rows = IndexedSlices(normal((3000, 72), step), indices, table.shape)
            opt.apply_gradients([(rows, table)])
        ends.append(table)
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("how", ["pickle", "copy", "npz"])
def test_a_run_with_rows_goes_on_bit_for_bit(how, tmp_path):
    opt, v = reduced(momentum=0.9, seed=3), normal((ROWS, 300), 0)

    def gradient(step):
        indices = np.random.default_rng(step).integers(0, ROWS, 30)
        return IndexedSlices(normal((30, 300), step), indices, v.shape)

    for step in range(3):
        opt.apply_gradients([(gradient(step), v)])
    other, w = continued(how, opt, v, tmp_path)
    for step in range(3, 6):
        for each, variable in ((opt, v), (other, w)):
            each.apply_gradients([(gradient(step), variable)])
    np.testing.assert_array_equal(v, w)
    np.testing.assert_array_equal(slot(opt, v), slot(other, w))


@pytest.mark.parametrize("how", ["pickle", "copy", "npz"])
def test_blocks_stay_those_of_the_shape_that_was_seen_first(how, tmp_path):
    """Also beside another array of the same shape, whose blocks are its rows."""
    opt, flat, table = reduced(momentum=0.9, seed=3), normal(6400, 0), normal((100, 64), 1)
    opt.build([flat])
    v = flat.reshape(100, 64)
    opt.apply_gradients([(normal(v.shape, 2), v)])
    alone, w = continued(how, opt, v, tmp_path)
    for step in range(3):
        for variable in (table, v):
            opt.apply_gradients([(normal(v.shape, step), variable)])
    for step in range(3):
        if not step:
            alone.apply_gradients([(normal(v.shape, 9), normal(v.shape, 1))])
        alone.apply_gradients([(normal(v.shape, step), w)])
    held = {len(o._store.find(x).slots["rms"]) for o, x in ((opt, v), (alone, w))}
    assert held == {25}
    assert len(opt._store.find(table).slots["rms"]) == 100


# --- refusals -------------------------------------------------------------------------------


def test_small_tables_have_float32():
    opt, small = reduced(), normal((10, 4), 0)
    opt.apply_gradients([(IndexedSlices(normal((1, 4), 1), np.array([3]), (10, 4)), small)])
    assert slot(opt, small)[3].all()
    assert slot(opt, small).dtype == np.float32


@pytest.mark.parametrize(
    "table",
    [np.zeros((1000, 15), "f4"), np.zeros(5000, "f4"), np.zeros((100, 64), "f4", order="F")],
    ids=["narrow", "elements", "Fortran order"],
)
def test_rows_that_share_blocks_are_refused(table):
    opt = reduced()
    rows = IndexedSlices(np.ones((1, *table.shape[1:]), "f4"), np.array([3]), table.shape)
    with pytest.raises(ValueError, match=r"gradients\[0\].*|at least 16 elements.*bfloat16"):
        opt.apply_gradients([(rows, table)])
    assert not table.any()
    assert not opt.variables_seen
    opt.apply_gradients([(np.ones_like(table), table)])
    assert table.all()


def test_rows_of_a_variable_that_was_flat_are_refused():
    opt, flat = reduced(), np.zeros(6400, "f4")
    opt.build([flat])
    with pytest.raises(ValueError, match=r"sparse gradient .* for tables in C order"):
        opt.apply_gradients([(all_rows(np.ones((100, 64), "f4")), flat.reshape(100, 64))])
    opt.apply_gradients([(all_rows(np.ones((25, 256), "f4")), flat.reshape(25, 256))])
    assert flat.all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sparse": "exact"}, ValueError, "stochastic rounding depends on every step"),
        (
            {"state_dtype": "4bit"},
            ValueError,
            "one of bfloat16, 8bit, float32, float64, got '4bit'",
        ),
    ],
)
def test_wrong_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        reduced(**settings)
