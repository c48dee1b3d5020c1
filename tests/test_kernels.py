"""The promises about compiled code: packed, cached, compiled once."""

import platform
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rmsjit
from pairs import every_pair
from rmsjit.arrays.dtypes import dtype_named, kinds_of, precision_of
from rmsjit.rule import presets
from rmsjit.runtime.flags import FLAGS
from rmsjit.steps.partition import backwards, cut_by_length, cut_evenly
from strategies import BOTH, COMPLEX, DTYPES, HALF, random_array, run_python
from test_kernel_results import public_loaders

x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly"
)


def assembly(name, *arguments):
    """What a function of `rmsjit.kernels.loader` would load, compiled here and now; its flags."""
    from numba import int64, njit

    from rmsjit.kernels import loader

    asked = []

    class AskedError(Exception):
        pass

    def note(name, key, make, arguments=1, flags=FLAGS):
        asked.append((make, arguments, flags))
        raise AskedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "compile_kernel", note)
        with pytest.raises(AskedError):
            getattr(loader, name).__wrapped__(*arguments)
    ((make, count, flags),) = asked
    dispatcher = njit(**flags)(make())
    signature = (int64,) * count
    dispatcher.compile(signature)
    return dispatcher.inspect_asm(signature), flags


def packed_loops(text, instruction):
    """The stretches between labels in which an instruction occurs."""
    blocks = re.split(r"^[.\w$]+:", text, flags=re.MULTILINE)
    return [block for block in blocks if re.search(rf"\b{instruction}\b", block)]


def assert_nothing_is_allocated(text):
    """Nor any reference counted; what a launch frees of its own is no matter of the kernel's."""
    assert not re.search(r"NRT_(?!Free\b)", text), set(re.findall(r"NRT_\w+", text))


def of_form(form, dtype):
    """The first arguments of the loaders of the rule."""
    slots = tuple(slot.dtype for slot in form.arithmetic.slots)
    return form.arithmetic, kinds_of(precision_of(np.dtype(dtype)), slots)


def preset(centered, momentum):
    return presets.keras_legacy(centered=centered, momentum=momentum)


PRESETS = [preset(centered, momentum) for centered in (False, True) for momentum in (False, True)]
FULL = PRESETS[-1]
OTHERS = [
    presets.tf1(centered=True),
    rmsjit.Form.with_slots(
        "rms",
        "mg",
        "momentum",
        learning_rate="outside",
        nesterov=True,
        bias_correction=True,
        weight_decay="coupled",
        clip_weights=True,
        rms_average="difference",
    ),
    rmsjit.Form.with_slots("rms", quotient="reciprocal", weight_decay="decoupled"),
    rmsjit.Form.with_slots("rms", quotient="rate_over", weight_decay="subtracted", square="first"),
]
slow = pytest.mark.slow
OF_THE_RULE = [
    *(("update_dense", form, "float32", False) for form in OTHERS),
    ("update_rows", FULL, "float32", True),
    ("update_rows", FULL, "float32", False),
    ("update_rows", FULL, "float64", True),
]


@slow
@x86
@every_pair(form=PRESETS, dtype=["float32", "float64"], clipped=[False, True])
def test_roots_of_each_form_are_packed_and_nothing_is_allocated(form, dtype, clipped):
    assert_roots_are_packed("update_dense", form, dtype, clipped)


@slow
@x86
@pytest.mark.parametrize(("name", "form", "dtype", "flag"), OF_THE_RULE)
def test_roots_are_packed_and_nothing_is_allocated(name, form, dtype, flag):
    assert_roots_are_packed(name, form, dtype, flag)


def assert_roots_are_packed(name, form, dtype, flag):
    """And nothing is allocated, nor converted to another width."""
    text, _ = assembly(name, *of_form(form, dtype), flag)
    packed, other = ("v?sqrtps", "v?sqrtpd") if dtype == "float32" else ("v?sqrtpd", "v?sqrtps")
    loops = packed_loops(text, packed)
    assert loops
    conversions = r"v?cvt(?:ps2pd|pd2ps|ss2sd|sd2ss)"
    assert not packed_loops(text, other), "a number of another width has got into the loop"
    assert not any(re.search(rf"\b{conversions}\b", loop) for loop in loops)
    assert not any(re.search(r"\bcall|\bprefetch", loop) for loop in loops)
    assert re.search(r"\bprefetch", text), "memory is fetched between runs"
    assert_nothing_is_allocated(text)


