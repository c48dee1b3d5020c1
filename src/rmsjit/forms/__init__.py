"""The RMSprop of every library by name: a function for each library, with its own arguments.

``rmsjit.forms.torch(lr=0.01, alpha=0.99)`` computes what ``torch.optim.RMSprop`` computes with
these arguments, on NumPy arrays.  Each function returns an `rmsjit.RMSprop`.  `from_config` makes
one of what another library's ``get_config`` returned.  The page ``docs/forms.md`` has the table of
all forms, and ``python -m rmsjit forms`` prints it.

Examples
--------
>>> import numpy as np
>>> import rmsjit
>>> w = np.ones(2)
>>> opt = rmsjit.forms.torch(lr=0.1, momentum=0.9)
>>> opt.apply_gradients([(np.array([0.5, -2.0]), w)]).numpy()
np.int64(1)
>>> print(w.round(3))
[0. 2.]
"""

from rmsjit.forms.configs import from_config
from rmsjit.forms.functions import FormFunction as _FormFunction
from rmsjit.forms.functions import function_of as _function_of
from rmsjit.forms.table import LIBRARIES as _LIBRARIES
from rmsjit.text import nearest as _nearest

_FUNCTIONS = {library.name: _function_of(library) for library in _LIBRARIES}
globals().update(_FUNCTIONS)

__all__ = ["from_config", *_FUNCTIONS]


def __getattr__(name: str) -> _FormFunction:
    """The `AttributeError` for what is no form; types see here what functions there are."""
    near = _nearest(name, _FUNCTIONS, least=0.0)
    raise AttributeError(f"there is no form {name!r} in rmsjit.forms; the nearest is {near!r}")
