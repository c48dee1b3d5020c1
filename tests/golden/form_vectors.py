"""The stored runs of the forms, and how far two states are from each other.

A file per form holds, for each case and each name of a state, one array of steps x elements.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "forms"
SAME_LIBRARY = 40.0  # units over ten steps, which another CPU may take otherwise


def save(form, runs):
    """Write the runs of a form, lists of states by the name of their case."""
    arrays = {
        f"{case}|{name}": np.stack([state[name] for state in states])
        for case, states in runs.items()
        for name in states[0]
    }
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / f"{form}.npz", **arrays)


def load(case):
    """The states of a case, in order."""
    with np.load(FOLDER / f"{case.form}.npz", allow_pickle=False) as file:
        names = [
            key.rpartition("|")[2] for key in file.files if key.rpartition("|")[0] == str(case)
        ]
        arrays = {name: file[f"{case}|{name}"] for name in names}
    steps = len(next(iter(arrays.values())))
    return [{name: array[step] for name, array in arrays.items()} for step in range(steps)]


def units(got, expected, before):
    """How far an array is from another, in units in the last place of the largest number in a sum.

    A step is a sum: of what was before, and what is added, to what should be.  The result has the
    rounding of the largest of the three.
    """
    parts = np.abs([before, expected, expected - before])
    size = np.maximum(parts.max(axis=0), np.finfo(expected.dtype).tiny)
    return np.abs(np.subtract(got, expected, dtype=np.longdouble)) / np.spacing(size)


def largest_distance(made, stored):
    """The most that two runs differ by, in units."""
    before = stored[0]
    worst = 0.0
    for one, other in zip(made, stored, strict=True):
        for name, expected in other.items():
            worst = max(worst, float(units(one[name], expected, before[name]).max()))
        before = other
    return worst
