"""Schedules against the values of PyTorch and optax: those that were stored, and live ones."""

from pathlib import Path

import numpy as np
import pytest

from golden.schedule_libraries import CASES, values_of

STORED = np.load(Path(__file__).parent / "golden" / "library_schedules.npz")
TOLERANCE = {"torch": {"rel": 1e-11}, "optax": {"rel": 1e-6, "abs": 1e-7}}  # optax has float32


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_that_were_stored(name):
    case = CASES[name]
    assert values_of(case.schedule) == pytest.approx(STORED[name], **TOLERANCE[case.library])


def test_every_case_is_stored():
    assert set(STORED) == set(CASES)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_library(name):
    case = CASES[name]
    pytest.importorskip(case.library)
    assert values_of(case.schedule) == pytest.approx(case.values(), **TOLERANCE[case.library])
