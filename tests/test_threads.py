"""Many Python threads at once under every threading layer, and how many threads a step gets."""

import importlib.metadata
import os
import sys

import pytest

from rmsjit.runtime import processors
from strategies import run_python

linux = pytest.mark.skipif(sys.platform != "linux", reason="only there are all layers at hand")

LAYERS = ("tbb", "omp", "workqueue")

# Few elements, so that the tests are quick: less than what a launch pays for.
COMMON = """
import sys, threading, warnings
import numpy as np
import rmsjit
from rmsjit.runtime import threads

threads.LAUNCH_BYTES = threads.IDLE_LAUNCH_BYTES = 1 << 17

def gradients(seed, steps=10, size=300_000):
    random = np.random.default_rng(seed)
    return [random.standard_normal(size, np.float32) for _ in range(steps)]

def train(optimizer, variable, seed):
    for g in gradients(seed):
        optimizer.apply_gradients([(g, variable)])

def new(**options):
    return rmsjit.RMSprop(0.01, momentum=0.9, centered=True, clipnorm=5.0, **options)

def ones(size=300_000):
    return np.ones(size, np.float32)

def at_once(*calls):
    failures = []
    def guarded(call):
        try:
            call()
        except BaseException as error:
            failures.append(error)
    workers = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    if failures: raise failures[0]
"""


def run(code, **environment):
    return run_python(COMMON + code, **environment).split()


@linux
@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_at_once(layer):
    """Own variables: the bits of a serial run.  A shared one: all steps counted, and finite."""
    code = """
serial = []
for seed in range(4):
    serial.append(ones())
    train(new(num_threads=1), serial[-1], seed)

def check(variables):
    for seed in range(4):
        assert np.array_equal(variables[seed], serial[seed]), seed

own = [ones() for _ in range(4)]
at_once(*(lambda s=s: train(new(), own[s], s) for s in range(4)))
check(own)

shared, own = new(), [ones() for _ in range(4)]
at_once(*(lambda s=s: train(shared, own[s], s) for s in range(4)))
check(own)
assert int(shared.iterations) == 40

shared, variable = new(), ones()
at_once(*(lambda s=s: train(shared, variable, s) for s in range(4)))
assert np.isfinite(variable).all()
assert int(shared.iterations) == 40
print(threads.threading_layer())
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == [layer]


@linux
@pytest.mark.parametrize("layer", LAYERS)
def test_sparse_steps_at_once(layer):
    code = """
def train_rows(optimizer, table, seed):
    random = np.random.default_rng(seed)
    for _ in range(6):
        rows = random.integers(0, len(table), 20_000)
        values = random.standard_normal((20_000, 16), np.float32)
        optimizer.apply_gradients([(rmsjit.IndexedSlices(values, rows), table)])

def tables():
    return [np.ones((5_000, 16), np.float32) for _ in range(3)]

serial, own, shared = tables(), tables(), tables()
for seed in range(3):
    train_rows(new(num_threads=1), serial[seed], seed)
optimizer = new()
at_once(*(lambda s=s: train_rows(optimizer, own[s], s) for s in range(3)))
for seed in range(3):
    assert np.array_equal(own[seed], serial[seed]), seed
at_once(*(lambda s=s: train_rows(optimizer, shared[0], s) for s in range(3)))
assert np.isfinite(shared[0]).all()
print(threads.threading_layer())
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == [layer]


def test_a_busy_workqueue_leaves_the_serial_kernel():
    code = """
import time
assert threads.acquire(2) == 2
granted = []
at_once(lambda: granted.append(threads.acquire(2)))
threads.release(2)
at_once(lambda: granted.append(threads.acquire(2)), lambda: time.sleep(0))
print(threads.threading_layer(), *granted)
"""
    assert run(code, NUMBA_THREADING_LAYER="workqueue") == ["workqueue", "1", "2"]


def test_the_users_number_of_threads_is_honoured_and_put_back():
    code = """
import numba
variable = ones()
train(new(), variable, 0)
numba.set_num_threads(3)
for limit in (2, 3, 64):
    granted = threads.acquire(limit)
    print(granted, numba.get_num_threads())
    threads.release(granted)
    print(numba.get_num_threads())
at_once(lambda: print(numba.get_num_threads()))  # in another thread it is Numba's own
numba.set_num_threads(1)
print(threads.acquire(2))
train(new(num_threads=64), variable, 0)
print(numba.get_num_threads())
"""
    numbers = run(code, NUMBA_NUM_THREADS="4")
    assert numbers == ["2", "2", "3", "3", "3", "3", "3", "3", "3", "4", "1", "1"]


