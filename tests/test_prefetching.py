"""Fetching memory ahead: steps try it, and it changes no bit."""

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.runtime import trials
from rmsjit.runtime.learned import Way
from strategies import random_array, same_bits

# Around the ends of runs; those of 4,096 and more have slots in 8 bits where that is asked for.
SIZES = (0, 1, 63, 64, 65, 127, 128, 129, 255, 1025, 4096, 9001)
CASES = {
    "plain": ({}, ["float16", "bfloat16", "float32", "float64", "complex64"]),
    "both": ({"momentum": 0.9, "centered": True}, ["float32", "complex128"]),
    "clipped": ({"clipvalue": 0.5, "momentum": 0.9}, ["float32", "bfloat16"]),
    "by norm": ({"global_clipnorm": 0.5}, ["float32"]),
    "bfloat16 slots": ({"state_dtype": "bfloat16", "momentum": 0.9}, ["float32"]),
    "8-bit slots": ({"state_dtype": "8bit", "momentum": 0.9}, ["float32"]),
    "master weights": ({"master_weights": True}, ["float16", "bfloat16"]),
    "stochastic": ({"rounding": "stochastic"}, ["bfloat16"]),
}


def run(monkeypatch, way, settings, dtype):
    """Variables and slots after some steps that are run in a way."""
    monkeypatch.setattr(trials, "LEAST_BYTES", 0)
    monkeypatch.setattr(trials.Trials, "choose", lambda self: way)
    rng = np.random.default_rng(0)
    variables = [random_array(rng, size, dtype_named(dtype), 1) for size in SIZES]
    optimizer = rmsjit.RMSprop(0.01, num_threads=2, **settings)
    for _ in range(3):
        gradients = [random_array(rng, size, dtype_named(dtype), 1) for size in SIZES]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    names = optimizer.get_slot_names()
    slots = [optimizer.get_slot(v, name).array for v in variables for name in names]
    return [*variables, *slots]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        pytest.param(settings, dtype, id=f"{name}-{dtype}")
        for name, (settings, dtypes) in CASES.items()
        for dtype in dtypes
    ],
)
def test_fetching_ahead_changes_no_bit(settings, dtype, threads, monkeypatch):
    without = run(monkeypatch, Way(1), settings, dtype)
    ahead = run(monkeypatch, Way(threads, True), settings, dtype)
    assert all(map(same_bits, without, ahead))


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_of_large_arrays_try_it(threads, monkeypatch):
    taken, took = [], trials.Trials.took

    def noting(self, way, *work):
        taken.append(way)
        took(self, way, *work)

    monkeypatch.setattr(trials.Trials, "took", noting)
    variable = np.ones(trials.LEAST_BYTES, np.float32)
    optimizer = rmsjit.RMSprop(num_threads=threads)
    for _ in range(trials.SETTLED_AFTER):
        optimizer.apply_gradients([(np.ones_like(variable), variable)])
    assert {way.prefetches for way in taken} == {False, True}
    assert {way.threads for way in taken} == set(range(1, threads + 1))
