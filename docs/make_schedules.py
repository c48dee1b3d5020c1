"""Draw schedules.png: an example of every schedule, as ``python -m rmsjit schedule`` draws them.

    python docs/make_schedules.py

Needs matplotlib.
"""

import pathlib

from rmsjit.cli.plots import save_gallery
from rmsjit.cli.schedule import EXAMPLES

PICTURE = pathlib.Path(__file__).resolve().parent / "schedules.png"


def main():
    save_gallery(PICTURE, list(EXAMPLES.values()))


if __name__ == "__main__":
    main()
