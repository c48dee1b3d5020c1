"""Hooks: what sees or changes gradients between a call and its step, as in tf-keras."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.optimizers.groups import Groups
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.state.entries import stem_of
from rmsjit.steps.nonfinite import PROPAGATE, accepts, finite_gradients
from rmsjit.steps.pairs import Pairs, naming, pairs_of, present_pairs
from rmsjit.variables import is_trainable

PairList = list[tuple[Any, Any]]
PairsTransform = Callable[[PairList], Iterable[tuple[Any, Any]]]
Aggregator = Callable[[PairList], Sequence[Any]]

_HOOKS = ("_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients")


class _Prepared(NamedTuple):
    """What a step has to do after the hooks.

    Attributes
    ----------
    pairs : tuple of (gradient, variable)
    clipping : Clipping
    aggregate : bool
        Whether a strategy reduces the gradients.
    finite : bool
        Whether all gradients were finite before the hooks.
    norms : tuple of float or None
        Those of each group before the hooks clipped them; None if the step finds them.
    """

    pairs: Pairs
    clipping: Clipping
    aggregate: bool
    finite: bool = True
    norms: tuple[float, ...] | None = None


class Hooks(Groups):
    """The attributes and methods that a program or a subclass may replace."""

    gradient_transformers: list[PairsTransform]
    gradient_aggregator: Aggregator | None
    _is_hooked = False  # whether a subclass overrides one of `_HOOKS`

    def _transform_unaggregated_gradients(self, grads_and_vars: PairList) -> PairList:
        """Change this replica's gradients before they are summed; by default do nothing."""
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: PairList) -> PairList:
        """Sum the gradients over all replicas.

        By default call `gradient_aggregator`.  Without one, leave the gradients unchanged: a
        strategy sums them later.
        """
        if self.gradient_aggregator is None:
            return grads_and_vars
        return list(self.gradient_aggregator(grads_and_vars))

    def _transform_gradients(self, grads_and_vars: PairList) -> PairList:
        """Clip the summed gradients, then call `gradient_transformers`.

        Only called if something needs the clipped gradients; otherwise the update clips without
        copying them.
        """
        from rmsjit.steps.norms import clipped  # imports Numba

        pairs = clipped(grads_and_vars, self._clipping)
        for position, transform in enumerate(self.gradient_transformers):
            found = transform(pairs)
            if not isinstance(found, Iterable):
                raise TypeError(
                    f"gradient_transformers[{position}] must return pairs, got {found!r}"
                )
            pairs = list(found)
        return pairs

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_hooked = any(_overrides(cls, name) for name in _HOOKS)

    def _step_through_hooks(
        self, given: tuple[Any, ...], counter: NDArray[Any], aggregate: bool
    ) -> None:
        try:
            self._refuse_hooks_of_scaled_gradients()
            prepared = self._through_hooks(given, aggregate)
        except BaseException as error:
            self._refuse(error)
        if prepared is None:
            self._store.skipped_steps += 1
        else:
            pairs, clipping, aggregate, finite, norms = prepared
            numbers = self._hyperparameters
            self._engine.step(pairs, numbers, clipping, counter, aggregate, finite)
            self._note_norms(norms)

    def _refuse_hooks_of_scaled_gradients(self) -> None:
        """Raise `NotImplementedError` with a loss scale, without which gradients may vanish."""
        if self._clipping.loss_scale is not None:
            raise NotImplementedError(
                "loss_scale can't be used with gradient_transformers, gradient_aggregator or the "
                "methods that replace them: they would get unscaled gradients in their variables' "
                "dtypes, where small ones are 0"
            )

    def _through_hooks(self, given: tuple[Any, ...], aggregate: bool) -> _Prepared | None:
        """What is left to do after the hooks; None if the step is to be skipped."""
        pairs = present_pairs(given)
        moving = [pair for pair in pairs if not self._is_still(pair[1])]
        if not moving:  # the step counts all the same
            return _Prepared(pairs_of(pairs), self._clipping, aggregate)
        pairs = moving
        replaced = self.gradient_aggregator is not None or _overrides(
            type(self), "_aggregate_gradients"
        )
        if aggregate:
            pairs = list(self._transform_unaggregated_gradients(pairs))
            pairs = list(self._aggregate_gradients(pairs))
        if self._settings.strategy is not None and aggregate and not replaced:
            if self.gradient_transformers or _overrides(type(self), "_transform_gradients"):
                raise NotImplementedError(
                    "gradient_transformers and _transform_gradients can't see what a strategy "
                    "sums: sum by gradient_aggregator, or before apply_gradients with "
                    "experimental_aggregate_gradients=False"
                )
            return _Prepared(pairs_of(pairs), self._clipping, aggregate=True)
        pairs = present_pairs(pairs_of(pairs))
        finite = self._settings.nonfinite == PROPAGATE or self._are_finite(pairs)
        norms = self._norms_of(pairs)
        if not finite and self._settings.strategy is None:  # ranks skip in their step, all together
            self._note_norms(norms)
            return None
        pairs = list(self._transform_gradients(pairs))
        return _Prepared(pairs_of(pairs), NO_CLIPPING, False, finite, norms)

    def _norms_of(self, pairs: PairList) -> tuple[float, ...] | None:
        """The norms by group of gradients that are about to be clipped, if they are wanted."""
        if not (self._engine.reads_norms or self._clipping.by_norm):
            return None
        from rmsjit.steps.norms import norms_by_group  # imports Numba

        rows = [self._store.row_of(variable) for _, variable in pairs]
        return norms_by_group(pairs, self._clipping, rows, 1 + len(self.groups))

    def _note_norms(self, norms: tuple[float, ...] | None) -> None:
        """Report norms by group, if the step has not found others."""
        if norms is not None:
            self._engine.last_norm, self._engine.last_norms = math.hypot(*norms), norms

    def _is_still(self, variable: Any) -> bool:
        """Whether a step does not change a variable, and so does not read its gradient."""
        return not is_trainable(variable) or (bool(self.groups) and self._is_frozen(variable))

    def _is_frozen(self, variable: Any) -> bool:
        return self._store.grouping.freezes(self._store.whole(variable), stem_of(variable))

    def _are_finite(self, pairs: PairList) -> bool:
        """Whether all gradients are finite; an error names those that must be and are not."""
        finite = finite_gradients([gradient for gradient, _ in pairs])
        return accepts(self._settings.nonfinite, finite, lambda k: naming(pairs[k][1], k))


def _overrides(cls: type[Hooks], method: str) -> bool:
    return getattr(cls, method) is not getattr(Hooks, method)