@linux
def test_tbb_is_found_where_pip_has_put_it():
    try:
        importlib.metadata.version("tbb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tbb is not installed")
    assert run("print(threads.threading_layer())", NUMBA_THREADING_LAYER="default") == ["tbb"]


@linux
@pytest.mark.parametrize(
    ("code", "environment"),
    [
        ("", {"NUMBA_THREADING_LAYER": "omp"}),
        ("", {"NUMBA_THREADING_LAYER_PRIORITY": "omp workqueue tbb"}),
        ("import numba; numba.config.THREADING_LAYER = 'omp'", {}),
        ("import numba; numba.config.THREADING_LAYER_PRIORITY = ['omp', 'tbb', 'workqueue']", {}),
        (
            "import numba; numba.config.THREADING_LAYER = 'omp'; numba.get_num_threads(); "
            "numba.config.THREADING_LAYER = 'tbb'",
            {},
        ),
    ],
    ids=["layer", "priority", "assigned layer", "assigned priority", "already started"],
)
def test_the_users_choice_of_layer_stands(code, environment):
    code += """
import numba.core.config as config
before = config.THREADING_LAYER, config.THREADING_LAYER_PRIORITY
print(threads.threading_layer())
assert before == (config.THREADING_LAYER, config.THREADING_LAYER_PRIORITY)
"""
    assert run(code, **environment) == ["omp"]


@linux
def test_a_parallel_kernel_that_is_loaded_ahead_starts_the_same_layer():
    """Numba would start its threads by itself then, without TBB, or spinning."""
    code = """
from rmsjit.arrays.dtypes import precision_of
from rmsjit.kernels import loader

loader.update_dense(precision_of(np.dtype(np.float32)), True, True, True)
print(threads._layer.name, threads._layer.started_before, threads._layer.spins)
"""
    assert run(code, NUMBA_THREADING_LAYER="omp") == ["omp", "False", "False"]
    by_itself = run("print(threads.threading_layer())", NUMBA_THREADING_LAYER="default")
    assert run(code, NUMBA_THREADING_LAYER="default")[:1] == by_itself


def test_a_layer_that_is_not_there_means_one_thread_and_one_warning():
    code = """
import importlib.metadata
from numba.np.ufunc import parallel

def missing(*args):
    raise OSError("no such library")

importlib.metadata.files = lambda name: []
parallel.CDLL = missing
variable, serial = ones(), ones()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    train(new(), variable, 0)
    train(new(), ones(), 0)
train(new(num_threads=1), serial, 0)
assert np.array_equal(variable, serial)
print(len(caught), caught[0].category.__name__, caught[0].filename, caught[0].message)
"""
    said = run(code, NUMBA_THREADING_LAYER="tbb")
    assert said[:3] == ["1", "RuntimeWarning", "<string>"]
    assert "TBB" in said or "layer" in said


def test_a_warning_that_is_an_error_comes_before_anything_is_written():
    code = """
threads._refuse("there are none")
optimizer, g = new(), np.ones(300_000)
first, second = ones(), np.ones(300_000)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    try:
        optimizer.apply_gradients([(g.astype(np.float32), first), (g, second)])
    except RuntimeWarning:
        assert (first == 1).all() and (second == 1).all() and int(optimizer.iterations) == 0
        optimizer.apply_gradients([(g.astype(np.float32), first), (g, second)])
        assert (first != 1).all() and (second != 1).all()
        print("whole")
"""
    assert run(code) == ["whole"]


def test_an_old_tbb_is_passed_over_without_a_warning():
    code = """
import ctypes, types
from numba.np.ufunc import parallel
from rmsjit.runtime import threading_layer as layers

class Old:
    def __init__(self, name, **options): pass
    class TBB_runtime_interface_version:
        def __new__(cls): return 12050

parallel.CDLL = layers.ctypes.CDLL = Old
train(new(), ones(), 0)
print(threads.threading_layer())
"""
    assert run(code, NUMBA_THREADING_LAYER="default")[0] in ("omp", "workqueue")


# --- stalls of GNU OpenMP -------------------------------------------------------------------

OMP = {"NUMBA_THREADING_LAYER": "omp"}


@linux
@pytest.mark.parametrize(
    ("code", "environment", "spins"),
    [
        ("", {}, False),
        ("", {"OMP_WAIT_POLICY": "passive"}, False),
        ("", {"OMP_WAIT_POLICY": "active"}, True),
        ("", {"GOMP_SPINCOUNT": "1000"}, True),
        ("import numba; numba.get_num_threads()", {}, True),
    ],
    ids=["default", "passive", "active", "spin count", "already started"],
)
def test_openmp_threads_sleep_unless_the_user_says_otherwise(code, environment, spins):
    code += """
import os
before = dict(os.environ)
threads.threading_layer()
assert dict(os.environ) == before
print(threads._layer.spins)
"""
    assert run(code, **OMP, **environment) == [str(spins)]


