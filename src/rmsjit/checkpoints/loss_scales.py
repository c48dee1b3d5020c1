"""The state of a dynamic loss scale, in checkpoints and between processes."""

from __future__ import annotations

from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.loss_scale import DynamicLossScale, ScaleState


def scale_state(optimizer: Optimizer) -> ScaleState | None:
    """The state of an optimizer's loss scale, None if that never changes."""
    scale = optimizer._clipping.loss_scale
    return scale.state if isinstance(scale, DynamicLossScale) else None


def set_scale_state(optimizer: Optimizer, state: ScaleState | None) -> None:
    """Continue with a former state; an optimizer with another kind of loss scale keeps its own."""
    scale = optimizer._clipping.loss_scale
    if state is not None and isinstance(scale, DynamicLossScale):
        scale.state = state
