"""Exceptions and signals at any moment of a step or a save: it is done whole, or not begun."""

import copy
import os
import signal
import sys

import numpy as np
import pytest

import rmsjit
from rmsjit import IndexedSlices, RMSprop
from rmsjit.train import RMSPropOptimizer
from strategies import Interrupted, interrupted_at


def noise(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def slices(seed):
    rng = np.random.default_rng(seed)
    return IndexedSlices(rng.normal(size=(5, 3)), rng.integers(0, 8, 5))


def dense(step):
    return [noise(6, seed=step)]


# For each: how to make an optimizer, variables, and the gradients of a step.
SCENARIOS = {
    "one variable": (RMSprop, lambda: [np.ones(6)], dense),
    "TensorFlow 1": (lambda: RMSPropOptimizer(0.1, momentum=0.5), lambda: [np.ones(6)], dense),
    "two dtypes": (
        lambda: RMSprop(momentum=0.5, centered=True),
        lambda: [np.ones(6), np.ones(4, np.float32)],
        lambda step: [noise(6, seed=step), noise(4, seed=step, dtype=np.float32)],
    ),
    "strided": (RMSprop, lambda: [np.ones((6, 4))[:, ::2]], lambda step: [noise(6, 2, seed=step)]),
    "Variable": (RMSprop, lambda: [rmsjit.Variable(np.ones(6))], dense),
    "twice": (RMSprop, lambda: [np.ones(6)] * 2, lambda step: dense(step) + dense(99)),
    "norms": (
        lambda: RMSprop(global_clipnorm=0.1),
        lambda: [np.ones(6), np.ones(4)],
        lambda step: [noise(6, seed=step), noise(4, seed=step)],
    ),
    "a callable": (lambda: RMSprop(lambda: 0.1, clipnorm=0.1), lambda: [np.ones(6)], dense),
    "rows": (RMSprop, lambda: [np.ones((8, 3))], lambda step: [slices(step)]),
    "exact": (
        lambda: RMSprop(momentum=0.5, sparse="exact"),
        lambda: [np.ones((8, 3)), np.ones(4, np.float32)],
        lambda step: [slices(step), noise(4, seed=step, dtype=np.float32)],
    ),
    "exact and strided": (
        lambda: RMSprop(momentum=0.5, sparse="exact"),
        lambda: [np.ones((8, 6))[:, ::2]],
        lambda step: [slices(step)],
    ),
}
CASES = [
    *((name, 2, 1) for name in SCENARIOS),
    ("exact", 0, 3),  # the first step runs many more lines
    *(
        pytest.param(name, 0, 1, marks=pytest.mark.long)
        for name in ("exact", "two dtypes", "a callable")
    ),
]

# A file whose reading is interrupted is closed with its object, of which Python warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(optimizer, variables):
    """Everything that a step changes, read without effect on the optimizer."""
    arrays = [np.array(getattr(v, "array", v)) for v in variables]
    for variable in variables:
        for name in ("rms", "mg", "momentum"):
            slot = optimizer._store.slot_of(variable, name)
            arrays.append(np.zeros(0) if slot is None else np.array(slot.array))
        entry = optimizer._store.find(variable)
        if entry is not None and entry.clock is not None:
            arrays += [np.array(entry.clock.now), entry.clock.done.copy()]
    return [array.tobytes() for array in arrays]


def began(scenario, steps):
    """An optimizer after some steps, its variables, and the function that takes the next one."""
    make, new, gradients = scenario
    optimizer, variables = make(), new()
    counter = rmsjit.Variable(0)
    counts = {"global_step": counter} if isinstance(optimizer, RMSPropOptimizer) else {}

    def step(number):
        optimizer.apply_gradients(list(zip(gradients(number), variables, strict=True)), **counts)

    for number in range(steps):
        step(number)
    taken = (lambda: int(counter)) if counts else (lambda: int(optimizer.iterations))
    return optimizer, variables, step, taken


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "apart"), CASES)
def test_a_step_interrupted_at_every_line(name, steps, apart):
    scenario, states = SCENARIOS[name], {}
    for number in (steps, steps + 1, steps + 2):
        optimizer, variables, _, _ = began(scenario, number)
        states[number] = state_of(optimizer, variables)
    outcomes, line, came = set(), 0, True
    while came:
        line += apart
        optimizer, variables, step, taken = began(scenario, steps)
        came = interrupted_at(line, lambda: step(steps))  # noqa: B023
        number = taken()
        found = state_of(optimizer, variables)
        if number > 0:
            assert found == states[number], line
        else:  # slots may have been made, but no more than that
            assert found[: len(variables)] == states[0][: len(variables)], line
        outcomes.add(number)
        if number == steps:
            step(steps)
        step(steps + 1)
        assert state_of(optimizer, variables) == states[steps + 2], line
    assert outcomes == {steps, steps + 1}
    assert line > 20


