"""Write ``library_schedules.npz``: the values of schedules of PyTorch and optax.

    python tests/golden/make_schedules.py

Needs torch and optax.
"""

import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from golden import schedule_libraries  # noqa: E402


def main():
    values = {name: case.values() for name, case in schedule_libraries.CASES.items()}
    np.savez_compressed(HERE / "library_schedules.npz", **values)


if __name__ == "__main__":
    main()