@slow
@x86
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_catch_up_in_packed_loops(dtype):
    """The powers are in double precision; the loop has only what is rounded to its own."""
    text, _ = assembly("catch_up_rows", *of_form(FULL, dtype))
    packed = "v?mulps" if dtype == "float32" else "v?mulpd"
    loops = packed_loops(text, packed)
    assert loops
    assert not any(re.search(r"\bcall|\bv?cvtsd2ss\b|\bv?cvtss2sd\b", loop) for loop in loops)
    if dtype == "float32":
        assert not packed_loops(text, "v?mulpd")
    assert_nothing_is_allocated(text)


@x86
@slow
@pytest.mark.parametrize("dtype", [*HALF, "float32", "float64"])
def test_squares_are_packed(dtype):
    precision = precision_of(np.dtype(dtype))
    text, _ = assembly("sums_of_squares", precision.real, precision.computing)
    loops = packed_loops(text, "v?mulpd|v?fmadd\\d+pd")
    assert loops
    assert_nothing_is_allocated(text)


@x86
@slow
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_additions_are_packed(real):
    text, _ = assembly("add_pieces", real)
    kind = "ps" if real == "float32" else "pd"
    assert packed_loops(text, f"v?add{kind}")
    assert packed_loops(text, f"v?div{kind}")
    assert_nothing_is_allocated(text)


CONVERSIONS = {
    ("float64", "float32"): "v?cvtpd2psy?",
    ("float32", "float64"): "v?cvtps2pd",
    ("float32", "int16"): "v?paddd",
}


@x86
@slow
@pytest.mark.parametrize("names", CONVERSIONS, ids="-".join)
def test_conversions_are_packed(names):
    text, _ = assembly("convert", *names)
    assert packed_loops(text, CONVERSIONS[names])
    assert_nothing_is_allocated(text)


READING_OBJECTS = ["read_pairs", "follow", "read_tensors", "same_items", "same_values", "has_item"]
SHIPPED_ONCE = [
    "tick",
    "reset",
    "copy_strided",
    "copy_parts",
    "first_outside",
    "find_rows",
    "run_act",
    "run_on_threads",
    "meets_written",
    "touch_pages",
    *READING_OBJECTS,
]


@x86
@slow
@pytest.mark.parametrize("name", SHIPPED_ONCE)
def test_other_kernels_allocate_nothing(name):
    """Only the kernels that read object headers hold the GIL, which keeps them as they are."""
    text, flags = assembly(name)
    assert flags["nogil"] == (name not in READING_OBJECTS)
    assert_nothing_is_allocated(text)


def test_no_shipped_kernel_is_left_out():
    of_types = {
        "update_dense",
        "update_rows",
        "catch_up_rows",
        "sums_of_squares",
        "add_pieces",
        "convert",
    }
    assert of_types | set(SHIPPED_ONCE) == public_loaders()


@x86
@slow
@pytest.mark.parametrize("dtype", [*HALF, *COMPLEX])
@pytest.mark.parametrize("name", ["update_dense", "update_rows"])
def test_kernels_of_other_dtypes_allocate_nothing(name, dtype):
    text, _ = assembly(name, *of_form(FULL, dtype), True)
    assert_nothing_is_allocated(text)


@slow
@x86
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("update_dense", "bfloat16"), ("update_dense", "float16"), ("update_rows", "bfloat16")],
)
def test_master_weights_and_their_rounding_are_packed(name, dtype, rounding):
    """In float32, without a call; random bits are products of words, packed as well."""
    form = presets.with_precision(FULL, master_weights=True, rounding=rounding, state_dtype={})
    text, _ = assembly(name, *form.compiled_for(precision_of(dtype_named(dtype))), False)
    loops = packed_loops(text, "v?sqrtps")
    assert loops
    assert not any(re.search(r"\bcall", loop) for loop in loops)
    assert not packed_loops(text, "v?sqrtpd")
    if rounding == "stochastic":
        assert all(re.search(r"\bv?pmulld|\bpmuludq", loop) for loop in loops)
    assert_nothing_is_allocated(text)


