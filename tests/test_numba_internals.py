"""The private names of Numba: where they are used, and what happens where one is gone."""

import ctypes
import re
import textwrap
import tomllib
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numba
import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.layout import address_of
from rmsjit.runtime import cache, numba_internals, store, threading_layer, threads, trials
from strategies import run_python

STORING, CALLING = numba_internals.STORING, numba_internals.CALLING
THREADING, OBSERVING = numba_internals.THREADING, numba_internals.OBSERVING
EVERY = (*STORING, *CALLING, *THREADING, *OBSERVING)


def by_name(names):
    return pytest.mark.parametrize("private", names, ids=lambda private: private.name)


class Without:
    """A module or object of Numba that lacks an attribute, as do the objects in it."""

    def __init__(self, whole, name):
        self.whole, self.name = whole, name

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(f"{name} is hidden")
        value = getattr(self.whole, name)
        if name == "codegen":
            return lambda: Without(value(), self.name)
        if name == "install_recorder":
            return self.recorder
        inner = ("library", "fndesc", "cpu_target", "target_context")
        return Without(value, self.name) if name in inner or isinstance(value, type) else value

    @contextmanager
    def recorder(self, kind):
        with self.whole.install_recorder(kind) as recorder:
            yield Without(recorder, self.name)


@pytest.fixture
def hide(monkeypatch):
    """Hides a private name from rmsjit; Numba itself still has it."""

    def hiding(private):
        name = private.name.rpartition(".")[2]

        def imported(module):
            if module == private.module and not name:
                raise ImportError(f"{module} is hidden")
            return Without(import_module(module), name)

        result_of = numba_internals.result_of
        monkeypatch.setattr(numba_internals, "import_module", imported)
        monkeypatch.setattr(
            numba_internals,
            "result_of",
            lambda *compiled: Without(result_of(Without(compiled[0], name), *compiled[1:]), name),
        )

    return hiding


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has no kernel yet, and an empty cache."""
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(store, "_warned", False)
    return tmp_path / "kernels"


def first_outside():
    """A small kernel, checked, and the warnings it came with."""
    from rmsjit.kernels import rows

    cache._kernels.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel = cache.compile_kernel("first_outside", "", lambda: rows.first_outside, arguments=3)
    assert kernel.call(address_of(np.array([0, 1, 7, 2])), 4, 3) == 2
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_int64,) * 3)(kernel.address)
    assert function(address_of(np.array([0, 9])), 2, 3) == 1
    return [str(warning.message) for warning in caught]


def test_no_other_module_uses_them():
    package = Path(rmsjit.__file__).parent
    private = re.compile(r"numba\.(?!config\b|extending\b)[a-z_]+\.|from numba\.(?!extending\b)")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(private.search(line) for line in path.read_text().splitlines())
    }
    assert found == {"runtime/numba_internals.py"}


@pytest.mark.slow
def test_this_version_of_numba_has_all():
    """In a process of its own, in which Numba has done nothing yet."""
    missing = "from rmsjit.runtime.numba_internals import missing; print(missing())"
    assert run_python(missing).strip() == "[]"
    assert all(private.reason for private in EVERY)
    assert len(set(EVERY)) == len(EVERY)


@by_name([name for name in EVERY if "pool" not in name.module])
def test_what_is_gone_is_listed_where_it_can_be_seen(private, hide):
    hide(private)
    made_later = private.name in numba_internals._MADE_LATER
    assert (private in numba_internals.missing()) != made_later


def test_the_oldest_version_that_was_checked_is_the_lower_bound():
    project = Path(__file__).parent.parent / "pyproject.toml"
    dependencies = tomllib.loads(project.read_text())["project"]["dependencies"]
    assert f"numba>={numba_internals.CHECKED[0]}" in dependencies


@pytest.mark.slow
@by_name([*STORING, *CALLING])
def test_kernels_are_compiled_without_it(private, fresh, hide):
    hide(private)
    told = [*first_outside(), *first_outside()]
    assert len(told) == 1  # once in a process
    assert "compiles its kernels again in every process" in told[0]
    assert ("a microsecond longer" in told[0]) == (private in CALLING)
    assert f"because Numba {numba.__version__} has changed" in told[0]
    assert told[0].endswith("it was checked with {} to {}".format(*numba_internals.CHECKED))


def test_nothing_is_said_while_all_are_there(fresh):
    assert first_outside() == first_outside() == []
    assert list(fresh.glob("*.kernel"))


@pytest.mark.slow
def test_a_step_of_public_functions_only(tmp_path, monkeypatch, hide):
    """On threads, and with the numbers of the kernels that were loaded."""
    from rmsjit.kernels import loader

    def trained():
        for load in vars(loader).values():
            getattr(load, "cache_clear", int)()
        w = np.linspace(0.5, 2.0, 300_000, dtype="float32")
        optimizer = rmsjit.RMSprop(0.01, momentum=0.9, num_threads=2)
        for _ in range(3):
            optimizer.apply_gradients([(np.sin(w), w)])
        return w

    monkeypatch.setattr(trials, "LEAST_BYTES", 0)
    monkeypatch.setattr(trials.Trials, "choose", lambda self: max(self.candidates))
    expected = trained()
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(store, "_warned", False)
    monkeypatch.setenv("RMSJIT_CACHE", "0")
    hide(CALLING[0])
    with pytest.warns(RuntimeWarning, match="takes a microsecond longer to call one because Numba"):
        np.testing.assert_array_equal(trained(), expected)


@by_name(THREADING)
def test_threads_are_found_without_it(private, hide):
    if "pool" in private.module:
        pytest.importorskip(private.module)
    hide(private)
    layer = threading_layer.start()
    assert layer.name == threads.layer_name()
    numba.set_num_threads(2)
    assert layer.get_threads() == 2
    ctypes.CFUNCTYPE(None, ctypes.c_int)(layer.set_address)(1)
    assert numba.get_num_threads() == ctypes.CFUNCTYPE(ctypes.c_int)(layer.get_address)() == 1
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert layer.started_before  # by the tests; also what is assumed if it is unknown
    if private.name == "openmp_vendor":
        assert numba_internals.openmp_is_gnu()
    if private.module == "numba.np.ufunc.tbbpool":
        threading_layer.keep_tbb_module()
    numba_internals.reload_settings()


@by_name(OBSERVING)
def test_compilations_are_not_counted_without_it(private, fresh, hide):
    with numba_internals.compilations() as compiled:
        first_outside()
    assert compiled
    hide(private)
    with numba_internals.compilations() as compiled:
        first_outside()
    assert compiled == []


def test_another_number_of_threads_for_children_does_not_disturb_steps():
    """Once its threads run, Numba refuses to read the settings again."""
    code = """
    import os, numpy as np, rmsjit
    w = np.ones(300_000, np.float32)
    opt = rmsjit.RMSprop(0.01, num_threads=2)
    for _ in range(40):
        opt.apply_gradients([(np.ones_like(w), w)])
    from rmsjit.runtime import threads
    threads.start()
    os.environ["NUMBA_NUM_THREADS"] = str(1 + (os.cpu_count() or 1))
    v = np.ones(10)
    for _ in range(2):
        opt.apply_gradients([(np.ones_like(v), v)])
    import numba
    print(numba.njit(lambda x: x + 1)(1), v[0] < 1, os.environ["NUMBA_NUM_THREADS"] != "2")
    """
    assert run_python(textwrap.dedent(code)).split()[:2] == ["2", "True"]
