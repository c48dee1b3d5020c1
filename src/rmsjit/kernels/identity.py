"""Whether tuples and dictionaries hold the same objects as before.

To compare 200 objects takes Python some microseconds, compiled code a tenth of one.  As in
`rmsjit.kernels.objects`, the GIL is held meanwhile.
"""

from rmsjit.kernels.objects import ITEMS, LENGTH
from rmsjit.kernels.views import call_c, words


def same_items(ones, others):
    """Whether two tuples, given by their `id`, hold the same objects in the same order: 0 or 1."""
    first, second = words(ones), words(others)
    if first[LENGTH] != second[LENGTH]:
        return 0
    for k in range(first[LENGTH]):
        if first[ITEMS + k] != second[ITEMS + k]:
            return 0
    return 1


def same_values(dictionaries, keys, values, get_item):
    """Whether dictionaries hold these objects under these keys: 0 or 1.

    Parameters
    ----------
    dictionaries, keys, values : int
        ``id`` of tuples; `values` has those of the first dictionary, then those of the second one.
    get_item : int
        The address of ``PyDict_GetItem``, which leaves no error behind.
    """
    every, names, expected = words(dictionaries), words(keys), words(values)
    count = names[LENGTH]
    for d in range(every[LENGTH]):
        for k in range(count):
            found = call_c(get_item, every[ITEMS + d], names[ITEMS + k])
            if found != expected[ITEMS + d * count + k]:
                return 0
    return 1


def has_item(items, one):
    """Whether a tuple holds an object, both given by their `id`: 0 or 1."""
    header = words(items)
    for k in range(header[LENGTH]):
        if header[ITEMS + k] == one:
            return 1
    return 0
