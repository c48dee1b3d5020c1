"""What an optimizer reports of its steps."""

from __future__ import annotations

from rmsjit.optimizers.core import Core


class Reports(Core):
    """Skipped steps, norms of gradients, and the learning rate."""

    @property
    def skipped_steps(self) -> int:
        """The number of steps skipped because of a gradient that was not finite.

        It stays 0 unless ``nonfinite="skip"`` or there is a dynamic loss scale.
        """
        return self._store.skipped_steps

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        self._store.skipped_steps = count

    @property
    def last_gradient_norm(self) -> float | None:
        """The joint norm of all gradients, before norm clipping, in the last step to compute it.

        Steps compute it if there is a bound on norms, if `nonfinite` is not "propagate", or with
        ``track_norms=True``.  It is that of the gradients as the rule gets them, before they are
        clipped by norm: reduced by a strategy, accumulated, scaled, and clipped by `clipvalue` if
        there is a bound on norms as well.  The norm of an `IndexedSlices` is that of its values.
        None before the first such step, and in copies.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop(global_clipnorm=1.0)
        >>> _ = opt.apply_gradients([(np.array([3.0, 4.0]), np.zeros(2))])
        >>> opt.last_gradient_norm
        5.0
        """
        engine = vars(self).get("_engine")
        return None if engine is None else engine.last_norm

    @property
    def last_gradient_norms(self) -> tuple[float, ...] | None:
        """`last_gradient_norm` by groups: of the variables in none, then of each of `groups`.

        A group that had no gradient, or is frozen, has 0.  None where `last_gradient_norm` is.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, head, body = rmsjit.RMSprop(track_norms=True), np.zeros(2), np.zeros(2)
        >>> group = opt.add_group([head], lr_multiplier=10.0)
        >>> _ = opt.apply_gradients([(np.array([3.0, 4.0]), head), (np.ones(2), body)])
        >>> print(np.round(opt.last_gradient_norms, 3))
        [1.414 5.   ]
        """
        engine = vars(self).get("_engine")
        return None if engine is None else engine.last_norms

    @property
    def current_learning_rate(self) -> float | None:
        """The learning rate that the next step will use, whatever it is given as.

        That is the number, or the value of the schedule or of the function of the step at
        `iterations`, lowered by `decay`; groups of variables may have others.  A function without
        arguments is not called, as it may change at each call: this is the value that it returned
        for the last step, or None before the first one.  The same holds for a function of the step
        in `train.RMSPropOptimizer`, whose ``global_step`` belongs to the caller.

        Examples
        --------
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop(rmsjit.schedules.ExponentialDecay(0.1, 1, decay_rate=0.5))
        >>> opt.iterations = 2
        >>> opt.current_learning_rate
        0.025
        """
        return self._hyperparameters.current_rate(self._counter)
