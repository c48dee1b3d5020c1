"""`RMSprop` for parameters of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rmsjit.optimizers.arguments import checked_threads
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers
from rmsjit.torch.bound import BoundParameters, ReadyUpdate, lacking
from rmsjit.torch.identity import are_same, has_none
from rmsjit.torch.listeners import told_to_listeners
from rmsjit.torch.saved import prepared
from rmsjit.torch.settings import (
    LATER_SETTINGS,
    check_rate,
    form_of,
    name_of,
    numbers_of,
    refuse_differentiable,
)
from rmsjit.torch.tensors import check_parameter, ordinary_tensors

_MOST_BOUND = 8  # lists of parameters of a group that are kept, as when some are frozen in turn

_Addition = tuple[Tensor, dict[str, Any], dict[str, Any]]  # a parameter, its state, what it lacks
Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class RMSprop(torch.optim.Optimizer):  # type: ignore[misc]
    """``torch.optim.RMSprop`` for parameters on the CPU, updated in place by compiled code.

    Arguments, groups, state and ``state_dict`` are those of ``torch.optim.RMSprop``, and each can
    load the state of the other.  All parameters of a group are updated in one call, and gradients
    are read where they are.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor), or of dict
        The parameters or groups of them, of the dtypes float16, bfloat16, float32, float64,
        complex64 and complex128.
    lr : float or Tensor, default 0.01
        Learning rate, not negative; a scheduler may make it negative later.
    alpha : float, default 0.99
        Decay factor of the averages, between 0 and 1.
    eps : float, default 1e-8
        Positive; added to the root.
    weight_decay : float, default 0
        Added to the gradient, times the parameter.
    momentum : float, default 0
        Between 0 and 1.
    centered : bool, default False
        Normalise by the estimated variance of the gradient instead of its mean square.
    capturable, foreach : optional
        Accepted as there, and part of the groups; they change nothing here.
    maximize : bool, default False
        Maximise the loss.
    differentiable : bool, default False
        Only False: the steps have no derivative.
    num_threads : int, optional
        The maximum number of threads; by default all that the process may use.  Use 1 where
        several processes train one model.

    Raises
    ------
    TypeError
        If a parameter is no ordinary dense tensor of these dtypes, or a number is of a wrong type.
    ValueError
        If a parameter is not on the CPU, or a number is out of its range.

    Notes
    -----
    Numbers agree with torch's within 2 units in the last place of each step, but for a centered
    optimizer where the variance nearly vanishes: rounding can make it negative, which gives NaN
    there and 0 here.  In float16 and bfloat16, torch rounds after each operation; here a step
    computes in float32 and rounds once.

    A sparse gradient, coalesced or not, updates the rows that it names, after the slices of a row
    have been added; the others and their state are left alone.  ``torch.optim.RMSprop`` refuses
    sparse gradients.

    Everything is checked before the first write: an error leaves parameters and state unchanged.

    Examples
    --------
    >>> import torch
    >>> import rmsjit.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = rmsjit.torch.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
    >>> model(torch.ones(8, 3)).square().mean().backward()
    >>> opt.step()
    >>> sorted(opt.state[model.weight])
    ['momentum_buffer', 'square_avg', 'step']
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        num_threads: int | None = None,
    ) -> None:
        self._num_threads = checked_threads(num_threads)
        self._bound: dict[int, list[BoundParameters]] = {}  # by the number of the group
        self._states: tuple[Any, ...] = ()  # those that were bound
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        numbers_of(defaults)
        check_rate(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with settings of its own.

        Parameters
        ----------
        param_group : dict
            With ``"params"``, and any constructor arguments that are not the defaults.

        Raises
        ------
        TypeError, ValueError
            As the constructor does, or if a parameter is in another group.
        """
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        try:
            _check_group(self.param_groups[number], number)
        except Exception:
            self.param_groups.pop()
            raise

    @told_to_listeners
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients again, and returns the loss.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        TypeError, ValueError, IndexError
            If a parameter, a gradient or a number is not valid.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _update(self) -> None:
        """Check all groups, then update them."""
        self._notice_new_states()
        additions: list[_Addition] = []
        updates = [
            self._ready(number, group, additions) for number, group in enumerate(self.param_groups)
        ]
        for parameter, state, added in additions:
            state.update(added)
            self.state[parameter] = state
        if additions:
            self._states = tuple(self.state.values())
        for update in updates:
            if update is not None:
                update.run()

    def _notice_new_states(self) -> None:
        """Drop all that is bound if the state of a parameter has been replaced."""
        states = tuple(self.state.values())
        if not are_same(states, self._states):
            self._bound.clear()
            self._states = states

    def _ready(
        self, number: int, group: Mapping[str, Any], additions: list[_Addition]
    ) -> ReadyUpdate | None:
        """The update of a group, checked; what states lack for it is put into `additions`."""
        numbers = numbers_of(group)
        refuse_differentiable(group)
        params = tuple(group["params"])
        gradients = tuple([p.grad for p in params])
        if has_none(gradients):
            params = tuple([p for p, g in zip(params, gradients, strict=True) if g is not None])
            gradients = tuple([g for g in gradients if g is not None])
        if not params:
            return None
        bound = self._known(number, params, form_of(numbers, group["centered"]))
        if bound is None:
            bound = self._newly_bound(number, params, numbers, additions)
        return bound.ready(gradients, numbers, -1.0 if group["maximize"] else 1.0)

    def _known(self, number: int, params: tuple[Tensor, ...], form: Form) -> BoundParameters | None:
        """What is bound to these parameters of a group, in this form."""
        for bound in self._bound.get(number, ()):
            if bound.form is form and bound.holds(params):
                return bound
        return None

    def _newly_bound(
        self,
        number: int,
        params: tuple[Tensor, ...],
        numbers: StepNumbers,
        additions: list[_Addition],
    ) -> BoundParameters:
        """Bind parameters that are new, or whose memory or state has changed."""
        group = self.param_groups[number]
        names = _names(params, group, number)
        _check_parameters(params, names)
        form = form_of(numbers, group["centered"])
        states = [self.state.get(p, {}) for p in params]
        with ordinary_tensors():
            added = lacking(params, states, names, form)
            bound = BoundParameters(params, states, added, names, form, self._num_threads)
        additions += [one for one in zip(params, states, added, strict=True) if one[2]]
        self._keep(number, bound)
        return bound

    def _keep(self, number: int, bound: BoundParameters) -> None:
        """Use what is bound for later steps.

        If the same parameters were bound before, their memory has changed: then all that was bound
        is dropped, so that it keeps no old memory alive.
        """
        others = self._bound.get(number, [])
        if any(other.is_of(bound) for other in others):
            others = []
        self._bound[number] = [bound, *others][:_MOST_BOUND]

    # --- state ------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this class or of ``torch.optim.RMSprop``.

        As in torch, tensors that need no conversion are shared with `state_dict`; the counts of
        steps are copied.

        Parameters
        ----------
        state_dict : dict
            As `state_dict` returns it.

        Raises
        ------
        TypeError, ValueError
            If group sizes differ, a group lacks a setting (as another optimizer's does), or a
            setting or part of the state is not valid.  Nothing is changed then.
        """
        # The last of such hooks, so that it sees what those of the user make of `state_dict`.
        handle = self.register_load_state_dict_pre_hook(prepared)
        try:
            with ordinary_tensors():
                super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or pickle: torch's, and the number of threads."""
        return {**super().__getstate__(), "_num_threads": self._num_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound, self._states = {}, ()
        for group in self.param_groups:
            for name, value in LATER_SETTINGS.items():
                group.setdefault(name, value)


def _check_group(group: Mapping[str, Any], number: int) -> None:
    """Raise an error if a setting or a parameter of a group is not valid."""
    numbers_of(group)
    check_rate(group)
    refuse_differentiable(group)
    params = group["params"]
    if len(set(params)) < len(params):
        raise ValueError(f"group {number} must have each parameter once, got one of them twice")
    _check_parameters(params, _names(params, group, number))


def _names(params: Sequence[Tensor], group: Mapping[str, Any], number: int) -> list[str]:
    """What errors call some parameters of a group."""
    positions = {id(parameter): k for k, parameter in enumerate(group["params"])}
    return [name_of(positions[id(parameter)], group, number) for parameter in params]


def _check_parameters(params: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise an error if some parameters can't be updated."""
    for parameter, name in zip(params, names, strict=True):
        check_parameter(parameter, name)
