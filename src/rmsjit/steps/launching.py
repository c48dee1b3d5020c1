"""How a step is run."""

from __future__ import annotations

from rmsjit.runtime import threads
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.steps.binding import Binding
from rmsjit.steps.plan import Plan


def launch_for(plan: Plan, binding: Binding, trials: TrialsBySize, limit: int) -> Launch:
    """The way that has proved fastest for a step, with permission for up to `limit` threads."""
    if not plan.is_tried:
        return ONE_THREAD
    own = trials.of(
        limit, plan.updates.nbytes(binding), "sparse" if plan.layout.sparse else "dense"
    )
    binding.trials = own
    if own is None:
        return ONE_THREAD
    wanted = own.choose()
    if wanted.threads > 1:
        threads.prepare()
    return threads.launch(wanted.threads, wanted.prefetches)
