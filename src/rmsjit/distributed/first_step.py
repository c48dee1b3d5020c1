"""What comes before the first step on a list of variables.

First everything that may fail on one rank alone, then messages, which start all ranks from the
values of rank 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.distributed.comm import broadcast_object
from rmsjit.distributed.node import load_kernels
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.stage import Fresh, StagePlan
from rmsjit.distributed.starting import Overwriting
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.loss_scale import DynamicLossScale, LossScale
from rmsjit.state.numbering import agree_on, numbers_of

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class Start(NamedTuple):
    """What a step needs besides memory, until rank 0 has sent it.

    Attributes
    ----------
    values : Overwriting
        Variables and the counter.
    numbers : list of int
        Of the variables; see `rmsjit.state.numbering`.
    """

    values: Overwriting
    numbers: list[int]


def allocate(
    engine: Engine,
    plan: StagePlan,
    shards: Shards,
    numbers: Hyperparameters,
    fresh: Fresh,
    counter: NDArray[Any] | None,
) -> Start:
    """Allocate messages and slots; returns what is to be overwritten by rank 0."""
    engine.sync()
    order = numbers_of(engine.store, plan.incoming.distinct)
    plan.lay_out(shards, engine.exact)
    plan.prepare(engine, numbers, fresh)
    values = [plan.incoming.arrays[k] for k in fresh.values()]
    if fresh and counter is not None:
        values.append(counter)
    return Start(Overwriting(values), [order[key] for key in plan.incoming.distinct])


def load(engine: Engine, plan: StagePlan, clipping: Clipping) -> None:
    """Compile, or load, the kernels of the step."""
    load_kernels(
        plan.incoming,
        engine.store.form,
        exact=engine.exact,
        norms=clipping.by_norm or engine.reads_norms,
        clipped=not clipping.is_none or plan.scale != 1.0,
        threads=engine.num_threads or 1,
    )


def send_from_rank_0(
    comm: Any,
    engine: Engine,
    plan: StagePlan,
    start: Start,
    fresh: Fresh,
    loss_scale: LossScale | None,
) -> None:
    """Overwrite new variables, their slots, all numbers and counts with those of rank 0."""
    start.values.run(comm)
    plan.share_slots(engine, fresh)
    dynamic = loss_scale if isinstance(loss_scale, DynamicLossScale) else None
    own = start.numbers, engine.store.skipped_steps, None if dynamic is None else dynamic.state
    numbers, engine.store.skipped_steps, scale = broadcast_object(comm, own)
    agree_on(engine.store, dict(zip(plan.incoming.distinct, numbers, strict=True)))
    if dynamic is not None:
        dynamic.state = scale
