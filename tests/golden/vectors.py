"""How the golden vectors lie in their files, and how close two runs must be.

One npz entry per case holds every number of its run in one flat array, in the order of
`fields`. bfloat16, which npz files don't know, is kept as its bits (uint16).
"""

import pathlib

import numpy as np

from golden.cases import numpy_dtype, slot_names

FOLDER = pathlib.Path(__file__).parent


def fields(case):
    """(step, variable's index, "variable" or a slot's name), in the order of the file."""
    names = ("variable", *slot_names(case))
    return [
        (step, index, name)
        for step in range(case.steps)
        for index in range(len(case.shapes))
        for name in names
    ]


def pack(case, run):
    """A run, a dict by field, as the flat array that goes into the file."""
    flat = np.concatenate([np.asarray(run[key]).reshape(-1) for key in fields(case)])
    return flat.view(np.uint16) if case.dtype == "bfloat16" else flat


def unpack(case, flat):
    """The inverse of `pack`."""
    if case.dtype == "bfloat16":
        flat = flat.view(numpy_dtype("bfloat16"))
    run, start = {}, 0
    for step, index, name in fields(case):
        shape = case.shapes[index]
        stop = start + int(np.prod(shape))
        run[step, index, name] = flat[start:stop].reshape(shape)
        start = stop
    if start != flat.size:
        raise ValueError(f"{case.name}: the file has {flat.size} numbers, the case {start}")
    return run


def load(name, cases):
    """The stored runs of a file, by name of the case."""
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {case.name: unpack(case, file[case.name]) for case in cases}
