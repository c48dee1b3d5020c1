"""What importing rmsjit costs and leaves behind, and what it offers."""

import inspect
import pkgutil
import sys
import types
import typing

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays import masked
from rmsjit.autodiff import hooks
from rmsjit.rule import checks
from strategies import run_python

HEAVY = ["numba", "llvmlite", "autograd", "scipy", "sklearn", "matplotlib", "tqdm", "mpi4py"]
HEAVY += ["ml_dtypes", "safetensors", "torch", "tensorflow"]


def test_import_brings_nothing_heavy():
    code = "import sys, rmsjit; print([name for name in sys.argv[1:] if name in sys.modules])"
    assert run_python(code, *HEAVY).strip() == "[]"


@pytest.mark.slow
def test_making_optimizers_brings_nothing_heavy():
    """Only the first step needs compiled code."""
    code = """
import sys, rmsjit
v = rmsjit.Variable([1.0, 2.0])
rmsjit.RMSprop(rmsjit.schedules.ExponentialDecay(0.1, 10, 0.9), momentum=0.9).get_config()
rmsjit.train.RMSPropOptimizer(0.1)
optimizer = rmsjit.RMSprop()
optimizer.build([v])
optimizer.set_weights(optimizer.get_weights())
print([name for name in sys.argv[1:] if name in sys.modules])
"""
    assert run_python(code, *HEAVY).strip() == "[]"


LOOK = """
import os, sys
if sys.argv[1] == "set":
    os.environ["NUMBA_CACHE_DIR"] = "/nowhere"
    os.environ["NUMBA_OPT"] = "2"
before = dict(os.environ)
from numba.core import config
def settings():
    return {name: getattr(config, name) for name in dir(config) if name.isupper()}
mine = settings()
import numpy as np
import rmsjit
for size in (3, 1_100_000):
    w = np.ones(size, "float32")
    optimizer = rmsjit.RMSprop(num_threads=2)
    for _ in range(2):
        optimizer.apply_gradients([(w.copy(), w)])
after = settings()
assert after == mine, {k: (mine[k], after[k]) for k in mine if mine[k] != after[k]}
assert dict(os.environ) == before
from numba import njit, get_num_threads
assert get_num_threads() == config.NUMBA_NUM_THREADS
assert njit(lambda x: x + 1)(1) == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["default", "set"])
def test_the_users_numba_is_left_as_it_was(settings):
    run_python(LOOK, settings)


def test_nothing_is_compiled_or_written_by_import(tmp_path):
    code = "import rmsjit, rmsjit.train, rmsjit.schedules"
    run_python(code, RMSJIT_CACHE_DIR=str(tmp_path / "kernels"))
    assert not (tmp_path / "kernels").exists()


# --- Names -----------------------------------------------------------------------------------


def made_in(module):
    """The public classes and functions that a module, or a package, defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and f"{getattr(value, '__module__', None)}.".startswith(f"{module.__name__}.")
    ]


OFFERED = """
import types
import rmsjit
for name in {*vars(rmsjit), *rmsjit._HOMES}:
    value = getattr(rmsjit, name)
    home = getattr(value, "__module__", "")
    if isinstance(value, types.ModuleType):
        home = value.__name__
    if not name.startswith("_") and home.startswith("rmsjit"):
        print(name)
"""


@pytest.mark.slow
def test_all_is_what_the_package_offers():
    """Its rooms are there as well once something has imported them, but are not offered."""
    pytest.importorskip("autograd", reason="GradientTape and gather need it")
    rooms = {room.name for room in pkgutil.iter_modules(rmsjit.__path__)}
    names = set(run_python(OFFERED).split()) - (rooms - set(rmsjit.__all__))
    assert sorted(rmsjit.__all__) == sorted(names)
    assert len(set(rmsjit.__all__)) == len(rmsjit.__all__)
    namespace = {}
    exec("from rmsjit import *", namespace)
    assert set(rmsjit.__all__) <= set(namespace)


FIRST = """
import sys
for name in sys.argv[1:]:
    import rmsjit
    value = getattr(rmsjit, name)
    assert getattr(rmsjit, name) is value is vars(rmsjit)[name], name
    for module in [module for module in sys.modules if module.partition(".")[0] == "rmsjit"]:
        del sys.modules[module]
"""


def test_every_name_can_be_the_first_one_that_is_used():
    """No module relies on others that happen to be loaded before it."""
    run_python(FIRST, *rmsjit.__all__)


def test_what_is_not_used_is_not_loaded():
    code = "import sys, rmsjit; rmsjit.{}; print('rmsjit.optimizers' in sys.modules)"
    assert run_python(code.format("__version__")).strip() == "False"
    assert run_python(code.format("RMSprop")).strip() == "True"


def test_completion_shows_public_names_only():
    assert dir(rmsjit) == sorted([*rmsjit.__all__, "__version__"])


@pytest.mark.parametrize("module", [rmsjit.schedules])
def test_all_of_a_module_is_what_it_defines(module):
    assert sorted(getattr(module, "__all__", made_in(module))) == sorted(made_in(module))


def public_things():
    for module in (rmsjit, rmsjit.schedules, rmsjit.train):
        for name in made_in(module) or module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


THINGS = dict(public_things())


@pytest.mark.parametrize("name", THINGS)
def test_every_public_name_has_a_docstring(name):
    thing = THINGS[name]
    assert inspect.getdoc(thing)
    if not inspect.isclass(thing):
        return
    for attribute, value in vars(thing).items():
        if inspect.isfunction(value) and not attribute.startswith("_"):
            assert inspect.getdoc(getattr(thing, attribute)), attribute  # or its base's


def functions_of(thing):
    """A public function, or the constructor and the public methods of a class."""
    if not inspect.isclass(thing):
        return [thing] if inspect.isfunction(thing) else []
    methods = inspect.getmembers(thing, inspect.isfunction)
    return [value for name, value in methods if name == "__init__" or name[0] != "_"]


@pytest.mark.parametrize("name", THINGS)
def test_the_types_of_public_functions_can_be_read(name):
    """Command lines and checkers of types are made from them."""
    for function in functions_of(THINGS[name]):
        typing.get_type_hints(function)


def test_names_of_the_contract():
    assert rmsjit.RMSProp is rmsjit.RMSprop
    assert callable(rmsjit.train.RMSPropOptimizer)
    for name in ["Variable", "IndexedSlices"]:
        assert callable(getattr(rmsjit, name))
    for name in [
        "LearningRateSchedule",
        "ExponentialDecay",
        "PiecewiseConstantDecay",
        "PolynomialDecay",
        "InverseTimeDecay",
        "CosineDecay",
        "CosineDecayRestarts",
        "serialize",
        "deserialize",
    ]:
        assert callable(getattr(rmsjit.schedules, name))


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert rmsjit.__version__ == version("rmsjit")


@pytest.mark.parametrize(
    ("module", "asks"),
    [
        ("numpy.ma", lambda: masked.is_masked(np.ndarray)),
        ("rmsjit.schedules", lambda: checks.is_schedule(0.1)),
        ("scipy.sparse", lambda: hooks.is_sparse(np.ones(3))),
    ],
)
def test_a_module_that_another_thread_imports_has_no_instances_yet(monkeypatch, module, asks):
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert not asks()
