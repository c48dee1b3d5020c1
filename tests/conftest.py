"""Settings of the whole test run; everything that a test uses by name is imported instead."""

import gc
import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

_WORKERS = 4  # threads that Numba may start; its own default is the number of processors

# The search for doctests imports what it finds: programs for ranks would start MPI, and compile.
collect_ignore = ["conftest.py", "mpi"]
if not importlib.util.find_spec("mpi4py"):
    collect_ignore += ["test_distributed.py"]

_slow = [HealthCheck.too_slow]  # the first example of a form may have to compile its kernel
settings.register_profile(
    "fixed", deadline=None, derandomize=True, database=None, suppress_health_check=_slow
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=_slow)
settings.load_profile("fixed")  # the same examples in every run; --hypothesis-profile=explore


def pytest_configure(config):
    """Set what Numba and rmsjit read once; subprocesses of tests inherit it.

    The kernels of all tests are kept with pytest's own cache, so that only the first run compiles
    and the user's kernels are left alone.  More threads than processors still give the same bits,
    which is what the tests want to see.
    """
    cache = getattr(config, "cache", None)
    if "RMSJIT_CACHE_DIR" not in os.environ and cache is not None:
        os.environ["RMSJIT_CACHE_DIR"] = str(cache.mkdir("rmsjit-kernels"))
    processors = os.cpu_count() or 1
    os.environ.setdefault("NUMBA_NUM_THREADS", str(max(_WORKERS, processors)))


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes, unless -m speaks of it or the test is named."""
    if "long" in (config.option.markexpr or "") or any("::" in name for name in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_collection_finish():
    """Keep what is there by now out of garbage collections: some tests have many made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def threads_started():
    """Start threads before a test can have Numba start them by itself, spinning and without TBB.

    More of them than processors would stall, which rmsjit notices, with a warning.
    """
    from rmsjit.runtime import threads

    threads.layer_name()


@pytest.fixture(scope="session", autouse=True)
def nothing_learned():
    """Trials of threads begin as on a new machine, whatever earlier runs have measured.

    Otherwise chance would decide which tests run on threads.
    """
    from rmsjit.runtime import learned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "_path", lambda: None)
        assert learned._earlier() == {}  # read once in a process


@pytest.fixture(autouse=True)
def no_lock_is_kept():
    """A test that keeps a lock would have threads of any later test wait for ever."""
    from rmsjit.runtime import forks

    yield
    assert not any(renewed.lock._is_owned() for renewed in tuple(forks._locks))


@pytest.fixture
def loaded(monkeypatch):
    """Whether each update, dense or sparse, that is prepared from now on runs on threads."""
    from rmsjit.kernels import loader
    from rmsjit.steps import dense, sparse
    from rmsjit.steps.act import Call

    updates, parallel = set(), []

    def noting(load):
        def noting_load(*arguments):
            kernel = load(*arguments)
            updates.add(kernel.address)
            return kernel

        return noting_load

    for name in ("update_dense", "update_rows"):
        monkeypatch.setattr(loader, name, noting(getattr(loader, name)))

    def noting_call(kernel, words, *alive):
        if kernel.address in updates:
            parallel.append(bool(words[0] > 1))
        return Call(kernel, words, *alive)

    for module in (dense, sparse):
        monkeypatch.setattr(module, "Call", noting_call)
    return parallel


@pytest.fixture
def always_parallel(monkeypatch, loaded):
    """Threads for work of any size; what was loaded."""
    from rmsjit.runtime import trials

    monkeypatch.setattr(trials, "LEAST_BYTES", 0)
    monkeypatch.setattr(trials.Trials, "choose", lambda self: max(self.candidates))
    return loaded
