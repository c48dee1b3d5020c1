"""The choice of cases by pairs leaves no pair out."""

import itertools

import pytest

from pairs import covering_pairs, every_pair


@pytest.mark.parametrize("sizes", [(3, 2), (8, 6, 2), (28, 3, 2, 2), (2, 2, 2, 2, 2)])
def test_every_two_values_meet(sizes):
    rows = covering_pairs(*sizes)
    for (a, one), (b, other) in itertools.combinations(enumerate(sizes), 2):
        met = {(row[a], row[b]) for row in rows}
        assert met == set(itertools.product(range(one), range(other)))


def test_they_are_far_fewer_than_all():
    assert len(covering_pairs(28, 3, 2, 2)) <= 1.1 * 28 * 3
    assert len(covering_pairs(8, 6, 5)) <= 1.1 * 8 * 6
    assert len(covering_pairs(2, 2, 2, 2, 2)) <= 8


def test_all_others_are_long():
    cases = every_pair(letter="abc", number=[1, 2], flag=[False, True]).args[1]
    assert len({case.values for case in cases}) == 12
    long = [case.id for case in cases if case.marks]
    assert len(long) == 6
    assert len({case.id for case in cases}) == 12
