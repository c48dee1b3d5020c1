"""Finding the variables of a step among those that are known, to move the step to them.

Each known variable has a record in a hash table, in which it is found by its address.
`rmsjit.steps.records` makes the table.
"""

import numpy as np
from numba import njit

from rmsjit.kernels import headers
from rmsjit.kernels.headers import (
    ADDRESSES,
    COUNT,
    DTYPE,
    KIND,
    NOT_AS_EXPECTED,
    OWNER,
    OWNER_DATA,
    OWNER_MEMORY,
    SPAN_ENDS,
    SPAN_STARTS,
    VARIABLE_OBJECT,
    as_expected,
    expected_at,
    is_tuple_of,
)
from rmsjit.kernels.objects import (
    ALIGNED,
    ARRAY_BASE,
    ARRAY_DATA,
    ARRAY_DIMENSIONS,
    ARRAY_DTYPE,
    ARRAY_FLAGS,
    ARRAY_NDIM,
    C_CONTIGUOUS,
    ITEMS,
    OWNS_DATA,
    TYPE,
    WRITEABLE,
)
from rmsjit.kernels.views import WORD_BYTES, words
from rmsjit.runtime.flags import INLINED

# Words of the call, after those of `read_pairs`.
KNOWN, FOUND = range(headers.WORDS, headers.WORDS + 2)
WORDS = headers.WORDS + 2
# Words of what is known: the table of records, the logarithm of its length, how many addresses each
# record has, and the layouts of the variables of a step.
RECORDS, BITS, WIDTH, LAYOUTS = range(4)
KNOWN_WORDS = 4
# Columns of a record: whether an earlier variable of the same step has it; the layout of the
# variable; the plain array of the same dtype that owns its memory (0 if it is none), with the data
# and the number of elements that this array had when the variable was new; then the addresses of
# the variable (0 if there is no record) and of its slots.
IS_TAKEN, LAYOUT, ROOT, ROOT_DATA, ROOT_SIZE, ADDRESS = range(6)
# Columns of a layout: its number, and the bytes of a variable and of each of its slots.
NUMBER, FIRST_SIZE = range(2)


def bucket_of(address: int, bits: int) -> int:
    """Where the search for an address begins, in a table of ``2**bits`` records."""
    scattered = (address & 0x7FFFFFFF) * 0x9E3779B1  # fits in 63 bits
    return (scattered & 0xFFFFFFFF) >> (32 - bits)


_bucket_of = njit(**INLINED)(bucket_of)


@njit(**INLINED)
def _record_at(address, layout, known):
    """The address of the record of a variable, or 0."""
    last = (1 << known[BITS]) - 1
    k = _bucket_of(address, known[BITS])
    while True:
        at = known[RECORDS] + k * (ADDRESS + known[WIDTH]) * WORD_BYTES
        record = words(at)
        if record[ADDRESS] == 0:
            return 0
        if record[ADDRESS] == address and record[LAYOUT] == layout:
            return at
        k = (k + 1) & last


@njit(**INLINED)
def _has_root(array_object, expected, record):
    """Whether an array has its memory from the same array as when its record was made."""
    if record[ROOT] == 0:
        return True  # the caller checks it
    base = words(array_object)[ARRAY_BASE]
    root = array_object if base == 0 else base
    header = words(root)
    if root != record[ROOT] or header[TYPE] != expected[KIND]:
        return False
    if header[ARRAY_DTYPE] != expected[DTYPE] or not header[ARRAY_FLAGS] & OWNS_DATA:
        return False
    dimensions, size = words(header[ARRAY_DIMENSIONS]), 1
    for axis in range(header[ARRAY_NDIM] & 0xFFFFFFFF):
        size *= dimensions[axis]
    return header[ARRAY_DATA] == record[ROOT_DATA] and size == record[ROOT_SIZE]


@njit(**INLINED)
def _layout_at(known, k):
    """The layout of a variable of the step."""
    return words(known[LAYOUTS] + k * (FIRST_SIZE + known[WIDTH]) * WORD_BYTES)


@njit(**INLINED)
def _record_of_pair(pair, k, call):
    """The address of the record of the variable of a pair, or 0 if it can't be followed to."""
    if not is_tuple_of(pair, call, 2):
        return 0
    expected, known = expected_at(call, k), words(call[KNOWN])
    gradient, array = words(pair[ITEMS]), words(pair[ITEMS + 1])
    if gradient[TYPE] != expected[KIND] or array[TYPE] != expected[KIND]:
        return 0
    if not array[ARRAY_FLAGS] & WRITEABLE or not as_expected(array, expected):
        return 0
    record = _record_at(array[ARRAY_DATA], _layout_at(known, k)[NUMBER], known)
    if record == 0 or words(record)[IS_TAKEN]:
        return 0
    return record if _has_root(pair[ITEMS + 1], expected, words(record)) else 0


