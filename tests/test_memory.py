"""A variable is its memory: views, layouts, overlaps, lifetimes."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import rmsjit
from pairs import every_pair
from reference import reference_step
from strategies import (
    BOTH,
    DTYPES,
    KERAS,
    assert_close,
    assert_is_step,
    checked_step,
    computing,
    random_array,
    run_python,
    same_bits,
    seeds,
    slots_of,
    state_of,
)

PLAIN = KERAS[0]


def address(array):
    return np.asarray(array).__array_interface__["data"][0]


# --- Views -----------------------------------------------------------------------------------

VIEWS = {
    "itself": lambda W: W,
    "[...]": lambda W: W[...],
    "[:]": lambda W: W[:],
    "reshape(-1)": lambda W: W.reshape(-1),
    "ravel": np.ravel,
    "reshape": lambda W: W.reshape(4, 1, 3),
    "T": lambda W: W.T,
    "transpose of reshape": lambda W: W.reshape(2, 3, 2).transpose(2, 0, 1),
    "new axis": lambda W: W[None, :, None],
    "flipped": lambda W: W[::-1, ::-1],
    "view": lambda W: W.view(),
    "subclass": lambda W: W.view(np.recarray),
    "Variable": rmsjit.Variable,
    "array of a Variable": lambda W: np.asarray(rmsjit.Variable(W)),
    "Variable of a view": lambda W: rmsjit.Variable(W.T),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("first", ["itself", "T", "Variable", "flipped"])
def test_any_view_of_the_memory_is_the_same_variable(first, view):
    W = np.arange(12.0).reshape(3, 4)
    expected, gradient = W.copy(), np.arange(1.0, 13.0).reshape(3, 4)
    optimizer, plain = BOTH.optimizer(), BOTH.optimizer()
    for name in (first, view, first, view):
        optimizer.apply_gradients([(np.array(VIEWS[name](gradient)), VIEWS[name](W))])
        plain.apply_gradients([(gradient, expected)])
        assert same_bits(W, expected)
    assert len(optimizer.weights) == 1 + len(BOTH.slots)
    for slot in BOTH.slots:
        got, wanted = (optimizer.get_slot(VIEWS[name](W), slot) for name in (view, first))
        assert got.shape == VIEWS[view](W).shape
        assert np.shares_memory(got.array, wanted.array)
        assert same_bits(got, VIEWS[view](plain.get_slot(expected, slot).array))


def test_state_survives_a_new_view_in_every_step():
    W, expected = np.ones((3, 4)), np.ones((3, 4))
    optimizer, plain = BOTH.optimizer(), BOTH.optimizer()
    for step in range(50):
        gradient = np.full((3, 4), 1.0 + step)
        optimizer.apply_gradients([(gradient, W[...])])
        plain.apply_gradients([(gradient, expected)])
    assert same_bits(W, expected)
    assert len(optimizer.weights) == 1 + len(BOTH.slots)


def test_parts_of_one_array_are_variables_of_their_own():
    """The usual flat parameter vector, cut into layers."""
    flat, expected = np.ones(20), np.ones(20)
    layers = [flat[:6].reshape(2, 3), flat[6:8], flat[8:].reshape(3, 4)]
    gradient = np.linspace(-1, 1, 20)
    optimizer, plain = BOTH.optimizer(), BOTH.optimizer()
    for _ in range(3):
        optimizer.apply_gradients(
            [(gradient[:6].reshape(2, 3), layers[0])]
            + [(gradient[6:8], layers[1]), (gradient[8:].reshape(3, 4), layers[2])]
        )
        plain.apply_gradients([(gradient, expected)])
    assert same_bits(flat, expected)


def test_a_scalar_and_its_views():
    v = np.array(2.0)
    optimizer = BOTH.optimizer()
    for view in (v, v[...], v.reshape(1), v.reshape(1, 1), rmsjit.Variable(v)):
        optimizer.apply_gradients([(np.ones(np.shape(view)), view)])
    assert len(optimizer.weights) == 1 + len(BOTH.slots)
    assert optimizer.get_slot(v, "rms").shape == ()


# --- Layouts ---------------------------------------------------------------------------------


def unaligned(dtype, shape):
    memory = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 1, np.uint8)
    return memory[1:].view(dtype).reshape(shape)


LAYOUTS = {
    "C": lambda dtype: np.zeros((3, 4), dtype),
    "F": lambda dtype: np.zeros((3, 4), dtype, order="F"),
    "permuted": lambda dtype: np.zeros((2, 3, 4), dtype).transpose(1, 2, 0),
    "permuted, not dense": lambda dtype: np.zeros((2, 6, 4), dtype)[:, ::2].transpose(2, 0, 1),
    "negative": lambda dtype: np.zeros((3, 4), dtype)[::-1, ::-1],
    "negative rows": lambda dtype: np.zeros((3, 4), dtype)[::-1],
    "negative columns of F": lambda dtype: np.zeros((3, 4), dtype, order="F")[:, ::-1],
    "columns": lambda dtype: np.zeros((3, 10), dtype)[:, 2:6],
    "every other column": lambda dtype: np.zeros((3, 8), dtype)[:, ::2],
    "one column": lambda dtype: np.zeros((5, 8), dtype)[:, 3],
    "strided": lambda dtype: np.zeros(40, dtype)[::3],
    "strided back": lambda dtype: np.zeros(40, dtype)[35:5:-3],
    "0-d": lambda dtype: np.zeros((), dtype),
    "0-d inside": lambda dtype: np.zeros(5, dtype)[2:3].reshape(()),
    "length 1": lambda dtype: np.zeros((1, 7, 1), dtype),
    "length 1, not dense": lambda dtype: np.zeros((5, 7, 5), dtype)[2:3, ::2, 1:2],
    "empty": lambda dtype: np.zeros(0, dtype),
    "empty 2-d": lambda dtype: np.zeros((0, 3), dtype),
    "empty part": lambda dtype: np.zeros((4, 3), dtype)[2:2],
    "unaligned": lambda dtype: unaligned(dtype, (3, 4)),
    "unaligned F": lambda dtype: unaligned(dtype, (4, 3)).T,
    "subclass": lambda dtype: np.zeros((3, 4), dtype).view(np.recarray),
}


@every_pair(layout=LAYOUTS, dtype=["float16", "float32", "complex128"], form=[PLAIN, BOTH])
def test_every_layout_of_variable_and_gradient(form, dtype, layout):
    rng = np.random.default_rng(0)
    variable = LAYOUTS[layout](dtype)
    variable[...] = random_array(rng, variable.shape, dtype, 1)
    outside = outside_of(variable)
    optimizer = form.optimizer()
    for order in ("same", "C", "F", "C"):
        gradient = LAYOUTS[layout](dtype) if order == "same" else variable.copy(order)
        gradient[...] = random_array(rng, variable.shape, dtype, 1)
        checked_step(form, optimizer, [(gradient, variable)])
        assert optimizer.get_slot(variable, "rms").shape == variable.shape
    assert outside_of(variable) == outside


def outside_of(variable):
    """The bytes of the array that `variable` is a part of, but for its own."""
    owner = variable
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    before = variable.copy()
    variable[...] = 0
    others = owner.tobytes()
    variable[...] = before
    return others


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_clipping(layout):
    """A norm reads the same elements, however they lie."""
    rng = np.random.default_rng(0)
    variable, gradient = LAYOUTS[layout]("float64"), LAYOUTS[layout]("float64")
    variable[...] = random_array(rng, variable.shape, "float64", 1)
    gradient[...] = random_array(rng, variable.shape, "float64", 1)
    expected = variable.copy()
    for arguments in ({"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.5}):
        PLAIN.optimizer(**arguments).apply_gradients([(gradient, variable)])
        PLAIN.optimizer(**arguments).apply_gradients([(gradient.copy(), expected)])
        np.testing.assert_allclose(variable, expected, rtol=1e-14)


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_memmap(mode, tmp_path):
    path = tmp_path / "weights"
    np.arange(12, dtype="float32").tofile(path)
    W = np.memmap(path, "float32", mode, shape=(3, 4))
    expected = np.array(W)
    optimizer, plain = BOTH.optimizer(), BOTH.optimizer()
    for _ in range(3):
        optimizer.apply_gradients([(np.ones((3, 4), "float32"), W)])
        plain.apply_gradients([(np.ones((3, 4), "float32"), expected)])
    assert same_bits(np.array(W), expected)
    W.flush()
    on_disk = np.fromfile(path, "float32").reshape(3, 4)
    assert same_bits(on_disk, expected) == (mode != "c")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "bfloat16"])
def test_a_gradient_of_the_other_byte_order(dtype):
    rng = np.random.default_rng(0)
    variable, optimizer = random_array(rng, 9, dtype, 1), BOTH.optimizer()
    expected, plain = variable.copy(), BOTH.optimizer()
    for _ in range(3):
        gradient = random_array(rng, 9, dtype, 1)
        swapped = gradient.astype(gradient.dtype.newbyteorder())
        optimizer.apply_gradients([(swapped, variable)])
        plain.apply_gradients([(gradient, expected)])
        assert same_bits(variable, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
def test_slots_lie_like_their_variable(dtype, offset):
    """As far from a cache line, so that no vector of one straddles lines while another does not."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros(100 * itemsize + 64, np.uint8)
    start = -address(memory) % 64 + offset * itemsize
    variable = memory[start : start + 50 * itemsize].view(dtype)
    optimizer = BOTH.optimizer()
    optimizer.build([variable])
    for name in BOTH.slots:
        assert (address(optimizer.get_slot(variable, name)) - address(variable)) % 64 == 0