@x86
@slow
@pytest.mark.parametrize("name", ["update_dense", "update_rows"])
def test_reduced_state_is_packed(name):
    form = FULL.with_state(dict.fromkeys(("rms", "mg", "momentum"), "bfloat16"))
    text, _ = assembly(name, *form.compiled_for(precision_of(np.dtype("f4"))), False)
    loops = packed_loops(text, "v?sqrtps")
    assert loops
    assert not any(re.search(r"\bcall", loop) for loop in loops)
    assert all(re.search(r"\bv?pmulld|\bpmuludq", loop) for loop in loops)
    assert_nothing_is_allocated(text)


@x86
@slow
@pytest.mark.parametrize("name", ["update_dense", "update_rows"])
def test_slots_in_8_bits_are_packed(name):
    """The rule and the bytes in one loop, without a call."""
    form = FULL.with_state(dict.fromkeys(("rms", "mg", "momentum"), "8bit"))
    text, _ = assembly(name, *form.compiled_for(precision_of(np.dtype("f4"))), False)
    loops = packed_loops(text, "v?sqrtps")
    assert loops
    assert not any(re.search(r"\bcall", loop) for loop in loops)
    assert all(re.search(r"\bv?pmov[sz]xbd", loop) for loop in loops)
    assert all(re.search(r"\bv?pmovu?s?db|\bv?pshufb|\bv?packuswb", loop) for loop in loops)
    assert_nothing_is_allocated(text)


@slow
@x86
def test_the_search_for_allocations_finds_one():
    from numba import int64, njit

    @njit(int64(int64))
    def allocating(size):
        return np.zeros(size, np.int64).sum()

    with pytest.raises(AssertionError):
        assert_nothing_is_allocated(allocating.inspect_asm(allocating.signatures[0]))


@slow
@x86
def test_the_search_for_packed_roots_finds_none_where_there_are_none():
    """With Python's error model each division is checked for zero, which forbids packing."""
    from numba import float32, njit

    @njit((float32[::1], float32[::1]), error_model="python")
    def checked(a, b):
        for i in range(len(a)):
            a[i] = np.sqrt(a[i]) / b[i]

    text = checked.inspect_asm(checked.signatures[0])
    assert packed_loops(text, "v?sqrtss")
    assert not packed_loops(text, "v?sqrtps")


def compilations():
    from numba.core import event

    return event.install_recorder("numba:compile")


def a_few_steps(dtype, form, size=33, **arguments):
    rng = np.random.default_rng(0)
    optimizer = form.optimizer(**arguments)
    variables = [random_array(rng, shape, dtype) for shape in (size, (3, size))]
    variables.append(random_array(rng, size, dtype)[::2])
    for _ in range(2):
        optimizer.apply_gradients([(random_array(rng, v.shape, dtype), v) for v in variables])
    return optimizer, variables


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_step_compiles_nothing(dtype):
    a_few_steps(dtype, BOTH, clipnorm=1.0)
    with compilations() as recorder:
        optimizer, variables = a_few_steps(dtype, BOTH, size=77, clipnorm=1.0)
        optimizer.learning_rate = lambda: 0.5
        optimizer.apply_gradients([(v[::-1], v) for v in variables])
        optimizer.apply_gradients([(v[::2].copy(), v[::2]) for v in [np.ones(9, dtype)]])
    assert not recorder.buffer


def test_the_recorder_sees_a_compilation():
    from numba import njit

    with compilations() as recorder:
        njit(lambda x: x)(1)
    assert recorder.buffer


STEPS = """
import numpy as np
from numba.core import event
import rmsjit
with event.install_recorder("numba:compile") as recorder:
    for dtype, size in (("float32", 5), ("float32", 1_100_000), ("float64", 5)):
        optimizer = rmsjit.RMSprop(num_threads=2)
        w = np.ones(size, dtype)
        for _ in range(8):  # the last ones try two threads
            optimizer.apply_gradients([(w.copy(), w)])
print(len(recorder.buffer))
"""


@slow
def test_a_fresh_process_loads_what_another_compiled(tmp_path):
    """And every kernel has a file of its own."""

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    environment = {"RMSJIT_CACHE_DIR": str(tmp_path)}
    assert int(run_python(STEPS, **environment)) > 0
    made = files()
    assert int(run_python(STEPS, **environment)) == 0
    assert files() == made
    assert {path.suffix for path in made} == {".kernel"}
    kernels = sorted(path.name.partition("-")[0] for path in made)
    assert kernels == ["read_pairs", "run_act", "run_on_threads", *["update_dense"] * 2]