@linux
def test_spinning_threads_that_stall_are_given_up():
    code = """
import time

def launch(seconds, nbytes):
    granted = threads.acquire(2, nbytes)
    time.sleep(seconds)
    threads.release(granted)
    return granted

assert {launch(0.02, 1000) for _ in range(10)} == {2}
assert {launch(0.0, 1000) for _ in range(20)} == {2}  # so these were no series
assert {launch(0.02, 10**9) for _ in range(20)} == {2}  # so much memory may take its time
assert {launch(0.02, 1000) for _ in range(16)} == {2}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert {launch(0.0, 1000) for _ in range(3)} == {1}
    variable, serial = ones(), ones()
    train(new(), variable, 0)
    train(new(num_threads=1), serial, 0)
    assert np.array_equal(variable, serial)
print(len(caught), caught[0].category.__name__, "tbb" in str(caught[0].message),
      "OMP_WAIT_POLICY=passive" in str(caught[0].message))
"""
    said = run(code, **OMP, OMP_WAIT_POLICY="active")
    assert said == ["1", "RuntimeWarning", "True", "True"]


# --- how many processors there are ----------------------------------------------------------


def test_the_limit_is_the_least_of_all(monkeypatch):
    found = {"affinity": 8, "control_group": None, "SLURM_CPUS_PER_TASK": 3, "NUMBA": 4}
    monkeypatch.setattr(processors, "limits", lambda: found)
    assert processors.thread_limit() == 3
    found["control_group"] = 1
    assert processors.thread_limit() == 1


@pytest.mark.parametrize(
    ("text", "cpus"), [("4", 4), ("", None), ("0", None), ("2(x3)", None), ("-1", None)]
)
def test_slurm(monkeypatch, text, cpus):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", text)
    assert processors.slurm_cpus() == cpus
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert processors.slurm_cpus() is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_and_numbas_own_limit():
    code = """
import os
one = min(os.sched_getaffinity(0))
print(threads.thread_limit())
os.sched_setaffinity(0, {one})
print(threads.thread_limit())
"""
    cpus = len(os.sched_getaffinity(0))
    assert run(code, NUMBA_NUM_THREADS="1") == ["1", "1"]
    assert run(code, NUMBA_NUM_THREADS="1000")[1] == "1"
    assert int(run(code, NUMBA_NUM_THREADS="1000")[0]) <= cpus


def control_groups(root, membership, files):
    """A root folder with the control groups of a made-up machine."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {}, None),
        # a SLURM job: the narrowest of the enclosing groups counts
        (
            "0::/slurm/job_7/step_0\n",
            {
                "slurm/job_7/step_0/cpu.max": "max 100000",
                "slurm/job_7/cpu.max": "400000 100000",
                "slurm/cpu.max": "800000 100000",
            },
            4,
        ),
        # a container that is told its path on the host, and sees its own group as the root
        ("0::/docker/0123abc\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/../../outside\n", {"cpu.max": "300000 100000"}, 3),
        # version 1
        (
            "4:cpu,cpuacct:/docker/0123abc\n1:name=systemd:/\n",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpu,cpuacct:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000",
            },
            2,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "0"}, None),
    ],
)
def test_control_groups(tmp_path, membership, files, quota):
    root = control_groups(tmp_path, membership, files)
    assert processors.control_group_quota(root) == quota


def test_a_machine_without_control_groups(tmp_path):
    assert processors.control_group_quota(tmp_path) is None


# --- when threads pay -----------------------------------------------------------------------


def test_threads_are_used_where_they_save_more_than_their_start(monkeypatch):
    from rmsjit.runtime import threads

    clock = [100.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(threads, "_last_use", float("-inf"))
    tight, after_pause = 2 * threads.LAUNCH_BYTES, 2 * threads.IDLE_LAUNCH_BYTES
    assert threads.worth(2, tight - 1) == 1
    assert threads.worth(2, tight) == 1  # the threads sleep
    clock[0] += 0.0005
    assert threads.worth(2, tight) == 2  # the first call was 0.5 ms ago
    clock[0] += 0.01
    assert threads.worth(2, after_pause - 1) == 1
    clock[0] += 0.01
    assert threads.worth(2, after_pause) == 2
    assert threads.worth(1, 100 * after_pause) == 1


def test_many_threads_pay_for_less_work_than_two():
    from rmsjit.runtime import threads

    assert not threads.may_pay(2, 1.5 * threads.LAUNCH_BYTES)
    assert threads.may_pay(16, 1.5 * threads.LAUNCH_BYTES)