# --- Gradients that lie in memory which the step writes --------------------------------------


def read_before_the_step(optimizer, pairs):
    """Take a step, and compare it with the reference's on what there was before."""
    before = [(np.array(v), np.array(g), slots_of(BOTH, optimizer, v)) for g, v in pairs]
    optimizer.apply_gradients(pairs)
    for (old, gradient, slots), (_, variable) in zip(before, pairs, strict=True):
        after = variable, slots_of(BOTH, optimizer, variable)
        assert_is_step(old, gradient, slots, after, BOTH.rule)


OVERLAPPING = {
    "its own variable": lambda a, b, slot: [(a, a), (b, b)],
    "a view of its own variable": lambda a, b, slot: [(a[...], a), (b, b)],
    "its own variable, flipped": lambda a, b, slot: [(a[::-1], a), (b, b)],
    "another variable": lambda a, b, slot: [(b, a), (a, b)],
    "another variable, later": lambda a, b, slot: [(np.ones_like(a), a), (a, b)],
    "another variable, earlier": lambda a, b, slot: [(b, a), (np.ones_like(b), b)],
    "its own slot": lambda a, b, slot: [(slot(a, "rms"), a), (slot(b, "mg"), b)],
    "another's slot": lambda a, b, slot: [(slot(b, "momentum"), a), (slot(a, "rms"), b)],
    "one array for both": lambda a, b, slot: [(one := np.linspace(-1, 1, len(a)), a), (one, b)],
    "zero stride": lambda a, b, slot: [(np.broadcast_to(b[:1], a.shape), a), (a, b)],
}