@pytest.mark.parametrize("form", PRESETS, ids=str)
def test_a_kernel_belongs_to_one_form_and_one_dtype(form):
    from rmsjit.kernels import loader

    kernels = {loader.update_dense(*of_form(form, dtype), False) for dtype in DTYPES}
    assert len(kernels) == len(DTYPES)
    assert len({kernel.address for kernel in kernels}) == len(DTYPES)


# --- Sharing out work ------------------------------------------------------------------------

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=5).map(np.array)


def assert_covers(part, sizes, bins):
    """Every element is in one piece of one bin."""
    assert len(part.bins) == bins + 1
    assert part.bins[0] == 0
    assert part.bins[-1] == len(part.pieces)
    assert np.all(np.diff(part.bins) >= 0)
    counts = [np.zeros(size, int) for size in sizes]
    for row, start, count in part.pieces:
        assert count > 0
        assert start + count <= sizes[row]
        counts[row][start : start + count] += 1
    assert all(np.all(count == 1) for count in counts)


@given(
    sizes=lengths,
    bins=st.integers(1, 7),
    width=st.sampled_from([2, 4, 8, 16]),
    seed=st.integers(0, 99),
)
def test_bins_are_even_and_cut_on_cache_lines(sizes, bins, width, seed):
    addresses = 4096 + width * np.random.default_rng(seed).integers(0, 64, len(sizes))
    part = cut_evenly(sizes, addresses, width, bins)
    assert_covers(part, sizes, bins)
    starts = part.pieces[part.bins[1:-1][part.bins[1:-1] < len(part.pieces)]]
    for row, start, _ in starts:
        assert start == 0 or (addresses[row] + start * width) % 64 == 0
    for low, high in zip(part.bins, part.bins[1:], strict=False):
        assert part.pieces[low:high, 2].sum() <= sizes.sum() / bins + 64 / width + 1


@pytest.mark.parametrize("bins", [1, 2, 3])
@pytest.mark.parametrize("misfit", [0, 4, 16, 60])
def test_long_pieces_begin_on_a_cache_line(misfit, bins):
    sizes = np.array([50, 20_000, 5])
    part = cut_evenly(sizes, np.array([4096, 4096 + misfit, 8192]), 4, bins)
    assert_covers(part, sizes, bins)
    long = part.pieces[part.pieces[:, 2] > 100]
    assert len(long)
    assert np.all((misfit + 4 * long[:, 1]) % 64 == 0)


@pytest.mark.parametrize("dtype", [None, "float16", "complex128"])
@pytest.mark.parametrize(
    "prototype",
    [
        np.zeros(()),
        np.zeros(0),
        np.zeros((3, 5), np.float32),
        np.zeros((2, 3, 4)).transpose(1, 2, 0),
    ],
    ids=lambda array: str(array.shape),
)
def test_aligned_arrays(prototype, dtype):
    array = rmsjit.empty_like_aligned(prototype, dtype)
    expected = np.empty_like(prototype, dtype)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    if array.size:
        assert (array.ctypes.data % 64, array.strides) == (0, expected.strides)
    assert array.flags.writeable


@slow
@given(sizes=lengths, bins=st.integers(1, 7), length=st.sampled_from([1, 8, 100]))
def test_pieces_of_norms_do_not_depend_on_the_bins(sizes, bins, length):
    part = cut_by_length(sizes, length, bins)
    assert_covers(part, sizes, bins)
    assert np.array_equal(part.pieces, cut_by_length(sizes, length, 1).pieces)
    assert np.all(part.pieces[:, 1] % length == 0)


@slow
@given(sizes=lengths, bins=st.integers(1, 7), length=st.sampled_from([1, 8, 100]))
def test_work_turned_round_is_the_same_work(sizes, bins, length):
    part = cut_evenly(sizes, np.full(len(sizes), 4096), 4, bins)
    turned = backwards(part, length)
    assert_covers(turned, sizes, bins)
    for k in range(bins):
        one, other = (p.pieces[p.bins[k] : p.bins[k + 1]] for p in (part, turned))
        assert one[:, 2].sum() == other[:, 2].sum()
        assert [tuple(p) for p in other[::-1, :2]] == sorted(tuple(p) for p in other[:, :2])
