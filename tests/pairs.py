"""Few cases of a product of parameters, in which every two values of different ones meet."""

import itertools

import pytest


def every_pair(**choices):
    """Parametrize a test so that any two values of different parameters meet in some case.

    The other cases of the product are `long`.
    """
    values = [list(choice) for choice in choices.values()]
    few = covering_pairs(*map(len, values))
    cases = [
        pytest.param(
            *(of_one[place] for of_one, place in zip(values, row, strict=True)),
            marks=[] if row in few else [pytest.mark.long],
            id="-".join(_shown(of_one[place]) for of_one, place in zip(values, row, strict=True)),
        )
        for row in itertools.product(*(range(len(of_one)) for of_one in values))
    ]
    return pytest.mark.parametrize(tuple(choices), cases)


def covering_pairs(*sizes):
    """Rows of places, one below each of `sizes`, in which every two places meet; greedily."""
    pairs_of = {
        row: set(itertools.combinations(enumerate(row), 2))
        for row in itertools.product(*map(range, sizes))
    }
    left, found = set().union(*pairs_of.values()), set()
    while left:
        best = max(pairs_of, key=lambda row: len(pairs_of[row] & left))
        left -= pairs_of[best]
        found.add(best)
    return found


def _shown(value):
    return getattr(value, "__name__", None) or str(value)