@pytest.mark.parametrize("case", OVERLAPPING)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_gradients_are_read_before_anything_is_written(case, size):
    rng = np.random.default_rng(0)
    a, b = (random_array(rng, size, "float64", 0) for _ in range(2))
    optimizer = BOTH.optimizer()
    optimizer.build([a, b])

    def slot(variable, name):
        return np.asarray(optimizer.get_slot(variable, name))

    for _ in range(3):
        read_before_the_step(optimizer, OVERLAPPING[case](a, b, slot))


@pytest.mark.parametrize("shift", [-9, -8, -1, 0, 1, 3, 8, 9, 100])
@pytest.mark.parametrize("step", [1, 2, -1])
def test_a_gradient_that_is_a_shifted_view_of_its_variable(shift, step):
    rng = np.random.default_rng(0)
    memory = random_array(rng, 400, "float64", 0)
    variable = memory[150:200]
    gradient = memory[150 + shift :][:: abs(step)][:50][:: np.sign(step)]
    assert len(gradient) == 50
    optimizer = BOTH.optimizer()
    for _ in range(3):
        read_before_the_step(optimizer, [(gradient, variable)])


def test_a_shifted_gradient_of_a_large_variable_on_threads():
    rng = np.random.default_rng(0)
    memory = random_array(rng, 200_001, "float64", 0)
    optimizer = BOTH.optimizer(num_threads=2)
    for _ in range(2):
        read_before_the_step(optimizer, [(memory[1:], memory[:-1])])


