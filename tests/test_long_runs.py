"""Long runs: no growth, nothing kept alive, no warnings."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from strategies import run_python

TRAINING = """
import gc, sys, tracemalloc
import numpy as np
import rmsjit

def resident():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0

def measured(step, steps):
    \"\"\"Growth of Python's memory over a tenth of the steps, and of the process over all.\"\"\"
    for _ in range(200):
        step()
    tracemalloc.start()
    traced = []
    for _ in range(4):
        for _ in range(steps // 10):
            step()
        gc.collect()
        traced.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    process = resident()
    for _ in range(steps):
        step()
    gc.collect()
    # The first is warm-up; a leak shows in both others, a table that is resized once does not.
    return min(traced[2] - traced[1], traced[3] - traced[2]), resident() - process

random = np.random.default_rng(0)
"""

CASES = {
    "dense": """
variables = [np.ones(n, np.float32) for n in (1, 100, 1000)]
optimizer = rmsjit.RMSprop(
    rmsjit.schedules.ExponentialDecay(0.01, 100, 0.96), momentum=0.9, centered=True, clipnorm=1.0
)

def step():
    gradients = [random.standard_normal(v.shape, np.float32) for v in variables]
    optimizer.apply_gradients(zip(gradients, variables))
""",
    "parallel": """
variable = np.ones(150_000, np.float32)
gradient = random.standard_normal(150_000, np.float32)
optimizer = rmsjit.RMSprop(0.001, momentum=0.9, num_threads=2)

def step():
    optimizer.apply_gradients([(gradient, variable)])
""",
    "sparse": """
table = np.ones((1000, 4), np.float32)
optimizer = rmsjit.RMSprop(0.01, momentum=0.9, sparse="exact")

def step():
    rows = random.integers(0, 1000, 20)
    values = random.standard_normal((20, 4), np.float32)
    optimizer.apply_gradients([(rmsjit.IndexedSlices(values, rows), table)])
""",
    "views": """
variable = np.ones((30, 40), np.float32)
optimizer = rmsjit.train.RMSPropOptimizer(0.01)
gradient = np.ones((30, 40))

def step():
    optimizer.apply_gradients([(gradient.astype(np.float32), variable[...])])
    optimizer.apply_gradients([(gradient.T.tolist(), variable.T)])
""",
    "new ones": """
def step():
    optimizer, variable = rmsjit.RMSprop(0.01, momentum=0.9), np.ones(300)
    optimizer.apply_gradients([(np.ones(300), variable)])
    optimizer.apply_gradients([(np.ones(300), variable)])
""",
}


def check_growth(case, steps):
    code = TRAINING + CASES[case] + f"print(*measured(step, {steps}))"
    traced, resident = map(int, run_python(code).split())
    assert traced < 2 * steps + 5_000  # an object per step would be more, from some steps on
    assert resident < 4 << 20


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_growth(case):
    check_growth(case, 5_000 if case == "dense" else 1_000)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_no_growth_in_200_000_steps(case):
    check_growth(case, 200_000)


def trained(sparse):
    variable = rmsjit.Variable(np.ones((50, 4), np.float32))
    optimizer = rmsjit.RMSprop(momentum=0.9, centered=True, global_clipnorm=1.0, sparse=sparse)
    gradient = np.ones((50, 4), np.float32)
    rows = rmsjit.IndexedSlices(gradient[:3], [1, 5, 1])
    for g in (gradient, gradient, rows, rows):
        optimizer.apply_gradients([(g, variable)])
    slot = optimizer.get_slot(variable, "rms")
    return optimizer, variable, gradient, slot.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("sparse", ["rows", "exact"])
def test_what_is_dropped_is_freed(sparse):
    optimizer, variable, gradient, slot = trained(sparse)
    names = ("optimizer", "variable", "gradient", "slot")
    objects = (optimizer, variable, gradient, slot)
    watched = dict(zip(names, map(weakref.ref, objects), strict=True))
    del objects, optimizer, gradient, slot
    gc.collect()
    alive = [name for name, ref in watched.items() if ref() is not None]
    assert alive == ["variable"]
    del variable
    gc.collect()
    assert [name for name, ref in watched.items() if ref() is not None] == []


def test_a_last_gradient_is_not_kept_alive():
    """It may be as large as the model."""
    variable, gradient = np.ones(1000), np.ones(1000)
    optimizer = rmsjit.RMSprop()
    for _ in range(2):
        optimizer.apply_gradients([(gradient, variable)])
    watched = weakref.ref(gradient)
    del gradient
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.filterwarnings("error")
def test_numbers_at_the_edge_give_no_warnings(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    limits = ml_dtypes.finfo(dtype)
    numbers = [0.0, float(limits.tiny), float(limits.max), -float(limits.max), np.inf, np.nan]
    gradient = np.array(numbers * 8, dtype)
    for clipping in ({}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        variable = np.ones(gradient.shape, dtype)
        optimizer = rmsjit.RMSprop(0.01, momentum=0.9, centered=True, **clipping)
        for _ in range(3):
            optimizer.apply_gradients([(gradient, variable)])
        rows = rmsjit.IndexedSlices(gradient[:6, None], range(6))
        table = np.ones((8, 1), dtype)
        optimizer.apply_gradients([(rows, table)])


@pytest.mark.slow
def test_no_warnings_from_a_whole_process():
    """Starting threads and training, with every warning an error."""
    code = """
import numpy as np
import rmsjit
for size in (10, 1_100_000):
    variable = np.ones(size, np.float32)
    rmsjit.RMSprop(clipnorm=1.0).apply_gradients([(variable * np.inf, variable)])
"""
    run_python(code)