@njit(**INLINED)
def _find_all(pairs, call):
    """Write the address of the record of each pair to ``FOUND``; whether all have one."""
    count, found = call[COUNT], words(call[FOUND])
    known = 0
    while known < count:
        record = _record_of_pair(words(pairs[ITEMS + known]), known, call)
        if record == 0:
            break
        words(record)[IS_TAKEN] = 1
        found[known] = record
        known += 1
    for k in range(known):
        words(found[k])[IS_TAKEN] = 0
    return known == count


@njit(**INLINED)
def _expect(array_object, expected):
    """Write what `read_pairs` shall expect of the variable."""
    expected[VARIABLE_OBJECT] = expected[OWNER] = array_object
    expected[OWNER_DATA] = expected[OWNER_MEMORY] = words(array_object)[ARRAY_DATA]


@njit(**INLINED)
def _sort(numbers, count):
    """Sort words in place, by Shell's method."""
    gap = count >> 1
    while gap > 0:
        for k in range(gap, count):
            number, at = numbers[k], k
            while at >= gap and numbers[at - gap] > number:
                numbers[at] = numbers[at - gap]
                at -= gap
            numbers[at] = number
        gap >>= 1


@njit(**INLINED)
def _move_all(pairs, call):
    """Write where the variables of pairs are, and what the step writes there.

    Returns how many have memory that no array owns.
    """
    starts, ends, spans = words(call[SPAN_STARTS]), words(call[SPAN_ENDS]), 0
    addresses, known, found = words(call[ADDRESSES]), words(call[KNOWN]), words(call[FOUND])
    width, others = known[WIDTH], 0
    for k in range(call[COUNT]):
        _expect(words(pairs[ITEMS + k])[ITEMS + 1], expected_at(call, k))
        record, layout = words(found[k]), _layout_at(known, k)
        others += record[ROOT] == 0
        for column in range(width):
            start, size = record[ADDRESS + column], layout[FIRST_SIZE + column]
            addresses[k * width + column] = start
            if size > 0:
                starts[spans], ends[spans] = start, start + size
                spans += 1
    _sort(starts, spans)  # the spans are disjoint, so starts and ends keep together
    _sort(ends, spans)
    return others


def follow(pairs, call_address):
    """Move the memory of a step to the variables of pairs, if these are known.

    Words of the call: those of `rmsjit.kernels.headers.read_pairs`, but ``EXPECTED`` and the spans
    are written, and ``ADDRESSES`` filled with a row for each pair, of the addresses of its variable
    and slots; ``KNOWN``, the words of what is known; ``FOUND``, working memory of a word for each
    pair.  The gradients are not read.

    Parameters
    ----------
    pairs : int
        ``id`` of a tuple; the caller keeps it and the pairs alive.
    call_address : int

    Returns
    -------
    int
        How many variables have their memory from something else than a plain array of their dtype,
        so that the caller must see whether it is still there.  NOT_AS_EXPECTED, with nothing
        written, if the pairs are not tuples of arrays, or if a variable is read-only, occurs twice,
        has another dtype, shape or layout, has no record, or has its memory from another array than
        when the record was made.
    """
    call, outer = words(call_address), words(pairs)
    if not is_tuple_of(outer, call, call[COUNT]) or not _find_all(outer, call):
        return NOT_AS_EXPECTED
    return _move_all(outer, call)


def can_follow(follow):
    """Whether compiled `follow` agrees with Python and NumPy about a view of an array."""
    root = np.zeros((4, 5), np.float32)
    view = root[2]
    pairs = ((np.zeros_like(view), view),)
    row = [0, 0, 0, 0, id(view.dtype), id(np.ndarray), headers.IN_PLACE, C_CONTIGUOUS | ALIGNED]
    expected = np.array([*row, view.nbytes, view.ndim, *view.shape], np.int64)
    data = _address_of(view)
    records = np.zeros((2, ADDRESS + 1), np.int64)
    records[bucket_of(data, 1)] = 0, 0, id(root), _address_of(root), root.size, data
    layout, spans, found = np.array([0, view.nbytes]), np.zeros((2, 1), np.int64), np.zeros(1, int)
    known = np.array([_address_of(records), 1, 1, _address_of(layout)])
    addresses = np.zeros(1, np.int64)
    starts = _address_of(spans)
    call = [1, id(tuple), _address_of(expected), len(expected), starts, starts + WORD_BYTES, 1]
    call += [_address_of(array) for array in (addresses, known, found)]
    words_of_call = np.array(call, np.int64)
    if follow(id(pairs), _address_of(words_of_call)) != 0:
        return False
    written = [*expected[:DTYPE].tolist(), *spans.ravel().tolist(), *addresses.tolist()]
    return written == [id(view), id(view), data, data, data, data + view.nbytes, data]


def _address_of(array):
    return array.__array_interface__["data"][0]
