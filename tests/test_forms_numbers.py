"""The numbers of `rmsjit.forms`: against live libraries, their vectors, and transcriptions.

What each form promises, and why not more, stands in `form_figures.py`.
"""

import inspect
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import form_figures as figures
import rmsjit
from golden import form_cases, form_libraries, form_transcriptions, form_vectors
from interpreters import chainer_python
from rmsjit import Form, forms
from rmsjit.forms.library import ALWAYS, NEVER, WHEN_USED
from rmsjit.forms.table import BY_NAME, LIBRARIES
from strategies import same_bits

CASES = [case for library in LIBRARIES for case in figures.cases_of(library.name)]
BITS = [case for case in CASES if figures.promise_of(case) == figures.BITS]


def every(cases):
    """The cases in float32; those in float64 are slow."""
    slow = pytest.mark.slow
    marked = [pytest.param(c, id=str(c), marks=[slow] * (c.dtype != "float32")) for c in cases]
    return pytest.mark.parametrize("case", marked)


def test_every_form_has_cases():
    assert form_cases.LIVE.keys() == form_libraries.RUNS.keys()
    assert form_cases.LIVE.keys() ^ form_transcriptions.RUNS.keys() == BY_NAME.keys()
    assert {path.stem for path in form_vectors.FOLDER.glob("*.npz")} == form_cases.LIVE.keys()


@every(CASES)
def test_steps_are_those_of_the_library(case):
    """Each from the library's own state."""
    assert figures.broken(case, figures.figures_of(case, figures.single_steps(case))) == {}


@every(BITS)
def test_runs_have_the_bits_of_the_library(case):
    assert figures.broken(case, figures.figures_of(case, figures.whole_run(case))) == {}


@pytest.mark.slow
@every(CASES)
def test_the_twin_has_the_bits_of_the_kernels(case):
    """So that what `test_flips` finds by the twin is true of the kernels."""
    for got, expected in zip(figures.single_steps(case), figures.twin_steps(case), strict=True):
        assert got.keys() == expected.keys()
        assert all(same_bits(got[name], expected[name]) for name in got)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_no_promise_is_looser_than_it_must_be(name):
    worst = {}
    for case in figures.cases_of(name):
        found = figures.figures_of(case, figures.twin_steps(case))
        units = max(figure.units for figure in found.values())
        why = figures.promise_of(case).why
        worst[why] = max(worst.get(why, 0.0), units)
    promised = {p.why: p.units for p in map(figures.promise_of, figures.cases_of(name))}
    assert all(worst[why] > units - 1 for why, units in promised.items()), worst


# --- Complex numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "modulus"),
    [
        (lambda: forms.optax(0.1, momentum=0.9, eps_in_sqrt=False), True),
        (lambda: forms.optimisers_jl(0.1), True),
        (lambda: forms.tf1(0.1), False),
        (lambda: forms.keras(0.1), False),
    ],
    ids=["optax", "optimisers_jl", "tf1", "keras"],
)
def test_squares_of_complex_gradients(make, modulus):
    optimizer, z, g = make(), np.zeros(1, np.complex128), np.array([0.5 + 1.5j])
    optimizer.rho = 0.0
    optimizer.apply_gradients([(g, z)])
    (rms,) = optimizer.get_slot(z, "rms").numpy()
    assert rms == (2.5 if modulus else g[0] ** 2)


# --- Every dtype, tables, checkpoints --------------------------------------------------------


def tables_of_every_dtype():
    """Each library in one dtype, and each dtype twice; each case has two kernels of its own."""
    dtypes = ["bfloat16", "complex64", "float64"]
    for k, name in enumerate(["torch", "keras", "tf1", "optax", "dl4j", "mxnet"]):
        for dtype in dtypes:
            of_its_own = dtype == dtypes[k % len(dtypes)]
            yield pytest.param(name, dtype, marks=[pytest.mark.long] * (not of_its_own))


