"""Many Python threads at once under every threading layer, and how many threads a step gets."""

import importlib.metadata
import os
import sys
import threading

import numpy as np
import pytest

from rmsjit.runtime import processors
from strategies import run_python

linux = pytest.mark.skipif(sys.platform != "linux", reason="only there are all layers at hand")

LAYERS = ("tbb", "omp", "workqueue")
every_layer = pytest.mark.parametrize(
    "layer", ["tbb", *(pytest.param(layer, marks=pytest.mark.slow) for layer in LAYERS[1:])]
)

# Few elements, so that the tests are quick, and threads whether they pay or not.
COMMON = """
import sys, threading, warnings
import numpy as np
import rmsjit
from rmsjit.runtime import threads, trials

trials.Trials.choose = lambda self: max(self.candidates)

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

# Acts whose kernels are Python functions, so that a test can look and wait inside a launch.
ACTS = """
import ctypes
from rmsjit.runtime import forks
from rmsjit.runtime.cache import Kernel
from rmsjit.steps import act

kept = []

def act_of(function, wanted, **options):
    def called(address):
        function()
        return 0

    kept.append(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(called))
    kernel = Kernel(None, ctypes.cast(kept[-1], ctypes.c_void_p).value)
    call = act.Call(kernel, np.zeros(1, np.int64))
    return act.Act([call], launch=threads.launch(wanted), **options)

class Held:
    \"\"\"Another thread within an act on several threads, while the block lasts.\"\"\"

    def __enter__(self):
        self.inside, self.go, self.statuses = threading.Event(), threading.Event(), []
        held = act_of(lambda: (self.inside.set(), self.go.wait()), 2)
        assert held.threads == 2
        self.worker = threading.Thread(target=lambda: self.statuses.append(held.run()))
        self.worker.start()
        self.inside.wait()
        return self

    def __exit__(self, *error):
        self.go.set()
        self.worker.join()
        assert self.statuses == [act.DONE]
"""


def run(code, **environment):
    return run_python(COMMON + code, **environment).split()


@pytest.mark.slow
@linux
@every_layer
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
print(threads.layer_name())
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == [layer]


@pytest.mark.slow
@linux
@every_layer
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
print(threads.layer_name())
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == [layer]


@pytest.mark.slow
@linux
@every_layer
def test_only_a_busy_workqueue_leaves_the_serial_kernels(layer):
    """Which give the same bits; what TBB and OpenMP may do is not held up."""
    code = """
steps, serial, variable = [], ones(), ones()
train(new(num_threads=1), serial, 0)
real = act.Act.run

def noting(self):
    status = real(self)
    steps.append((self.threads, status))
    return status

with Held():
    assert forks.gate.tolist() == [1, 0, int(threads.layer_name() == "workqueue")] + [
        int(threads.layer_name() == "workqueue")
    ]
    act.Act.run = noting
    optimizer = new(num_threads=2)
    train(optimizer, variable, 0)
    assert int(optimizer.iterations) == 10
    act.Act.run = real
assert np.array_equal(variable, serial)
assert not forks.gate[[0, 1, 3]].any()
launched, closed = {count for count, status in steps if status == act.DONE}, [
    count for count, status in steps if status == act.CLOSED
]
print(threads.layer_name(), *launched, bool(closed), {*closed} <= {2})
assert act_of(lambda: None, 2).run() == act.DONE
"""
    said = run(ACTS + code, NUMBA_THREADING_LAYER=layer)
    busy = layer == "workqueue"
    assert said[0] == layer
    assert said[1:] == (["1", "True", "True"] if busy else ["2", "False", "True"])


@pytest.mark.slow
def test_the_users_number_of_threads_is_honoured_and_put_back():
    """It is changed within an act only, whether that is done or refused."""
    code = """
import numba

def show():
    print(numba.get_num_threads())

variable = ones()
train(new(), variable, 0)
numba.set_num_threads(3)
for limit in (2, 3, 64):
    counted = act_of(show, limit)
    print(counted.threads)
    assert counted.run() == act.DONE
    show()
at_once(show)  # in another thread it is Numba's own
full = act_of(show, 2, counter=np.array(2**31 - 1, np.int32))
assert full.run() == act.FULL
show()
numba.set_num_threads(1)
print(threads.launch(2).threads)
train(new(num_threads=64), variable, 0)
show()
"""
    numbers = run(ACTS + code, NUMBA_NUM_THREADS="4")
    assert numbers == ["2", "2", "3", "3", "3", "3", "3", "3", "3", "4", "3", "1", "1"]


@pytest.mark.slow
def test_a_launch_that_the_user_narrows_runs_on_fewer():
    """The number is read anew for every step: plans do not keep it."""
    code = """
import numba

