"""The variables that an optimizer knows, and what happens when their memory changes."""

from __future__ import annotations

from typing import Any

from rmsjit.optimizers.core import Core
from rmsjit.state.entries import Entry
from rmsjit.steps.entering import first_epsilon
from rmsjit.steps.moving import forget, rebind, resize_rows
from rmsjit.variables import Variable


class KnownVariables(Core):
    """Listing, dropping and moving variables."""

    @property
    def variables_seen(self) -> list[Variable]:
        """The variables that the optimizer has stepped or built, in order, without copying them.

        Each has the name that its slots and `rebind` use.  Variables whose memory was closed or
        resized are left out.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop()
        >>> opt.build([rmsjit.Variable(np.zeros((2, 3)), name="kernel"), np.zeros(3)])
        >>> [(v.name, v.shape) for v in opt.variables_seen]
        [('kernel:0', (2, 3)), ('Variable:0', (3,))]
        """
        return self._store.variables()

    def forget(self, var: Any) -> None:
        """Drop a variable and its slots; if it is stepped again, it starts with new slots.

        Otherwise a variable is kept until nothing else references its memory.

        Parameters
        ----------
        var : ndarray, Variable or str
            Any view of the variable's memory, or its name.

        Raises
        ------
        KeyError
            If the optimizer does not know it.
        NotImplementedError
            If a strategy divides slots among processes.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, w = rmsjit.RMSprop(), np.zeros(3)
        >>> opt.build([w])
        >>> opt.forget(w)
        >>> opt.variables_seen
        []
        """
        self._refuse_divided("forget")
        self._forget_sums(self._store.named(var))
        forget(self._store, var)

    def rebind(self, old: Any, new: Any = None) -> None:
        """Transfer the state of variables to other memory.

        For variables whose memory changed: read from another file, copied without their
        optimizer, or replaced by an array of the same shape.

        Parameters
        ----------
        old : ndarray, Variable or str
            A variable or its name; or a dict from names to new variables; or a list of new
            variables in the order of `variables_seen`.
        new : ndarray or Variable
            Of the same shape and dtype.  Any state that it has already is dropped.

        Raises
        ------
        KeyError
            If the optimizer does not know a variable.
        TypeError, ValueError
            If a new variable can't be trained, has another shape or dtype than the old one, or
            partly overlaps another in memory.  Nothing is changed then.
        NotImplementedError
            If a strategy divides slots among processes.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, w = rmsjit.RMSprop(0.1, momentum=0.9), np.zeros(3)
        >>> opt.build([w])
        >>> moved = w.copy()
        >>> opt.rebind(w, moved)
        >>> opt.get_slot(moved, "rms").shape
        (3,)
        """
        self._refuse_divided("rebind")
        self._refuse_to_move("rebind")
        rebind(self._store, old, new, self._catch_up)

    def resize_rows(self, old: Any, new: Any = None) -> None:
        """Keep the slots of a table after rows were added or removed at its end.

        The slots of new rows start from their initial values.

        Parameters
        ----------
        old : ndarray, Variable or str
            The table or its name.
        new : ndarray or Variable, optional
            The table with more or fewer rows.  If left out, `old` itself was resized in place.

        Raises
        ------
        KeyError
            If the optimizer does not know the table.
        TypeError, ValueError
            If the new table can't be trained, or has another dtype or shape of rows.
        NotImplementedError
            If a strategy divides slots among processes.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, table = rmsjit.RMSprop(), np.zeros((4, 2))
        >>> opt.apply_gradients([(np.ones((4, 2)), table)]).numpy()
        np.int64(1)
        >>> larger = np.concatenate([table, np.zeros((1, 2))])
        >>> opt.resize_rows(table, larger)
        >>> print(opt.get_slot(larger, "rms").numpy()[:, 0].round(3))
        [0.1 0.1 0.1 0.1 0. ]
        """
        self._refuse_divided("resize_rows")
        self._refuse_to_move("resize_rows")
        epsilon = first_epsilon(self._store.form, self._hyperparameters)
        resize_rows(self._store, old, new, epsilon, self._catch_up)

    def _catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table up to date, without importing Numba for other variables."""
        if entry.clock is not None:
            self._engine.catch_up(entry)

    def _forget_sums(self, entry: Entry) -> None:
        """Drop what an optimizer holds of a variable besides slots."""
