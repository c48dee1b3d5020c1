"""Those who are told of each step: the user's hooks, and torch's profilers.

torch wraps the method `step` of every optimizer: the wrapper makes a record for the profiler and
calls the hooks, which takes longer than all else in the step of a small model, also if nobody
listens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.autograd import _profiler_enabled
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)


def told_to_listeners(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, the method of an optimizer, in torch's wrapper when somebody listens.

    A subclass may call it from a `step` of its own.  torch has wrapped that one, so it is told
    already.
    """
    told = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(self: Optimizer, *arguments: Any, **named: Any) -> Any:
        is_outermost = type(self).step is wrapper
        run = told if is_outermost and _has_listeners(self) else step
        return run(self, *arguments, **named)

    wrapper.hooked = True  # type: ignore[attr-defined]  # so torch does not wrap it again
    return wrapper


def _has_listeners(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or _profiler_enabled()
    )