@pytest.mark.parametrize(("name", "dtype"), [*tables_of_every_dtype()])
def test_tables_and_checkpoints_of_every_dtype(name, dtype, tmp_path):
    """Rows of a table are stepped as the same rows alone are, also after a checkpoint."""
    import ml_dtypes  # noqa: F401  makes the name bfloat16 known

    make = {"tf1": lambda: forms.tf1(0.1), "optax": lambda: forms.optax(0.1, momentum=0.9)}.get(
        name, getattr(forms, name)
    )
    rng = np.random.default_rng(0)
    table = rng.uniform(0.5, 1.0, (6, 3)).astype(dtype)
    part, named = table[[4, 1]], [4, 1]
    sparse, dense = make(), make()
    for step in range(4):
        gradient = rng.uniform(0.5, 1.0, (2, 3)).astype(dtype)
        sparse.apply_gradients([(rmsjit.IndexedSlices(gradient, named), table)])
        dense.apply_gradients([(gradient, part)])
        if step == 1:
            rmsjit.save(tmp_path / "run.npz", sparse, {"table": table})
            sparse, variables = rmsjit.load(tmp_path / "run.npz")
            table = variables["table"]
    assert same_bits(table[named], part)
    assert sparse.form == dense.form


# --- Mutation: a flip of any setting of any row is noticed -----------------------------------

_OTHER = {
    "epsilon": ("outside", "inside"),
    "learning_rate": ("inside", "outside"),
    "nesterov": (False, True),
    "bias_correction": (False, True),
    "one_minus_rho": ("rounded", "exact"),
    "rms_average": ("weighted", "difference"),
    "mg_average": ("weighted", "difference"),
    "square": ("weighted", "first"),
    "quotient": ("rate_last", "rate_first", "reciprocal", "rate_over"),
    "fused": (False, True),
    "float32_numbers": ((), ("learning_rate", "rho", "epsilon")),
    "weight_decay": (None, "coupled", "decoupled", "independent"),
    "rms_start": (0.0, 1.0, "epsilon"),
    "centered": (False, True),
    "momentum": (WHEN_USED, ALWAYS, NEVER),
}
_NOT_IN_STEPS = {"slots", "clip_weights", "clamp", "complex_square", "creation", "rounding"}


def flips_of(library):
    """The row with one setting changed, for every setting and every other value of it."""
    for name, choices in _OTHER.items():
        for value in choices:
            changed = replace(
                library,
                settings=dict(library.settings) | {name: value},
                with_momentum={k: v for k, v in library.with_momentum.items() if k != name},
            )
            if changed != library:
                yield f"{name}={value}", changed


def what_matters(form, dtype):
    """A form without the settings that others, or the dtype, keep from having an effect."""
    idle = {}
    if not form.centered:
        idle["mg_average"] = "weighted"
    if form.rms_average == "difference":
        idle["square"] = "weighted"
    if form.learning_rate == "outside":
        idle["quotient"] = "rate_last"
    # Of a rho of float32 the difference from 1 is rounded once either way, and so it is in float64.
    if "rho" in form.float32_numbers or dtype == "float64":
        idle["one_minus_rho"] = "rounded"
    used = {"momentum": form.has_momentum, "weight_decay": form.weight_decay is not None}
    numbers = tuple(name for name in form.float32_numbers if used.get(name, True))
    return replace(form, **idle, float32_numbers=numbers)


def effects(library, cases):
    return [what_matters(figures.chosen(case, library).form, case.dtype) for case in cases]


def is_noticed(library, cases):
    """Whether the tests above fail for a row."""
    for case in cases:
        try:
            found = figures.figures_of(case, figures.twin_steps(case, library))
        except KeyError:
            return True
        if figures.broken(case, found):
            return True
    return False