@pytest.mark.slow
def test_a_step_with_constraints_interrupted_at_every_line():
    """The step is counted after the constraints, which come after all updates."""

    def began():
        constraint = lambda w: np.maximum(w, 0.5)  # noqa: E731
        pair = [rmsjit.Variable(np.ones(4), constraint=constraint), np.ones(3, np.float32)]
        return RMSprop(0.4), pair

    line, came = 0, True
    while came:
        line += 1
        optimizer, (first, second) = began()
        pairs = [(np.ones(4), first), (np.ones(3, np.float32), second)]
        came = interrupted_at(line, lambda: optimizer.apply_gradients(pairs))  # noqa: B023
        moved = [
            bool((np.asarray(v.numpy() if v is first else v) != 1).any()) for v in (first, second)
        ]
        assert moved[0] == moved[1], line
        assert int(optimizer.iterations) in ((0, 1) if moved[0] else (0,))
    assert moved == [True, True]
    assert (first.numpy() == 0.5).all()


def started(**settings):
    """An optimizer that knows the first of two variables."""
    optimizer, variables = RMSprop(0.1, **{"momentum": 0.5, **settings}), [np.ones(2), np.ones(3)]
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(2), variables[0])])
    return optimizer, variables


def copied():
    optimizer, variables = started()
    optimizer.build(variables)
    return copy.deepcopy((optimizer, variables))


def step_both(optimizer, variables):
    optimizer.apply_gradients([(np.full(v.shape, 0.5), v) for v in variables])


