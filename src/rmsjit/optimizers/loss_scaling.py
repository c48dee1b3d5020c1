"""Loss scaling: a factor for the loss that steps take out of the gradients again."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.optimizers.core import Core
from rmsjit.optimizers.fixed import fixed_at_construction


class LossScaling(Core):
    """Steps with gradients of a scaled loss."""

    @fixed_at_construction
    def loss_scale(self) -> float | None:
        """What the next step divides gradients by; None without a loss scale."""
        scale = self._clipping.loss_scale
        return None if scale is None else scale.value

    def scale_loss(self, loss: Any) -> Any:
        """A loss times the loss scale, for gradients that are given to `apply_gradients`.

        Without a loss scale, the loss as it is.  `minimize` scales by itself.

        Parameters
        ----------
        loss : number, array, or anything that can be multiplied by a float

        Examples
        --------
        >>> import rmsjit
        >>> rmsjit.RMSprop(loss_scale=1024).scale_loss(0.5)
        512.0
        """
        return loss if self.loss_scale is None else loss * self.loss_scale

    def _upstream(self, loss: Any, grad_loss: Any) -> tuple[Any, Any]:
        """A loss to be differentiated, and its upstream gradient, that contain the loss scale."""
        if self.loss_scale is None:
            return loss, grad_loss
        if grad_loss is not None:
            return loss, np.asarray(grad_loss) * self.loss_scale
        if callable(loss):
            return lambda *variables: self.scale_loss(loss(*variables)), None
        return loss, np.full(np.shape(loss), self.loss_scale)

    def _arguments_of_scale(self) -> dict[str, Any]:
        """The argument `loss_scale`, as a value for JSON, if it is used."""
        scale = self._clipping.loss_scale
        return {} if scale is None else {"loss_scale": scale.to_config()}
