"""How far two trained models are apart; each example ends with it."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def report(original: str, ours: Iterable[Any], theirs: Iterable[Any]) -> None:
    """Print the largest difference between two lists of arrays, relative to their largest value."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    scale = max(float(np.abs(b).max()) for _, b in pairs)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    print(f"distance from {original}: {largest / scale:.1e}")
