"""Checkpoints of all ranks: rank 0 writes and reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rmsjit.checkpoints.compare import check_variables
from rmsjit.checkpoints.loss_scales import scale_state, set_scale_state
from rmsjit.checkpoints.plateaus import plateau_states, set_plateau_states
from rmsjit.checkpoints.rounds import check_no_round
from rmsjit.distributed.agreement import shared_errors
from rmsjit.distributed.comm import broadcast_object
from rmsjit.distributed.intent import NO_CLAIM, Act, Claim, Intent, claim
from rmsjit.distributed.session import Session
from rmsjit.distributed.sharded_state import Joined, check_slots_can_be_divided, share_groups
from rmsjit.distributed.starting import Overwriting
from rmsjit.state.slots import SlotStore
from rmsjit.variables import array_of

Variables = Mapping[str, Any]


def gathered(
    session: Session, act: Act, optimizer: Any, variables: Variables, joining: bool
) -> Any:
    """An optimizer with whole slots, for an act; see `rmsjit.distributed.MPIStrategy.gathered`."""
    store, comm, joined, error = optimizer._store, session.comm, None, None
    try:
        check_variables(variables)
        _refuse_round(optimizer)
        if session.settings.shard_state:
            joined = Joined(session.shards.cuts, store, variables, comm.rank)
    except BaseException as problem:
        error = problem
    _agree(session, act, optimizer, variables, joining, error)
    if optimizer._settings.exact:  # on all ranks
        with shared_errors(comm, "bring rows up to date"):
            optimizer.sync()
    if joined is None:
        return optimizer
    joined.gather(comm)
    return None if comm.rank else _twin(optimizer, joined.whole)


def save(
    session: Session,
    path: str | os.PathLike[str],
    optimizer: Any,
    variables: Variables,
    joining: bool,
) -> None:
    """See `rmsjit.distributed.MPIStrategy.save`."""
    from rmsjit.checkpoints.save import save as write

    whole = gathered(session, Act.SAVE, optimizer, variables, joining)
    with shared_errors(session.comm, "save"):
        if session.comm.rank == 0:
            write(path, whole, variables)


def load(
    session: Session,
    path: str | os.PathLike[str],
    optimizer: Any,
    variables: Variables,
    joining: bool,
) -> None:
    """See `rmsjit.distributed.MPIStrategy.load`."""
    from rmsjit.checkpoints.save import load as read

    comm, is_divided = session.comm, session.settings.shard_state
    store, target, error, values = optimizer._store, optimizer, None, None
    try:
        check_variables(variables)
        values = Overwriting([*map(array_of, variables.values()), *_counters(optimizer)])
        if is_divided:
            target = _twin(optimizer, SlotStore(store.name, store.form, store.memories.allocator))
            share_groups(store, target._store)
    except BaseException as problem:
        error = problem
    _agree(session, Act.LOAD, optimizer, variables, joining, error)
    with shared_errors(comm, "load"):
        if comm.rank == 0:
            check_no_round(path)
            if is_divided:
                check_slots_can_be_divided(path)
            read(path, target, variables)
    session.forget(store)
    _drop_round(optimizer)
    if target is not optimizer and comm.rank == 0:  # divided at the next step
        store.take_over(target._store)
    assert values is not None
    values.run(comm)
    optimizer.skipped_steps = broadcast_object(comm, target.skipped_steps)
    set_plateau_states(optimizer, broadcast_object(comm, plateau_states(optimizer)))
    set_scale_state(optimizer, broadcast_object(comm, scale_state(optimizer)))


def _agree(
    session: Session,
    act: Act,
    optimizer: Any,
    variables: Variables,
    joining: bool,
    error: BaseException | None,
) -> None:
    """Make sure that all ranks save or load the same; raise `error` on all ranks."""
    claimed = NO_CLAIM if error is not None else _claim(session, optimizer, variables)
    session.agree(Intent(act, claim=claimed, joining=joining), error)


def _claim(session: Session, optimizer: Any, variables: Variables) -> Claim:
    """What must be the same on all ranks to save or load."""
    names = [f"variables[{name!r}]" for name in variables]
    arrays = [array_of(variable) for variable in variables.values()]
    lines = [
        f"{name} of shape {array.shape}, {array.dtype}, {standing}"
        for name, array, standing in zip(
            names, arrays, session.known.numbers_of(arrays), strict=True
        )
    ]
    counters = [str(counter.dtype) for counter in _counters(optimizer)]
    header = (
        f"{type(optimizer).__name__}, {optimizer._store.form}, exact={optimizer._settings.exact}, "
        f"counter={counters}"
    )
    return claim(header, names, lines)


def _counters(optimizer: Any) -> list[Any]:
    """The array that counts the steps, if the optimizer has one of its own."""
    counter = getattr(optimizer, "iterations", None)
    return [] if counter is None else [counter.array]


def _refuse_round(optimizer: Any) -> None:
    """Raise `RuntimeError` if this rank has gradients that wait for a step: a file has none."""
    calls = getattr(optimizer, "accumulated_calls", 0)
    if calls:
        raise RuntimeError(
            f"an optimizer with a strategy is saved after a step, got {calls} calls of "
            f"gradient accumulation that wait for one: flush them first"
        )


def _drop_round(optimizer: Any) -> None:
    """Begin a new round of gradient accumulation, if the optimizer accumulates."""
    accumulator = getattr(optimizer, "_accumulator", None)
    if accumulator is not None:
        accumulator.clear()


def _twin(optimizer: Any, store: SlotStore) -> Any:
    """A copy of an optimizer with other slots, its own engine and no strategy."""
    twin = object.__new__(type(optimizer))
    state = {name: value for name, value in vars(optimizer).items() if name != "_engine"}
    alone = optimizer._settings._replace(strategy=None)
    twin.__setstate__({**state, "_store": store, "_settings": alone})
    return twin