def test_the_same_variable_twice_with_its_own_memory_as_gradient():
    """Both gradients are the variable as it was before the call."""
    variable, expected = np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)
    optimizer, apart = BOTH.optimizer(), BOTH.optimizer()
    for _ in range(2):
        gradient = expected.copy()
        optimizer.apply_gradients([(variable, variable), (variable, variable)])
        apart.apply_gradients([(gradient, expected)])
        apart.apply_gradients([(gradient, expected)])
        assert same_bits(variable, expected)


# --- Overlapping variables -------------------------------------------------------------------

PARTIAL = {
    "shifted": lambda M: (M.reshape(-1)[:10], M.reshape(-1)[5:15]),
    "inside": lambda M: (M, M[1]),
    "rows": lambda M: (M[:2], M[1:]),
    "row and column": lambda M: (M[1], M[:, 2]),
    "columns": lambda M: (M[:, :3], M[:, 2:4]),
    "one element": lambda M: (M.reshape(-1)[:6], M.reshape(-1)[5:]),
    "strides that meet": lambda M: (M.reshape(-1)[::2], M.reshape(-1)[::3]),
    "0-d inside": lambda M: (M, M[1, 1:2].reshape(())),
    "other dtype": lambda M: (M, M.view("complex128")),
    "other dtype, as many": lambda M: (M.reshape(-1)[:6], M.reshape(-1).view("complex128")[:6]),
    "other dtype of a part": lambda M: (M, M.view("float32")[1]),
    "diagonal": lambda M: (M, np.lib.stride_tricks.as_strided(M, (3,), (M.strides[0] + 8,))),
}

APART = {
    "halves": lambda M: (M.reshape(-1)[:10], M.reshape(-1)[10:]),
    "interleaved columns": lambda M: (M[:, ::2], M[:, 1::2]),
    "blocks of columns": lambda M: (M[:, :3], M[:, 3:]),
    "interleaved elements": lambda M: (M.reshape(-1)[::2], M.reshape(-1)[1::2]),
    "diagonals": lambda M: (M.reshape(-1)[0:20:7], M.reshape(-1)[1:20:7]),
    "interleaved, flipped": lambda M: (M[:, ::2], M[:, ::-2]),
    "row and the rest": lambda M: (M[1], M[::2]),
    "empty inside": lambda M: (M, M[1:1]),
}