CHANGES = {
    "first step": (started, step_both),
    "round": (lambda: started(gradient_accumulation_steps=2), step_both),
    "build": (started, lambda optimizer, variables: optimizer.build(variables)),
    "forget": (started, lambda optimizer, variables: optimizer.forget(variables[0])),
    "copy": (copied, step_both),
    "momentum": (started, lambda optimizer, variables: setattr(optimizer, "momentum", 0.9)),
    "late momentum": (
        lambda: started(momentum=0.0),
        lambda optimizer, variables: setattr(optimizer, "momentum", 0.9),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_known_of_variables_after_an_interrupt_at_every_line(name, tmp_path):
    """All slots are listed and saved, so that a run that is loaded goes on as this one."""
    make, change = CHANGES[name]
    files = ("slots.py", "meeting.py", "uninterrupted.py", "entries.py", "hyperparameters.py")
    line, came = 0, True
    while came:
        line += 1
        optimizer, variables = make()
        came = interrupted_at(line, lambda: change(optimizer, variables), files)  # noqa: B023
        optimizer.flush()
        for _ in range(4):
            step_both(optimizer, variables)
        slots = [(slot, id(v)) for v in variables for slot in optimizer.get_slot_names()]
        assert len(optimizer.weights) == 1 + len(slots), line
        path, named = tmp_path / "run.npz", dict(zip("wv", variables, strict=True))
        rmsjit.save(path, optimizer, named)
        other, loaded = rmsjit.load(path)
        for one, arrays in ((optimizer, variables), (other, [loaded["w"], loaded["v"]])):
            for _ in range(2):
                step_both(one, arrays)
        assert all(map(np.array_equal, variables, loaded.values())), line
    assert line > 10


@pytest.mark.slow
def test_a_scale_that_an_interrupt_meets_has_learned_of_what_is_counted():
    line, came, found = 0, True, set()
    while came:
        line += 1
        scale, w = rmsjit.DynamicLossScale(8.0), np.ones(2)
        optimizer = RMSprop(0.1, loss_scale=scale)
        optimizer.apply_gradients([(np.ones(2), w)])
        pairs = [(np.full(2, np.inf), w)]
        files = ("engine.py", "loss_scale.py")
        came = interrupted_at(line, lambda: optimizer.apply_gradients(pairs), files)  # noqa: B023
        found.add((optimizer.skipped_steps, optimizer.loss_scale))
    assert found - {(1, 8.0)} == {(0, 8.0), (1, 4.0)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_save_interrupted_at_every_fifth_line(tmp_path, monkeypatch, ending):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it takes most of the time
    path, other = tmp_path / f"run{ending}", tmp_path / f"other{ending}"
    optimizer, w = RMSprop(0.1, momentum=0.5, sparse="exact"), np.ones((8, 3))
    optimizer.apply_gradients([(slices(0), w)])
    rmsjit.save(path, optimizer, {"w": w})
    old = path.read_bytes()
    optimizer.apply_gradients([(slices(1), w)])
    rmsjit.save(other, optimizer, {"w": w})
    new, state = other.read_bytes(), state_of(optimizer, [w])
    line, came, found = 1, True, set()
    while came:
        line += 5
        path.write_bytes(old)
        came = interrupted_at(line, lambda: rmsjit.save(path, optimizer, {"w": w}))
        now = path.read_bytes()
        assert now in (old, new), line
        found.add(now)
    assert found == {old, new}
    assert state_of(optimizer, [w]) == state
    rmsjit.save(path, optimizer, {"w": w})  # removes what the interrupted ones left
    assert {entry.name for entry in tmp_path.iterdir()} == {other.name, path.name}


# --- real signals ---------------------------------------------------------------------------

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer signals")


@pytest.fixture
def alarm():
    """Sets a handler for signals that come after some seconds."""

    def set_alarm(handler):
        signal.signal(signal.SIGALRM, handler)
        return lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.getsignal(signal.SIGALRM)
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@needs_signals
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_signals_that_raise(alarm, threads):
    size = 300_000
    arrays = [np.ones(size, np.float32), np.ones(size // 2)]
    gradients = [noise(len(a), dtype=a.dtype) for a in arrays]
    optimizer = RMSprop(1e-3, num_threads=threads)
    copies, twin = [a.copy() for a in arrays], RMSprop(1e-3, num_threads=1)

    def interrupt(*_):
        raise Interrupted

    for _ in range(20):  # LLVM does not survive exceptions while it loads kernels
        optimizer.apply_gradients(list(zip(gradients, arrays, strict=True)))
    ring, rng, taken, interrupts = alarm(interrupt), np.random.default_rng(0), 0, 0
    for _ in range(300):
        try:
            ring(rng.uniform(1e-5, 3e-3))
            optimizer.apply_gradients(list(zip(gradients, arrays, strict=True)))
            ring(0)
        except Interrupted:
            interrupts += 1
        finally:
            ring(0)
        while taken < int(optimizer.iterations):
            twin.apply_gradients(list(zip(gradients, copies, strict=True)))
            taken += 1
        assert all(map(np.array_equal, arrays, copies))
    assert interrupts > 0
    assert taken > 0


@needs_signals
@pytest.mark.slow
@pytest.mark.parametrize("act", ["save", "sync", "step", "get_weights", "get_slot"])
def test_handlers_that_use_the_optimizer(alarm, tmp_path, act):
    """As jobs save on SIGUSR1: what they see is a state between steps."""
    rows, path = 4000, tmp_path / "run.npz"
    rng = np.random.default_rng(1)
    steps = [
        IndexedSlices(rng.normal(size=(1500, 8)), rng.integers(0, rows, 1500)) for _ in range(80)
    ]

    def new():
        return RMSprop(0.01, momentum=0.9, sparse="exact")

    reference, whole, other = new(), np.ones((rows, 8)), np.ones(3)
    states = [whole.copy()]
    for gradient in steps:
        reference.apply_gradients([(gradient, whole)])
        reference.sync()
        states.append(whole.copy())
    optimizer, table, handled = new(), np.ones((rows, 8)), []
    optimizer.build([table])

    def handle(*_):
        done, seen = int(optimizer.iterations), None
        if act == "save":
            rmsjit.save(path, optimizer, {"w": table})
            restored, arrays = rmsjit.load(path)
            done, seen = int(restored.iterations), arrays["w"]
        elif act == "step":
            optimizer.apply_gradients([(np.ones(3), other)])
            optimizer.iterations = done
        elif act == "get_weights":
            optimizer.get_weights()
        else:
            optimizer.sync() if act == "sync" else optimizer.get_slot(table, "rms")
            seen = table.copy()
        handled.append((done, seen))

    ring = alarm(handle)
    for gradient in steps:
        ring(rng.uniform(1e-5, 2e-3))
        optimizer.apply_gradients([(gradient, table)])
        ring(0)
    optimizer.sync()
    assert handled
    np.testing.assert_allclose(table, states[-1], rtol=1e-9, atol=1e-12)
    for number, seen in handled:
        if seen is None:
            continue
        np.testing.assert_allclose(seen, states[number], rtol=1e-9, atol=1e-12)
