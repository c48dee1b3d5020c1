"""Offsets, in the headers of Python objects, of the fields that steps read.

``a.ctypes.data`` takes microseconds for each array.  Reading the object headers directly takes
nanoseconds; every C extension is compiled against them, so they are stable.  The length of a tuple
is at offset ``object.__basicsize__``, its items at ``tuple.__basicsize__``.  An array has, from
offset ``object.__basicsize__`` on: data, number of dimensions, dimensions, strides, base, dtype,
flags.

Another thread could free what is being read (``a.shape = ...`` replaces the dimensions), so the GIL
is held meanwhile; without a GIL, headers are not read.  `rmsjit.kernels.headers.headers_readable`
checks once that the layout is the expected one.
"""

from rmsjit.kernels.views import WORD_BYTES

# Positions in words.
TYPE = object.__basicsize__ // WORD_BYTES - 1
LENGTH = object.__basicsize__ // WORD_BYTES  # of a tuple
ITEMS = tuple.__basicsize__ // WORD_BYTES
ARRAY_DATA = object.__basicsize__ // WORD_BYTES
ARRAY_NDIM, ARRAY_DIMENSIONS, ARRAY_BASE, ARRAY_DTYPE, ARRAY_FLAGS = (
    ARRAY_DATA + word for word in (1, 2, 4, 5, 6)
)

# NumPy's own flag bits
C_CONTIGUOUS, F_CONTIGUOUS, OWNS_DATA, ALIGNED, WRITEABLE = 0x1, 0x2, 0x4, 0x100, 0x400