@every_pair(case=PARTIAL, swap=[False, True], calls=[1, 2])
def test_variables_that_overlap_in_part_are_refused(case, swap, calls):
    M, other = np.arange(24.0).reshape(4, 6), np.ones(3)
    one, two = PARTIAL[case](M)[:: -1 if swap else 1]
    optimizer = BOTH.optimizer()
    optimizer.apply_gradients([(np.ones(3), other)])
    if calls == 2:
        optimizer.apply_gradients([(np.ones_like(one), one)])
    pairs = [(np.ones_like(other), other), (np.ones_like(two), two)]
    where = r"variable 1 of shape .* earlier step|earlier step .* variable 1 of shape"
    if calls == 1:
        pairs.append((np.ones_like(one), one))
        where = r"variable [12] of shape .* variable [12] of shape"
    before = state_of(optimizer, [M, other])
    for _ in range(2):
        with pytest.raises(ValueError, match=where):
            optimizer.apply_gradients(pairs)
        assert state_of(optimizer, [M, other]) == before
    optimizer.apply_gradients([(np.ones(3), other)])


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("calls", [1, 2])
def test_variables_beside_each_other_are_not_an_overlap(case, calls):
    M = np.arange(24.0).reshape(4, 6)
    pair = APART[case](M)
    optimizer = BOTH.optimizer()
    for _ in range(2):
        pairs = [(np.full_like(v, 1 + k), v) for k, v in enumerate(pair)]
        for part in [pairs] if calls == 1 else [pairs[:1], pairs[1:]]:
            checked_step(BOTH, optimizer, part)


def test_columns_of_a_large_array_are_not_an_overlap():
    """Each found apart without a search of their elements."""
    M = np.zeros((100, 64, 12), "float32")
    heads = [M[:, :, k : k + 3] for k in range(0, 12, 3)]
    optimizer = BOTH.optimizer()
    for _ in range(2):
        checked_step(BOTH, optimizer, [(np.full_like(v, k), v) for k, v in enumerate(heads)])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((3, 4), (0, 8)), ((3, 4), (32, 0)), ((3,), (0,)), ((3, 4), (8, 8)), ((5, 4), (16, 8))],
)
def test_a_variable_whose_elements_share_memory_is_refused(shape, strides):
    memory = np.arange(100.0)
    variable = np.lib.stride_tricks.as_strided(memory, shape, strides)
    with pytest.raises(ValueError, match="variable 0 must have an element of its own"):
        rmsjit.RMSprop().apply_gradients([(np.ones(shape), variable)])
    np.testing.assert_array_equal(memory, np.arange(100.0))


# --- Lifetimes -------------------------------------------------------------------------------


def test_the_optimizer_keeps_variables_alive():
    """Or a new array at the same address would get an old one's slots."""
    optimizer = PLAIN.optimizer()
    seen = set()
    for step in range(30):
        W = np.ones(1000)
        assert address(W) not in seen
        seen.add(address(W))
        optimizer.apply_gradients([(np.ones(1000), W[...] if step % 2 else W)])
        np.testing.assert_allclose(optimizer.get_slot(W, "rms"), 0.1)
    assert len(optimizer.weights) == 31


def test_variables_are_freed_with_the_optimizer():
    W = rmsjit.Variable(np.ones(1000))
    optimizer = BOTH.optimizer(clipnorm=1.0)
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(1000), W)])
    dead = [weakref.ref(W.array), weakref.ref(W), weakref.ref(optimizer)]
    del W, optimizer
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3


def test_gradients_are_not_kept_alive():
    W, optimizer = np.ones(1000), PLAIN.optimizer()
    for kind in (np.ones, lambda n: np.ones(n, "float32")):
        gradient = kind(1000)
        optimizer.apply_gradients([(gradient, W)])
        dead = weakref.ref(gradient)
        del gradient
        gc.collect()
        assert dead() is None


@pytest.mark.parametrize("wrap", [lambda W: W, rmsjit.Variable, lambda W: W[...], lambda W: W[::2]])
def test_an_array_made_read_only_is_refused(wrap):
    W = np.ones(8)
    variable = wrap(W)
    array = np.asarray(variable)
    gradient, optimizer = np.ones_like(array), PLAIN.optimizer()
    for _ in range(2):
        optimizer.apply_gradients([(gradient, variable)])
    before = state_of(optimizer, [W])
    array.setflags(write=False)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"variable 0 .*must be writeable"):
            optimizer.apply_gradients([(gradient, variable)])
        assert state_of(optimizer, [W]) == before
    array.flags.writeable = W.flags.writeable = True
    checked_step(PLAIN, optimizer, [(gradient, variable)])


