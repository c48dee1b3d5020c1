"""`RMSPropOptimizer`: the interface of ``tf.train.RMSPropOptimizer`` of TensorFlow 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from rmsjit.optimizers.arguments import (
    Nonfinite,
    Rounding,
    Sparse,
    checked_clip_weights,
    checked_epsilon,
    checked_factor,
    checked_flag,
    checked_gradient_scale,
    checked_rate,
    checked_settings,
    checked_weight_decay,
    is_integer_scalar,
)
from rmsjit.optimizers.base import Optimizer, with_shared_parameters
from rmsjit.optimizers.elsewhere import explaining_arguments
from rmsjit.rule.checks import is_used
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.presets import tf1, with_terms
from rmsjit.runtime import forks
from rmsjit.runtime.forks import RenewedLock
from rmsjit.state.memories import SlotAllocator
from rmsjit.steps.pairs import pairs_of
from rmsjit.steps.strategy import Strategy
from rmsjit.variables import Variable, array_of

GATE_NONE, GATE_OP, GATE_GRAPH = 0, 1, 2


@with_shared_parameters
class RMSPropOptimizer(Optimizer):
    """RMSprop as ``tf.train.RMSPropOptimizer`` computes it, on NumPy arrays in place.

    With ``g`` the gradient::

        rms <- decay*rms + (1 - decay)*g*g
        mg  <- decay*mg  + (1 - decay)*g                 if centered
        v    = max(rms - mg*mg, 0)  or  rms
        mom <- momentum*mom + lr*g / sqrt(v + epsilon) ;  variable <- variable - mom

    The slot ``rms`` starts from ones, the others from zeros.

    Parameters
    ----------
    learning_rate : float or callable
        A number, a 0-d array, or a function that is called at every step: without arguments or,
        if its signature has one, with the step, which is the ``global_step`` that
        `apply_gradients` then needs.  The same holds for `decay`, `momentum` and `epsilon`.
    decay : float or callable, default 0.9
        Decay factor of the averages, between 0 and 1.
    momentum : float or callable, default 0.0
        Between 0 and 1.
    epsilon : float or callable, default 1e-10
        Keeps the denominator above zero; positive.
    use_locking : bool, default False
        Whether concurrent steps of several Python threads on this optimizer wait for each other.
        If not, they run in parallel without a lock, and updates of an element may be lost, as in
        Hogwild.
    centered : bool, default False
        Normalise by the estimated variance of the gradient instead of its mean square.
    name : str, default "RMSProp"
        Prefix of slot names.
    *shared*

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a number is out of range.

    See Also
    --------
    rmsjit.RMSprop : The newer optimizer, with another place of epsilon and slots that start from 0.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> w = np.array([1.0, 2.0])
    >>> opt = rmsjit.train.RMSPropOptimizer(0.1, momentum=0.5)
    >>> opt.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w
    array([0.9, 2.1])
    """

    GATE_NONE = GATE_NONE
    GATE_OP = GATE_OP
    GATE_GRAPH = GATE_GRAPH

    @explaining_arguments(rho="decay")
    def __init__(
        self,
        learning_rate: Any,
        decay: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: Any = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        name: str = "RMSProp",
        *,
        weight_decay: Any = 0.0,
        decoupled_weight_decay: bool = True,
        clip_weights: float | None = None,
        maximize: bool = False,
        grad_scale: float = 1.0,
        master_weights: bool = False,
        rounding: Rounding = "nearest",
        state_dtype: Any = None,
        seed: int = 0,
        sparse: Sparse = "rows",
        nonfinite: Nonfinite = "propagate",
        track_norms: bool = False,
        num_threads: int | None = None,
        slot_allocator: SlotAllocator | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        numbers = {
            "learning_rate": checked_rate("learning_rate", learning_rate, schedule=False),
            "rho": checked_factor("decay", decay),
            "momentum": checked_factor("momentum", momentum),
            "epsilon": checked_epsilon("epsilon", epsilon),
            "weight_decay": checked_weight_decay("weight_decay", weight_decay),
            "clip_weights": checked_clip_weights("clip_weights", clip_weights),
        }
        self._use_locking = checked_flag("use_locking", use_locking)
        self._lock = RenewedLock()
        form = with_terms(
            tf1(centered=checked_flag("centered", centered)),
            decays=is_used(numbers["weight_decay"]),
            decoupled=checked_flag("decoupled_weight_decay", decoupled_weight_decay),
            clips=clip_weights is not None,
        )
        form = self._with_precision(form, master_weights, rounding, state_dtype)
        self._is_random = form.is_random
        self._clipping = Clipping(gradient_scale=checked_gradient_scale(maximize, grad_scale))
        hyperparameters = Hyperparameters(numbers, names={"rho": "decay"})
        settings = checked_settings(sparse, nonfinite, track_norms, num_threads, seed, strategy)
        super().__init__(name, form, hyperparameters, settings, slot_allocator)

    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
    ) -> list[tuple[Any, Any]]:
        """The gradients of a loss, each with its variable.

        Parameters
        ----------
        loss : callable
            Computes the loss by `autograd.numpy` or NumPy.  If it is an array, its sum is
            differentiated.  With a `var_list` it takes the variables as arguments; a function
            without arguments may read `rmsjit.Variable` instead.
        var_list : list or tuple of ndarray or Variable, optional
            By default every trainable `Variable` that the loss reads.
        gate_gradients : {GATE_NONE, GATE_OP, GATE_GRAPH}
            Checked and otherwise ignored, like the next two, since there is no graph.
        aggregation_method : {None, 0, 1, 2}
        colocate_gradients_with_ops : bool
        grad_loss : array_like, optional
            The upstream gradient, of the shape of the loss; ones by default.

        Returns
        -------
        list of (gradient, variable)
            A gradient is an array, an `IndexedSlices`, or None if the loss does not depend on the
            variable.

        Raises
        ------
        RuntimeError
            If `loss` is not callable.
        TypeError
            If an entry of `var_list` is not a variable.
        ValueError
            If another argument has none of the values above.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt = rmsjit.train.RMSPropOptimizer(0.1)
        >>> w = np.array([1.0, 2.0])
        >>> [(gradient, _)] = opt.compute_gradients(lambda w: (w * w).sum(), [w])
        >>> gradient
        array([2., 4.])
        """
        if not callable(loss):
            raise RuntimeError(f"loss must be callable, got {loss!r}")
        _check_graph_arguments(gate_gradients, aggregation_method, colocate_gradients_with_ops)
        with forks.undisturbed():
            from rmsjit.autodiff import losses

        if var_list is None:
            gradients, variables = losses.gradients_of_touched(loss, grad_loss)
        elif losses.takes_arguments(loss):
            gradients, variables = losses.gradients_of_arguments(loss, var_list, grad_loss)
        else:
            gradients, variables = losses.gradients_of(loss, var_list, grad_loss)
        return list(zip(gradients, variables, strict=True))

    def minimize(
        self,
        loss: Callable[..., Any],
        global_step: Any = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
    ) -> None:
        """Update variables once: `compute_gradients`, then `apply_gradients`.

        Parameters
        ----------
        loss, var_list, gate_gradients, aggregation_method, colocate_gradients_with_ops, grad_loss
            As for `compute_gradients`.
        global_step, name
            As for `apply_gradients`.

        Raises
        ------
        ValueError
            If the loss depends on no variable.
        RuntimeError, TypeError
            As `compute_gradients` and `apply_gradients` do.

        Examples
        --------
        >>> import rmsjit
        >>> v = rmsjit.Variable([1.0, 2.0])
        >>> rmsjit.train.RMSPropOptimizer(0.1).minimize(lambda: (v * v).sum())
        >>> print(v.numpy().round(3))
        [0.825 1.747]
        """
        pairs = self.compute_gradients(
            loss,
            var_list,
            gate_gradients,
            aggregation_method,
            colocate_gradients_with_ops,
            grad_loss,
        )
        self.apply_gradients(pairs, global_step, name)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
    ) -> None:
        """Update variables in place, given their gradients.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            As for `rmsjit.RMSprop.apply_gradients`.
        global_step : integer 0-d array or Variable, optional
            Increased by one after the update.
        name : str, optional
            Accepted for compatibility and ignored, since there is no graph.

        Raises
        ------
        TypeError
            If the pairs are malformed, or a gradient, variable or `global_step` is of a wrong type.
        ValueError
            If there are no pairs, no variable has a gradient, shapes differ, a variable is
            read-only, or two variables partly overlap in memory.

        Notes
        -----
        Everything is checked before the first write: an error changes nothing.
        """
        try:
            pairs = pairs_of(grads_and_vars)
            if not pairs and self._settings.strategy is None:
                raise _no_pairs()
            counter = None if global_step is None else _checked_step(global_step)
            if counter is None and self._is_random:
                raise ValueError(
                    "stochastic rounding needs the count of steps: pass a global_step, got None"
                )
        except BaseException as error:
            self._refuse(error)
        if self._use_locking:
            with self._lock.lock:
                self._engine.step(pairs, self._hyperparameters, self._clipping, counter)
        else:
            self._engine.step(pairs, self._hyperparameters, self._clipping, counter)
        if not pairs:  # on all ranks
            raise _no_pairs()

    def get_name(self) -> str:
        """The name given at construction."""
        return self._name

    def get_slot(self, var: Any, name: str) -> Variable | None:
        """A slot of a variable, as a `Variable` that shares the slot's memory.

        Parameters
        ----------
        var : ndarray or Variable
            Any view of the variable's memory.  The slot has the shape of this view.
        name : str
            "rms", "momentum" or "mg".

        Returns
        -------
        Variable or None
            None if there is no such slot, or no slots have been created for the variable yet.
        """
        return self._slot(var, name)

    def get_slot_names(self) -> list[str]:
        """The names of the slots of each variable, sorted."""
        return sorted(super().get_slot_names())

    def variables(self) -> list[Variable]:
        """All slots in order of creation."""
        return self._created()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_lock": RenewedLock()})

    def _shown(self) -> dict[str, Any]:
        numbers = self._hyperparameters
        groups = {"groups": list(self.groups)} if self.groups else {}
        return {
            "name": self._name,
            "learning_rate": numbers["learning_rate"],
            "decay": numbers["rho"],
            "momentum": numbers["momentum"],
            "epsilon": numbers["epsilon"],
            "centered": self._store.form.centered,
            **self._further_arguments(numbers.__getitem__),
            **groups,
        }

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self._shown().items())
        return f"<rmsjit.train.{type(self).__name__} {shown}>"

    def _further_arguments(self, shown: Callable[[str], Any]) -> dict[str, Any]:
        """The arguments that TensorFlow does not have, as far as they are used.

        `shown` gives the value of a hyperparameter by name.
        """
        form = self._store.form
        used: dict[str, Any] = {}
        if form.weight_decay is not None:
            used["weight_decay"] = shown("weight_decay")
            used["decoupled_weight_decay"] = form.weight_decay != "coupled"
        if form.clip_weights:
            used["clip_weights"] = shown("clip_weights")
        return used | self._arguments_of_gradient_scale() | self._arguments_of_precision()


def _no_pairs() -> ValueError:
    return ValueError("grads_and_vars must hold at least one variable, got none")


def _checked_step(global_step: Any) -> Any:
    array = array_of(global_step)
    if not is_integer_scalar(array) or not array.flags.writeable:
        raise TypeError(
            f"global_step must be a writeable integer array of shape () or a Variable of one, "
            f"got {global_step!r}"
        )
    return array


def _check_graph_arguments(gate: Any, aggregation: Any, colocate: Any) -> None:
    if gate not in (GATE_NONE, GATE_OP, GATE_GRAPH):
        raise ValueError(f"gate_gradients must be GATE_NONE, GATE_OP or GATE_GRAPH, got {gate!r}")
    if aggregation not in (None, 0, 1, 2):
        raise ValueError(f"aggregation_method must be None, 0, 1 or 2, got {aggregation!r}")
    if not isinstance(colocate, (bool, np.bool_)):
        raise ValueError(f"colocate_gradients_with_ops must be True or False, got {colocate!r}")
