"""What the checks on several ranks share: inputs, the run of one process to compare with."""

import numpy as np

import rmsjit
from rmsjit.distributed import MPIStrategy


def exact(rng, shape, dtype):
    """Random eighths, whose sums over a few ranks are exact in any order and dtype."""
    values = rng.integers(-16, 17, shape) / 8
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.integers(-16, 17, shape) / 8
    return np.asarray(values).astype(dtype)


def start(shapes, dtype, seed=0):
    """The same variables on every rank."""
    rng = np.random.default_rng(seed)
    return [exact(rng, shape, dtype) for shape in shapes]


def dense_of(rank, step, variables):
    """The gradients of a rank at a step."""
    rng = np.random.default_rng([rank, step, 1])
    return [exact(rng, v.shape, v.dtype) for v in variables]


def rows_of(rank, step, table, most=7):
    """A sparse gradient with duplicates; now and then an empty one."""
    rng = np.random.default_rng([rank, step, 2])
    count = int(rng.integers(0, most + 1))
    indices = rng.integers(0, len(table), count)
    return rmsjit.IndexedSlices(exact(rng, (count, *table.shape[1:]), table.dtype), indices)


def joined(slices):
    """One sparse gradient that is the sum of several, its duplicates combined."""
    values = np.concatenate([s.values for s in slices])
    indices = np.concatenate([s.indices for s in slices])
    return rmsjit.IndexedSlices(values, indices).coalesce()


def total(gradients, scale=1.0):
    """The sum over ranks of dense or sparse gradients, times `scale`."""
    if isinstance(gradients[0], rmsjit.IndexedSlices):
        sums = joined(gradients)
        values = (sums.values * scale).astype(sums.values.dtype)
        return rmsjit.IndexedSlices(values, sums.indices)
    return (sum(np.asarray(g) for g in gradients) * scale).astype(np.asarray(gradients[0]).dtype)


def compare(comm, make, variables, gradients_of, steps=3, rtol=None, **settings):
    """Train on all ranks, and on the sums in one process; both must have the same result.

    Parameters
    ----------
    make : callable
        ``make(strategy=...)`` gives an optimizer.
    variables : list of ndarray
    gradients_of : callable
        ``gradients_of(rank, step, variables)``.
    rtol : float, optional
        None for the same bits.
    """
    strategy = MPIStrategy(comm, **settings)
    opt, alone = make(strategy=strategy), make()
    expected = [v.copy(order="K") for v in variables]
    scale = 1 / comm.size if settings.get("reduce") == "mean" else 1.0
    for step in range(steps):
        own = gradients_of(comm.rank, step, variables)
        everyone = [gradients_of(rank, step, variables) for rank in range(comm.size)]
        sums = [total(of_one, scale) for of_one in zip(*everyone, strict=True)]
        opt.apply_gradients(zip(own, variables, strict=True))
        alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted, rtol)
    same_everywhere(comm, variables)
    return strategy, opt, alone, expected


def same(got, wanted, rtol=None):
    """Assert the same bits, or values that differ by rounding."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if rtol is None:
        assert got.tobytes() == wanted.tobytes(), np.abs(got - wanted).max()
        return
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    np.testing.assert_allclose(got.astype(wide), wanted.astype(wide), rtol=rtol, atol=rtol)


def same_everywhere(comm, arrays):
    """Assert that all ranks have the same bits."""
    for everywhere in zip(*comm.allgather([a.tobytes() for a in arrays]), strict=True):
        assert len(set(everywhere)) == 1


def raised(action, kind):
    """The text of the error that `action` must raise."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")
