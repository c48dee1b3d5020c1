"""Benchmarks of rmsjit: an asv suite, and comparisons with other libraries."""

import sys
from pathlib import Path

# All peers use rmsjit's stopwatch and test numbers, which need only NumPy.  A peer's interpreter
# that has no rmsjit finds them in this checkout; an installed rmsjit takes precedence.
sys.path.append(str(Path(__file__).parents[1] / "src"))
