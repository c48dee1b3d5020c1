"""A forked child trains on under every threading layer, whatever its parent was in."""

import os

import pytest

from strategies import run_python
from test_threads import ACTS, COMMON, LAYERS, linux

pytestmark = [
    linux,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.slow,
]

FORKS = """
import multiprocessing, os, signal, time, traceback

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def forked(function):
    \"\"\"Run it in a forked child, and say how that ended.\"\"\"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return ended(child)

def ended(child, patience=60):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")

def warned(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    for warning in caught:
        assert warning.category is RuntimeWarning and "one thread" in str(warning.message), warning
    return len(caught)

expected, reference = ones(), new(num_threads=1)
train(reference, expected, 0)
train(reference, expected, 1)

def halfway():
    optimizer, variable = new(), ones()
    train(optimizer, variable, 0)
    return optimizer, variable

def goes_on(optimizer, variable):
    \"\"\"A known variable and a new one, the same optimizer and a new one.\"\"\"
    train(optimizer, variable, 1)
    assert np.array_equal(variable, expected)
    first, second = ones(), ones()
    train(optimizer, first, 0)
    train(new(), second, 0)
    assert np.array_equal(first, second)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def run(code, **environment):
    return run_python(COMMON + FORKS + code, **environment).split("\n")[:-1]


@pytest.mark.parametrize("layer", LAYERS)
def test_children_and_grandchildren(layer):
    """After GNU OpenMP they say once each that they have one thread."""
    code = """
optimizer, variable = halfway()
multiprocessing.set_start_method("fork")

def child():
    mine = variable.copy()  # not the memory that the optimizer knows
    say("child", warned(lambda: goes_on(optimizer, variable)))
    forked(lambda: say("grandchild", warned(lambda: train(optimizer, mine, 0))))

forked(child)
process = multiprocessing.Process(
    target=lambda: say("process", warned(lambda: goes_on(optimizer, variable)))
)
process.start()
process.join()
assert process.exitcode == 0
goes_on(optimizer, variable)
say(threads.layer_name())
"""
    warned = int(layer == "omp")
    expected = [f"child {warned}", f"grandchild {warned}", f"process {warned}", layer]
    assert run(code, NUMBA_THREADING_LAYER=layer) == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_forks_while_other_threads_launch(layer):
    code = """
optimizer, variable = halfway()
stop = threading.Event()

def busy():
    mine, own = new(), ones()
    while not stop.is_set():
        train(mine, own, 2)

workers = [threading.Thread(target=busy) for _ in range(2)]
for worker in workers: worker.start()
time.sleep(0.1)
try:
    for _ in range(6):
        forked(lambda: warned(lambda: goes_on(optimizer, variable)))
finally:
    stop.set()
    for worker in workers: worker.join()
goes_on(optimizer, variable)
say("fine")
"""
    assert run(code, NUMBA_THREADING_LAYER=layer)[-1] == "fine"


def test_a_fork_by_another_thread_than_the_one_that_has_started_tbb():
    """The child leaves TBB alone, and ends: Numba's clean-up would wait for ever."""
    code = """
optimizer, variable = halfway()
answers = []

def fork_and_exit():
    child = os.fork()
    if child == 0:
        say(warned(lambda: goes_on(optimizer, variable)))
    else:
        answers.append(child)

def start():
    trained = halfway()

if threads._layer.name == "tbb":
    at_once(lambda: forked(lambda: say(warned(lambda: goes_on(optimizer, variable)))))
"""
    assert run(code, NUMBA_THREADING_LAYER="default") in (["1"], [])


def test_a_child_ends_where_a_worker_thread_has_started_tbb():
    code = """
answers = []
at_once(lambda: answers.append(halfway()))
optimizer, variable = answers[0]
child = os.fork()
if child == 0:
    say(warned(lambda: goes_on(optimizer, variable)))
    sys.exit(0)  # with all of the interpreter's clean-up, unlike os._exit
ended(child)
goes_on(optimizer, variable)
"""
    assert run(code, NUMBA_THREADING_LAYER="default") in (["1"], ["0"])