RESIZE = """
import numpy as np
import rmsjit

for before, after in [(1000, 100_000), (100, 10), (5_000_000, 10)]:
    for length in (before, after):
        W, optimizer = np.ones(before), rmsjit.RMSprop(0.01)
        for _ in range(3):
            optimizer.apply_gradients([(np.ones(before), W)])
        W.resize(after, refcheck=False)
        gradient = np.ones(length)
        try:
            for _ in range(3):
                optimizer.apply_gradients([(gradient, W)])
        except ValueError:
            continue
        assert length == after, "a gradient of the old length was taken"
        assert np.all(W[: min(before, after)] < 1)
"""


@pytest.mark.slow
def test_an_array_resized_in_place_crashes_nothing():
    """Even where it has not moved, and a plan knows its old length."""
    run_python(RESIZE)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize(("attribute", "value"), [("shape", (2, 3)), ("dtype", "float32")])
def test_an_array_that_was_changed_in_place_is_looked_at_anew(attribute, value):
    """Such assignments leave the object and its address as they were."""
    W, optimizer = np.ones(6), PLAIN.optimizer()
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(6), W)])
    setattr(W, attribute, value)
    before = W.tobytes()
    with pytest.raises(ValueError, match=r"shape \(|overlap"):
        optimizer.apply_gradients([(np.ones(6), W)])
    assert W.tobytes() == before


# --- Anything at all: right, or refused, but never a crash -----------------------------------

ELEMENTS = 48  # of the memory that variables and gradients are cut from
OTHER_DTYPES = ("float64", "float32", "float16", "int64", "bool", "complex64", "object", "U1")


KINDS = ["own"] * 12 + ["layout", "dtype", "list", "none", "memory", "memory", "slot"]
KINDS += ["shape", "text", "object"]  # never good


def cut_by(number):
    """The function that cuts one of many views out of any array of ELEMENTS."""
    number, start = divmod(number, ELEMENTS)
    number, step = divmod(number, 7)
    number, length = divmod(number, 6)
    number, shape = divmod(number, 5)
    step, length = [1, 1, 1, 2, 3, -1, -2][step], [6, 1, 4, 0, 8, 12][length]
    shape = [None, None, (2, -1), (-1, 1, 2), (1, -1)][shape]

    def cut(memory):
        view = memory[start::step][:length]
        if shape and len(view) > 1 and len(view) % 2 == 0:
            view = view.reshape(shape)
        return view.T if number % 2 else view

    return cut


class Twin:
    """The reference's idea of the memory and of all slots, by element numbers."""

    def __init__(self, form, memory):
        self.form, self.memory, self.slots = form, memory.copy(), {}
        self.numbers = np.arange(ELEMENTS)

    def refuses(self, pairs):
        """Whether a step must be refused; the pairs are (cut, gradient)."""
        known = {frozenset(numbers) for numbers in self.slots}
        for cut, gradient in pairs:
            variable = cut(self.memory)
            gradient = np.asarray(gradient)
            if gradient.dtype.kind in "OU" or gradient.shape != variable.shape:
                return True
            if not np.can_cast(gradient.dtype, variable.dtype, "same_kind"):
                return True
            known.add(frozenset(cut(self.numbers).ravel().tolist()))
        known = list(known)
        return any(
            one & two for k, one in enumerate(known) for two in known[:k]
        )  # different sets, since each is there once

    def step(self, pairs):
        rule = {**self.form.rule, "compute_dtype": computing(self.memory.dtype)}
        for cut, gradient in pairs:
            numbers = cut(self.numbers).ravel()
            order = np.argsort(numbers)
            key = tuple(numbers[order].tolist())
            where = numbers[order]
            flat = np.asarray(gradient).astype(self.memory.dtype).ravel()[order]
            slots = self.slots.get(key, self.form.start(self.memory[where]))
            self.memory[where], self.slots[key] = reference_step(
                self.memory[where], flat, slots, **rule
            )


