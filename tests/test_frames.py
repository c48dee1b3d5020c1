"""How many Python functions a small step of known variables enters, and whose they are."""

import gc
from pathlib import Path

import numpy as np
import pytest

import rmsjit
from rmsjit.autodiff import hooks
from rmsjit.steps.engine import Engine
from strategies import frames_of, run_python

PACKAGE = Path(rmsjit.__file__).parent
MOST = 9

OPTIMIZERS = {
    "plain": lambda: rmsjit.RMSprop(),
    "momentum": lambda: rmsjit.RMSprop(momentum=0.9),
    "clipvalue": lambda: rmsjit.RMSprop(clipvalue=0.5),
    "train": lambda: rmsjit.train.RMSPropOptimizer(0.01),
}
VARIABLES = {
    "one": lambda: [np.ones(8, np.float32)],
    "several": lambda: [np.ones((2, 3)), np.ones(5, np.float16), np.ones(())],
    "Variable": lambda: [rmsjit.Variable(np.ones(8, np.float32))],
}


def frames_of_known_step(optimizer, variables):
    """Those of a step that the optimizer has taken before, such as every step of a training."""
    pairs = [(np.ones(v.shape, v.dtype), v) for v in variables]
    for _ in range(3):
        optimizer.apply_gradients(pairs)
    return frames_of(optimizer.apply_gradients, pairs)


@pytest.fixture(autouse=True)
def without_tapes(monkeypatch):
    """One of another test may be alive: NumPy never frees the operand of a refused `reduce`."""
    monkeypatch.setattr(hooks, "live", {})


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_small_step_enters_few_functions(name, variables):
    frames = frames_of_known_step(OPTIMIZERS[name](), VARIABLES[variables]())
    names = [code.co_qualname for code in frames]
    assert len(names) <= MOST, names
    homes = [Path(code.co_filename).relative_to(PACKAGE).parts[0] for code in frames]
    assert homes[0] == "optimizers"
    after = homes[frames.index(Engine.step.__code__) :]
    assert "optimizers" not in after, list(zip(names, homes, strict=True))


def test_every_function_is_counted():
    def inner():
        return len([1])

    def outer():
        return [inner() for _ in range(2)]

    assert [code.co_name for code in frames_of(outer)].count("inner") == 2


def test_a_garbage_collection_is_not_counted():
    """Nor what libraries have it call."""

    def collecting(phase, info):
        pass

    before = gc.get_threshold()
    gc.set_threshold(1)
    gc.callbacks.append(collecting)
    try:
        frames = frames_of(lambda: [[] for _ in range(1000)])
    finally:
        gc.callbacks.remove(collecting)
        gc.set_threshold(*before)
    assert collecting.__code__ not in frames


READ_BY_STEPS = """
import gc
import numpy as np
import rmsjit

class Plain:
    def __init__(self):
        self.value = 1.0

def has_dictionary(thing):
    held = gc.get_referents(thing)
    return any(one is vars(thing) for one in held)

optimizer, variable = rmsjit.RMSprop(clipvalue=0.5), np.ones(8, np.float32)
for _ in range(3):
    optimizer.apply_gradients([(np.ones(8, np.float32), variable)])
engine = optimizer._engine
read = [optimizer, optimizer._hyperparameters, engine]
plan = engine._plans.last.plan
read += [plan, plan.layout, plan.updates, plan.bindings, *plan.bindings.free]
always = has_dictionary(Plain())  # in this version of Python
print(*(type(thing).__name__ for thing in read if has_dictionary(thing) and not always))
"""


@pytest.mark.slow
def test_attributes_that_steps_read_stay_compact():
    """Python has made no dictionary of them, which would slow down each.

    In a process of its own: what other tests do can have Python make one.
    """
    assert run_python(READ_BY_STEPS).split() == []