def test_openmp_that_somebody_else_has_started():
    """The parent's own Numba code runs on OpenMP, and rmsjit comes in after the fork only."""
    code = """
import multiprocessing, os
import numba

multiprocessing.set_start_method("fork")
numba.get_num_threads()  # starts it

def child():
    exec(CODE, {"__name__": "child"})

process = multiprocessing.Process(target=child)
process.start()
process.join()
assert process.exitcode == 0, process.exitcode
"""
    inner = COMMON + FORKS + "say(warned(lambda: goes_on(*halfway())))"
    program = f"CODE = {inner!r}\n" + code
    assert run_python(program, NUMBA_THREADING_LAYER="omp").split() == ["1"]
    code = """
import numba
numba.get_num_threads()
forked(lambda: say(warned(lambda: goes_on(*halfway()))))
"""
    assert run(code, NUMBA_THREADING_LAYER="omp") == ["1"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_loads_parallel_kernels_that_it_may_not_launch(layer):
    """Such as one that compiles ahead for others."""
    code = """
from rmsjit.kernels import loader
from rmsjit.runtime import cache

halfway()
loader.run_on_threads.cache_clear()
cache._kernels.clear()
forked(loader.run_on_threads)
say("fine")
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == ["fine"]


# --- the gate -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_a_fork_waits_for_a_launch_and_steps_do_not_wait_for_it(layer):
    """Meanwhile they run on one thread, with the same bits."""
    code = """
optimizer, variable = halfway()
serial = ones()
train(new(num_threads=1), serial, 0)
goes_on(optimizer, variable)  # so that all kernels are there
forked_at, seen = [], []
real = act.Act.run

def noting(self):
    status = real(self)
    seen.append((self.threads, status))
    return status

def child():
    assert forks.gate[[0, 1, 3]].tolist() == [0, 0, 0]
    warned(lambda: train(new(), ones(), 0))

def fork():
    warnings.simplefilter("ignore", DeprecationWarning)
    forked(lambda: warned(child))
    forked_at.append(held.go.is_set())

mine, own = new(num_threads=2), ones()
train(mine, own, 0)
forker = threading.Thread(target=fork)
with Held() as held:
    forker.start()
    while not forks.gate[1]:
        time.sleep(0.001)
    assert forks.gate[0] == 1
    act.Act.run = noting
    train(mine, own, 1)
    act.Act.run = real
    assert not forked_at and forks.gate[1] == 1
forker.join()
assert forked_at == [True]
assert np.array_equal(own, expected)
assert {(2, act.CLOSED), (1, act.DONE)} == set(seen), set(seen)
assert forks.gate[[0, 1, 3]].tolist() == [0, 0, 0]
assert act_of(lambda: None, 2).run() == act.DONE
say(threads.layer_name())
"""
    assert run(ACTS + code, NUMBA_THREADING_LAYER=layer) == [layer]


def test_a_fork_does_not_wait_for_ever():
    """A launch that hangs must not hang the fork as well."""
    code = """
forks._PATIENCE = 0.2
optimizer, variable = halfway()
with Held():
    forked(lambda: say(forks.gate[[0, 1, 3]].tolist()))
    assert forks.gate[:2].tolist() == [1, 0]
goes_on(optimizer, variable)
say("fine")
"""
    assert run(ACTS + code) == ["[0, 0, 0]", "fine"]


# --- locks ----------------------------------------------------------------------------------


def test_a_fork_waits_for_a_compilation():
    code = """
from rmsjit.runtime import cache

obtain, begun = cache._obtained, threading.Event()

def slowly(*arguments):
    begun.set()
    time.sleep(0.5)
    return obtain(*arguments)

cache._obtained = slowly
worker = threading.Thread(target=halfway)
worker.start()
begun.wait()
start = time.monotonic()
forked(lambda: warned(lambda: goes_on(*halfway())))
worker.join()
say("fine")
"""
    assert run(code) == ["fine"]


def test_no_lock_of_the_package_stays_held_in_a_child():
    """Every lock is held by another thread at the fork, but that of a compilation."""
    code = """
optimizer, variable = halfway()
held, stop = threading.Event(), threading.Event()

def hold():
    with optimizer._store.lock.lock, threads._start_lock.lock:
        held.set()
        stop.wait()

worker = threading.Thread(target=hold)
worker.start()
held.wait()
forked(lambda: warned(lambda: goes_on(optimizer, variable)))
stop.set()
worker.join()
goes_on(optimizer, variable)
say("fine")
"""
    assert run(code) == ["fine"]


def test_every_lock_is_known_to_the_fork_hooks():
    """A plain lock would be held for ever in a child; this finds those that may be."""
    from pathlib import Path

    import rmsjit

    root = Path(rmsjit.__file__).parent
    plain = {
        str(path.relative_to(root).as_posix()): path.read_text().count("Lock()")
        for path in root.rglob("*.py")
        if "threading.Lock()" in path.read_text() or "threading.RLock()" in path.read_text()
    }
    assert plain.keys() == {"runtime/forks.py"}


def test_a_thread_may_fork_while_it_is_undisturbed_itself():
    code = """
from rmsjit.runtime import forks

optimizer, variable = halfway()
with forks.undisturbed(), optimizer._store.lock.lock:
    forked(lambda: warned(lambda: goes_on(optimizer, variable)))
    at_once(lambda: goes_on(*halfway()))
assert not forks._busy and not forks._forking
goes_on(optimizer, variable)
say("fine")
"""
    assert run(code) == ["fine"]


# --- imports --------------------------------------------------------------------------------

FIRST_STEP = """
import os, signal, sys, threading, time, warnings
import numpy as np

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
TARGET, LOGGING = sys.argv[1:3]
begun = threading.Event()

class Slow:
    \"\"\"Tells when a module is about to be imported, and lets a fork begin meanwhile.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name == TARGET and not begun.is_set():
            begun.set()
            time.sleep(0.3)

sys.meta_path.insert(0, Slow())

def step():
    import rmsjit
    optimizer, variable = rmsjit.RMSprop(0.01), np.ones(9)
    if TARGET.startswith("autograd"):
        optimizer.minimize(lambda v: (v * v).sum(), [variable])
    else:
        optimizer.apply_gradients([(np.ones(9), variable)])

import rmsjit
if LOGGING == "before":
    import logging
if not TARGET.endswith("keras_legacy"):
    rmsjit.RMSprop
if LOGGING == "after":
    import logging
worker = threading.Thread(target=step)
worker.start()
begun.wait()
start = time.monotonic()
child = os.fork()
if child == 0:
    signal.alarm(20)
    step()
    os._exit(0)
assert time.monotonic() - start < 25  # seconds, and not those after which a fork gives up
assert os.waitpid(child, 0)[1] == 0
worker.join()
print("fine")
"""


@pytest.mark.parametrize("logging", ["before", "after", "not"])
@pytest.mark.parametrize(
    "target",
    ["rmsjit.optimizers.keras_legacy", "rmsjit.steps.engine", "numba.core", "autograd.core"],
)
def test_a_fork_waits_for_the_imports_of_a_first_step(target, logging):
    assert run_python(FIRST_STEP, target, logging) == "fine\n"
