"""Steps of whole structures of parameters and gradients."""

from __future__ import annotations

from typing import Any

from rmsjit.indexed_slices import IndexedSlices
from rmsjit.nest import Match, matched_gradients
from rmsjit.optimizers.core import Core
from rmsjit.steps.pairs import check_indices, check_variable, dense_gradient, sparse_gradient


class Structures(Core):
    """Steps that take parameters and gradients as nested lists and dictionaries."""

    def step(self, params: Any = None, gradients: Any = None) -> Any:
        """Update the variables of a structure in place, given gradients in the same structure.

        The same as `apply_gradients` with ``rmsjit.nest.pairs(gradients, params)``, but for errors,
        which name the place in the structure.

        Parameters
        ----------
        params : nested structure of ndarray or Variable
            Lists, tuples and dictionaries, nested to any depth.  None in it is no variable.
        gradients : nested structure
            Of the same structure, with a gradient for each variable.  None instead of a gradient,
            or of a whole list or dictionary, leaves the variables there unchanged.

        Returns
        -------
        Variable or None
            What `apply_gradients` returns.

        Raises
        ------
        TypeError
            If either is left out, or as `apply_gradients` does.
        ValueError
            If the structures differ, or as `apply_gradients` does.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> params = {"dense": [np.ones((2, 3)), np.ones(3)], "scale": np.ones(())}
        >>> gradients = {"dense": [np.ones((2, 3)), np.ones(3)], "scale": 1.0}
        >>> opt = rmsjit.RMSprop(0.1)
        >>> _ = opt.step(params, gradients)
        >>> print(params["dense"][1].round(3), params["scale"].round(3))
        [0.684 0.684 0.684] 0.684
        """
        try:
            if params is None or gradients is None:
                raise TypeError(
                    "step needs the parameters and their gradients, as in "
                    "opt.step(params, gradients): an array has no .grad from which they could be "
                    "read"
                )
            matches = matched_gradients(gradients, params)
        except BaseException as error:
            self._refuse(error)
        try:
            return self.apply_gradients([(match.other, match.leaf) for match in matches])
        except (TypeError, ValueError, IndexError, RuntimeError):
            _check_leaves(matches)  # raises the same error with the place in the structure
            raise


def _check_leaves(matches: list[Match]) -> None:
    """Check every variable and gradient as a step does; errors name their places."""
    for path, variable, gradient in matches:
        check_variable(variable, path)
        if isinstance(gradient, IndexedSlices):
            sparse_gradient(gradient, variable, path)
            check_indices(gradient, variable, path)
        elif gradient is not None:
            dense_gradient(gradient, variable, path)
