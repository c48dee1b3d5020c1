"""The factor of gradients: `maximize` and `grad_scale`."""

from __future__ import annotations

from typing import Any

from rmsjit.optimizers.arguments import checked_gradient_scale
from rmsjit.optimizers.core import Core
from rmsjit.optimizers.fixed import fixed_at_construction


class GradientScale(Core):
    """What gradients are multiplied by before anything else."""

    @fixed_at_construction
    def maximize(self) -> bool:
        """Whether steps ascend."""
        return self._clipping.gradient_scale < 0

    @property
    def grad_scale(self) -> float:
        """What gradients are multiplied by before they are clipped."""
        return abs(self._clipping.gradient_scale)

    @grad_scale.setter
    def grad_scale(self, value: float) -> None:
        if "_clipping" not in vars(self):
            raise AttributeError(
                f"grad_scale can be set once the optimizer is constructed, got {value!r}: pass it "
                f"to the constructor; an attribute that a subclass adds needs another name"
            )
        scale = checked_gradient_scale(self.maximize, value)
        self._clipping = self._clipping.replaced(gradient_scale=scale)

    def _arguments_of_gradient_scale(self) -> dict[str, Any]:
        """The arguments `maximize` and `grad_scale`, if they are used."""
        used: dict[str, Any] = {"maximize": True} if self.maximize else {}
        return used | ({} if self.grad_scale == 1.0 else {"grad_scale": self.grad_scale})