def test_all_settings_are_flipped_or_tested_elsewhere():
    assert _OTHER.keys() | _NOT_IN_STEPS == (
        {field.name for field in fields(Form)} | {"rms_start", "centered", "momentum"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_flips(library):
    """Of every setting that changes what any case computes; the tests above would fail."""
    cases = figures.cases_of(library.name)
    as_it_is = effects(library, cases)
    unnoticed = [
        label
        for label, changed in flips_of(library)
        if effects(changed, cases) != as_it_is and not is_noticed(changed, cases)
    ]
    assert unnoticed == []
    assert not is_noticed(library, cases)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_no_setting_of_a_row_is_idle(library):
    """Without any one of them some case would be computed otherwise."""
    cases = figures.cases_of(library.name)
    as_it_is = effects(library, cases)
    for kind in ("settings", "with_momentum"):
        for name in getattr(library, kind).keys() - _NOT_IN_STEPS:
            rest = {k: v for k, v in getattr(library, kind).items() if k != name}
            assert effects(replace(library, **{kind: rest}), cases) != as_it_is, name


def test_order_of_weights():
    """Which no step shows: TensorFlow 1 creates slots variable by variable, Keras slot by slot."""
    variables = [np.zeros(1), np.zeros(1)]
    for make, expected in (
        (lambda: forms.tf1(0.1, centered=True), 2 * ["rms", "mg", "momentum"]),
        (lambda: forms.keras(0.1, momentum=0.9, centered=True), ["rms"] * 2 + ["momentum"] * 2),
    ):
        optimizer = make()
        optimizer.build(variables)
        names = [w.name.rpartition("/")[2].partition(":")[0] for w in optimizer.weights[1:]]
        assert names[: len(expected)] == expected


# --- Live ------------------------------------------------------------------------------------

PACKAGES = {
    "tf_keras_legacy": "tf_keras",
    "tf1": "tensorflow",
    "chainer_graves": "chainer",
    "jax_example_libraries": "jax",
}
_SCRIPT = Path(__file__).parent / "golden" / "make_forms.py"


def check_live(name, python=sys.executable, **environment):
    """In a process of its own: libraries bring threads and warnings that are not ours."""
    done = subprocess.run(
        [python, str(_SCRIPT), "--check", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.live
@pytest.mark.parametrize("name", form_cases.LIVE)
def test_live_library_still_makes_these_vectors(name):
    package = PACKAGES.get(name, name)
    if package == "chainer":
        check_live(name, chainer_python())
        return
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    check_live(name)


@pytest.mark.live
@pytest.mark.skipif(not (find_spec("keras") and find_spec("jax")), reason="needs keras and jax")
def test_live_keras_on_jax():
    check_live("keras", KERAS_BACKEND="jax")


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "path", "skipped"),
    [
        ("torch", "torch.optim.RMSprop", ["params"]),
        ("keras", "keras.optimizers.RMSprop", ["kwargs"]),
        ("tf_keras", "tf_keras.optimizers.RMSprop", ["kwargs"]),
        ("tf_keras_legacy", "tf_keras.optimizers.legacy.RMSprop", ["kwargs"]),
        ("tf1", "tensorflow.compat.v1.train.RMSPropOptimizer", []),
        ("optax", "optax.rmsprop", []),
        ("jax_example_libraries", "jax.example_libraries.optimizers.rmsprop_momentum", []),
        ("paddle", "paddle.optimizer.RMSProp", []),
        ("mlx", "mlx.optimizers.RMSprop", []),
        ("river", "river.optim.RMSProp", []),
    ],
)
def test_live_signatures(name, path, skipped):
    code = (
        f"import importlib, inspect, functools\n"
        f"parts = {path!r}.split('.')\n"
        f"for k in range(len(parts) - 1, 0, -1):\n"
        f"    try:\n"
        f"        thing = importlib.import_module('.'.join(parts[:k]))\n"
        f"        break\n"
        f"    except ImportError:\n"
        f"        pass\n"
        f"thing = functools.reduce(getattr, parts[k:], thing)\n"
        f"for p in inspect.signature(thing).parameters.values():\n"
        f"    print(p.name, float(p.default) if type(p.default) is int else p.default, sep='=')"
    )
    if find_spec(path.partition(".")[0]) is None:
        pytest.skip(f"needs {path.partition('.')[0]}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    theirs = [line for line in done.stdout.splitlines() if line.partition("=")[0] not in skipped]
    ours = [
        f"{p.name}={float(p.default) if type(p.default) is int else p.default}"
        for p in inspect.signature(getattr(forms, name)).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert ours == theirs
