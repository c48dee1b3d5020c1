"""Steps from a loss, whose gradients are computed by automatic differentiation."""

from __future__ import annotations

from typing import Any

from rmsjit.nest import flatten
from rmsjit.optimizers.calls import Calls
from rmsjit.optimizers.loss_scaling import LossScaling
from rmsjit.runtime import forks
from rmsjit.steps.pairs import naming
from rmsjit.variables import Variable


class Losses(Calls, LossScaling):
    """Computing gradients of a loss, and steps with them."""

    def minimize(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        tape: Any = None,
    ) -> Variable:
        """Compute the gradients of a loss and update the variables once.

        Parameters
        ----------
        loss : callable, or a value with its `tape`
            Returns the loss, computed by `autograd.numpy` or NumPy.  A function of the variables
            takes them as arguments, in the order of ``rmsjit.nest.flatten(var_list)``; one without
            arguments reads `rmsjit.Variable`.  If the loss is an array, its sum is minimised.
        var_list : list, tuple, nested structure, or a callable that returns one
            The variables; those of a loss with arguments may be plain arrays.  A loss of one
            argument gets a dictionary whole.  A callable is called after a loss without arguments.
            May be empty.
        grad_loss : array_like, optional
            The upstream gradient, of the shape of `loss`; ones by default.
        name : str, optional
            As for `apply_gradients`.
        tape : GradientTape, optional
            The tape that recorded `loss`, if `loss` is a value.

        Returns
        -------
        Variable
            `iterations`.

        Raises
        ------
        ValueError
            If `loss` is a value and there is no `tape`, or the loss depends on no variable.
        TypeError
            If an entry of `var_list` is not a variable.

        Examples
        --------
        >>> import rmsjit
        >>> v = rmsjit.Variable(10.0)
        >>> opt = rmsjit.RMSprop(learning_rate=0.1)
        >>> print(opt.minimize(lambda: (v ** 2) / 2.0, [v]).numpy(), v.numpy())
        1 9.683772

        The loss as a function of plain arrays:

        >>> import numpy as np
        >>> w = np.array([10.0])
        >>> _ = rmsjit.RMSprop(learning_rate=0.1).minimize(lambda w: (w**2).sum() / 2, [w])
        >>> print(w)
        [9.68377224]
        """
        pairs = self._compute_gradients(loss, var_list, grad_loss=grad_loss, tape=tape)
        return self.apply_gradients(pairs, name=name)

    def get_gradients(self, loss: Any, params: Any) -> list[Any]:
        """The gradients of a loss with respect to `params`.

        Parameters
        ----------
        loss : callable
            As for `minimize`.
        params : nested structure of Variable

        Returns
        -------
        list of ndarray or IndexedSlices

        Raises
        ------
        ValueError
            If the loss does not depend on one of them.
        """
        pairs = self._compute_gradients(loss, params)
        for position, (gradient, variable) in enumerate(pairs):
            if gradient is None:
                raise ValueError(
                    f"the loss does not depend on {naming(variable, position)}, or not in a way "
                    f"that can be differentiated"
                )
        return [gradient for gradient, _ in pairs]

    def get_updates(self, loss: Any, params: Any) -> list[Variable]:
        """Compute the gradients of a loss and update `params` once.

        Parameters
        ----------
        loss, params
            As for `get_gradients`.

        Returns
        -------
        list of Variable
            `iterations` alone.

        Raises
        ------
        ValueError
            If the loss does not depend on one of them; nothing is updated then.
        """
        gradients = self.get_gradients(loss, params)
        return [self.apply_gradients(zip(gradients, flatten(params), strict=True))]

    def _compute_gradients(
        self, loss: Any, var_list: Any, grad_loss: Any = None, tape: Any = None
    ) -> list[tuple[Any, Any]]:
        with forks.undisturbed():
            from rmsjit.autodiff import losses

        takes_variables = callable(loss) and losses.takes_arguments(loss)
        compute = losses.gradients_of_arguments if takes_variables else losses.gradients_of
        scaled, upstream = self._upstream(loss, grad_loss)
        gradients, variables = compute(scaled, var_list, upstream, tape)
        return list(zip(gradients, variables, strict=True))