threads.start()  # before Numba does so by itself, spinning
optimizer, variable, counts = new(num_threads=3), ones(), []
real = act.Act.run
act.Act.run = lambda self: (counts.append(self.threads), real(self))[1]
for number in (3, 2, 1, 3):
    numba.set_num_threads(number)
    train(optimizer, variable, 0)
    counts.append("|")
    assert numba.get_num_threads() == number
print(*("".join(map(str, counts)).split("|")))
"""
    counts = [set(said) for said in run(ACTS + code, NUMBA_NUM_THREADS="4")]
    assert counts == [{"3"}, {"2"}, {"1"}, {"3"}]


@pytest.mark.slow
@linux
def test_tbb_is_found_where_pip_has_put_it():
    try:
        importlib.metadata.version("tbb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tbb is not installed")
    assert run("print(threads.layer_name())", NUMBA_THREADING_LAYER="default") == ["tbb"]


@pytest.mark.slow
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
print(threads.layer_name())
assert before == (config.THREADING_LAYER, config.THREADING_LAYER_PRIORITY)
"""
    assert run(code, **environment) == ["omp"]


@pytest.mark.slow
@linux
def test_a_parallel_kernel_that_is_loaded_ahead_starts_the_same_layer():
    """Numba would start its threads by itself then, without TBB, or spinning."""
    code = """
from rmsjit.kernels import loader
loader.run_on_threads()
print(threads._layer.name, threads._layer.started_before, threads._layer.spins)
"""
    assert run(code, NUMBA_THREADING_LAYER="omp") == ["omp", "False", "False"]
    by_itself = run("print(threads.layer_name())", NUMBA_THREADING_LAYER="default")
    assert run(code, NUMBA_THREADING_LAYER="default")[:1] == by_itself


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
print(threads.layer_name())
"""
    assert run(code, NUMBA_THREADING_LAYER="default")[0] in ("omp", "workqueue")


# --- stalls of GNU OpenMP -------------------------------------------------------------------

OMP = {"NUMBA_THREADING_LAYER": "omp"}


@pytest.mark.slow
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
threads.layer_name()
assert dict(os.environ) == before
print(threads._layer.spins)
"""
    assert run(code, **OMP, **environment) == [str(spins)]


@pytest.mark.slow
@linux
def test_spinning_threads_that_stall_are_given_up():
    code = """
def launch(seconds, nbytes):
    granted = threads.launch(2).threads
    threads.launched(seconds, nbytes)
    return granted

assert {launch(0.02, 1000) for _ in range(10)} == {2}
assert {launch(0.0, 1000) for _ in range(20)} == {2}  # so these were no series
assert {launch(0.02, 10**9) for _ in range(20)} == {2}  # so much memory may take its time
assert {launch(0.02, 0) for _ in range(20)} == {2}  # of unknown work
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
    ("text", "cpus"),
    [("4", 4), ("", None), ("0", None), ("2(x3)", None), ("-1", None), ("²", None)],
)
def test_slurm(monkeypatch, text, cpus):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", text)
    assert processors.slurm_cpus() == cpus
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert processors.slurm_cpus() is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_and_numbas_own_limit():
    code = """
import os
one = min(os.sched_getaffinity(0))
from rmsjit.runtime.processors import thread_limit
print(thread_limit())
os.sched_setaffinity(0, {one})
print(thread_limit())
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


# --- other interpreters in the process ------------------------------------------------------


@pytest.mark.slow
@every_layer
def test_the_one_subinterpreter_that_numpy_allows_steps_like_the_main_one(layer):
    """NumPy can be imported by one interpreter of a process, whichever that is."""
    interpreters = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    pytest.importorskip(interpreters)
    shared_gil = '"legacy"' if sys.version_info >= (3, 13) else ""
    steps = (
        COMMON.replace("import numpy as np", "warnings.simplefilter('ignore'); import numpy as np")
        + """
w, optimizer = np.ones(300_000, np.float32), rmsjit.RMSprop(0.01)
for gradient in gradients(0):
    optimizer.apply_gradients([(gradient, w)])
print(w.sum(dtype=float).hex())
"""
    )
    code = f"""
import {interpreters} as interpreters
failed = interpreters.run_string(interpreters.create({shared_gil}), {steps!r})
assert failed is None, failed
"""
    run = {"NUMBA_THREADING_LAYER": layer}
    assert run_python(code, **run) == run_python(steps, **run)


# --- the count of steps ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
def test_no_step_is_lost_from_the_count(dtype):
    """Acts run without the GIL, so two of them may count at the same instant."""
    from rmsjit.kernels import loader
    from rmsjit.steps.act import Act, Call

    counter, rounds, steps = np.array(0, dtype), 20, 20_000
    one_step = Act([], counter)
    acts = [Act([Call(loader.run_act(), one_step.words)] * steps) for _ in range(2)]

    def count(act):
        for _ in range(rounds):
            act.run()

    workers = [threading.Thread(target=count, args=(act,)) for act in acts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert int(counter) == 2 * rounds * steps
