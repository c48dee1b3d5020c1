"""Programs that type checkers must accept, with the types they must see; never run."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import rmsjit
from rmsjit.optimizers.parameter_group import ParameterGroup
from rmsjit.schedules import CosineDecay, LearningRateSchedule


class Halving(LearningRateSchedule):
    """A schedule of the user's own."""

    def __call__(self, step: int | float) -> float:
        return 0.1 * 0.5**step


def steps(w: NDArray[np.float32], table: np.memmap[Any, Any]) -> None:
    optimizer = rmsjit.RMSprop(CosineDecay(0.1, decay_steps=100), sparse="exact", nonfinite="skip")
    rows = rmsjit.IndexedSlices(np.ones((2, 3)), [1, 2])
    assert_type(optimizer.apply_gradients([(w, w), (rows, table)]), rmsjit.Variable)
    assert_type(optimizer.iterations.numpy(), NDArray[Any])
    assert_type(optimizer.get_slot(w, "rms"), rmsjit.Variable)
    assert_type(optimizer.add_group("*/bias", frozen=True), ParameterGroup)
    assert_type(optimizer.clipnorm, float | None)
    optimizer.learning_rate = Halving()
    optimizer.learning_rate = lambda step: 0.1 / (step + 1)
    rmsjit.RMSprop(
        0.1, gradient_accumulation_steps=4, gradient_accumulation_reduction="sum", num_threads=2
    )
    rmsjit.train.RMSPropOptimizer(0.1, sparse="rows").apply_gradients([(w, w)])
    rmsjit.forms.torch(lr=0.01, momentum=0.9).apply_gradients([(w, w)])


def rates(schedule: LearningRateSchedule) -> None:
    assert_type(schedule(3), float)
    assert_type(schedule(2.5), float)
    assert_type(schedule.curve(10), NDArray[np.float64])


def variables(v: rmsjit.Variable) -> None:
    assert_type(v.numpy(), NDArray[Any])
    assert_type(v.array, NDArray[Any])
    assert_type(v.assign_add(1.0), rmsjit.Variable)
    assert_type(float(v), float)
    squared = (v * 2 - v / v) ** 2 + v @ v
    assert_type(squared.sum() < v[0], Any)


def gradients(v: rmsjit.Variable, w: rmsjit.Variable) -> None:
    with rmsjit.GradientTape() as tape:
        loss = (v * w).sum()
    one = tape.gradient(loss, v)
    if isinstance(one, rmsjit.IndexedSlices):
        print(one.indices)
    several = tape.gradient(loss, [v, w], unconnected_gradients="zero")
    rmsjit.RMSprop().apply_gradients(zip(several, [v, w], strict=True))
    named = tape.gradient(loss, {"v": v, "w": w})
    print(named["v"])


def files(optimizer: rmsjit.RMSprop, w: NDArray[np.float64]) -> None:
    rmsjit.save("run.npz", optimizer, {"w": w})
    made, arrays = rmsjit.load("run.npz")
    assert_type(arrays, dict[str, NDArray[Any]])
    made.apply_gradients([(arrays["w"], arrays["w"])])
    same, mine = rmsjit.load("run.npz", optimizer, {"w": w})
    assert_type(same, rmsjit.RMSprop)
    assert_type(mine, dict[str, NDArray[np.float64]])
