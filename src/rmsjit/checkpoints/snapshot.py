"""Undoing the steps of a block: `restoring`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rmsjit.checkpoints.compare import Variables, check_optimizer, check_variables
from rmsjit.checkpoints.content import Checkpoint
from rmsjit.checkpoints.restore import restore
from rmsjit.checkpoints.save import taken
from rmsjit.optimizers.base import Optimizer


@contextmanager
def restoring(optimizer: Optimizer, variables: Variables) -> Iterator[None]:
    """Restore the optimizer's state and the variables at the end, whatever happens.

    Variables that the optimizer meets meanwhile are unknown to it again afterwards.

    Parameters
    ----------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        At least all that the optimizer knows.

    Raises
    ------
    TypeError, ValueError
        At the beginning, if `rmsjit.save` could not save them.
    RuntimeError
        Within `one_step`, whose step would be taken after all was restored.
    """
    check_optimizer(optimizer)
    check_variables(variables)
    optimizer._refuse_divided("a run to be undone")
    if optimizer._takes_calls_together:
        raise RuntimeError("a run to be undone must not be within one_step")
    store = optimizer._store
    known = {key: set(entry.slots) for key, entry in store.entries.items()}
    checkpoint = _copied(taken(optimizer, variables))
    try:
        yield
    finally:
        store.restrict(known)
        restore(checkpoint, optimizer, variables)


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    """The same with copies of all arrays."""
    variables = {
        name: replace(saved, value=saved.value.copy())
        for name, saved in checkpoint.variables.items()
    }
    weights = [replace(saved, value=saved.value.copy()) for saved in checkpoint.weights]
    return replace(checkpoint, variables=variables, weights=weights)