def gradient_of(kind, variable, seed, memory, optimizer):
    """A gradient of a kind for a variable; not every kind is one."""
    values = np.random.default_rng(seed).integers(-8, 9, variable.shape) / 4
    gradient = np.asarray(values, variable.dtype)
    if kind == "layout":
        return gradient.T.copy().T if seed % 2 else np.repeat(gradient, 2, -1)[..., ::2]
    if kind == "slot":
        return optimizer.get_slot(variable, "rms") if seen(optimizer, variable) else gradient
    others = {
        "none": lambda: None,
        "text": lambda: "gradient",
        "list": values.tolist,
        "object": lambda: values.astype(object),
        "dtype": lambda: values.astype(OTHER_DTYPES[seed % len(OTHER_DTYPES)]),
        "shape": lambda: np.zeros((*variable.shape, 2)),
        "memory": lambda: cut_by(seed)(memory),
    }
    return others[kind]() if kind in others else gradient


def seen(optimizer, variable):
    try:
        return optimizer.get_slot(variable, "rms") is not None
    except KeyError:
        return False


def right_or_refused(form, dtype, shift, pool, steps):
    raw = np.zeros(ELEMENTS * 8 + 8, np.uint8)
    memory = raw[shift : shift + ELEMENTS * np.dtype(dtype).itemsize].view(dtype)
    memory[...] = np.arange(ELEMENTS) / 4 - 5
    optimizer, twin = form.optimizer(), Twin(form, memory)
    for draws in steps:
        cuts = [cut_by(pool[which]) for which, _, _ in draws]
        pairs = []
        for cut, (_, kind, seed) in zip(cuts, draws, strict=True):
            variable = cut(memory)
            gradient = gradient_of(kind, variable, seed, memory, optimizer)
            pairs.append((gradient, rmsjit.Variable(variable) if seed % 5 == 0 else variable))
        # Copies, since a gradient may lie in memory that the step changes.
        given = [(c, np.array(g)) for c, (g, _) in zip(cuts, pairs, strict=True) if g is not None]
        before = state_of(optimizer, [raw])
        error = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of gradients that are None
            try:
                optimizer.apply_gradients(pairs)
            except (TypeError, ValueError) as caught:
                error = caught
        event("taken" if error is None else f"refused: {type(error).__name__}")
        refused = (pairs and not given) or twin.refuses(given)
        assert bool(refused) == (error is not None), error
        if refused:
            assert state_of(optimizer, [raw]) == before
            continue
        old = twin.memory.copy()
        twin.step(given)
        # What is looked for is a wrong element, not a wrong rounding.
        assert_close(memory.copy(), twin.memory, old, ulps=64)
        twin.memory[...] = memory  # so that errors of rounding do not add up


anything = {
    "form": st.sampled_from(KERAS),
    "dtype": st.sampled_from(["float32", "float64", "float16"]),
    "shift": st.sampled_from([0, 4, 1]),
    "pool": st.tuples(seeds, seeds, seeds),
    "steps": st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KINDS), seeds), max_size=4),
        min_size=1,
        max_size=4,
    ),
}
fuzz = settings(suppress_health_check=[*HealthCheck])


@pytest.mark.slow
@settings(fuzz, max_examples=150)
@given(**anything)
def test_any_list_of_pairs_is_right_or_refused(form, dtype, shift, pool, steps):
    right_or_refused(form, dtype, shift, pool, steps)


@pytest.mark.long
@settings(fuzz, max_examples=20_000)
@given(**anything)
def test_very_many_lists_of_pairs_are_right_or_refused(form, dtype, shift, pool, steps):
    right_or_refused(form, dtype, shift, pool, steps)
