"""How many threads a step may use."""

from __future__ import annotations

from rmsjit.runtime import threads
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.steps.binding import Binding
from rmsjit.steps.plan import Plan


def launch_for(plan: Plan, binding: Binding, trials: TrialsBySize, limit: int) -> Launch:
    """Permission for the number of threads, up to a limit, that has proved fastest for a step."""
    if not plan.may_need_threads:
        return ONE_THREAD
    own = trials.of(limit, plan.nbytes(binding), "sparse" if plan.sparse else "dense")
    binding.trials = own
    wanted = 1 if own is None else own.choose()
    if wanted == 1:
        return ONE_THREAD
    threads.prepare()
    return threads.launch(wanted)
