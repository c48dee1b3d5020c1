"""The share of public names whose types are complete, by pyright.

pyright takes every module without an underscore for public.  Here only what the public modules
name in their ``__all__`` counts, with the members of the classes and of their bases in rmsjit.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REQUIRED = 0.98
SOURCES = Path(__file__).resolve().parent.parent / "src"
PUBLIC = [
    "rmsjit",
    "rmsjit.distributed",
    "rmsjit.forms",
    "rmsjit.interop",
    "rmsjit.schedules",
    "rmsjit.train",
]
if importlib.util.find_spec("torch"):
    PUBLIC.append("rmsjit.torch")


def main() -> int:
    symbols = [symbol for symbol in reported() if is_public(symbol["name"])]
    lacking = [symbol for symbol in symbols if not known(symbol)]
    for symbol in lacking:
        print(symbol["name"], *messages(symbol), sep="\n    ")
    score = 1 - len(lacking) / len(symbols)
    print(f"{score:.1%} of {len(symbols)} public names have complete types")
    return int(score < REQUIRED)


def reported() -> list[dict[str, Any]]:
    """What pyright says of each name in the package."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    command += ["--ignoreexternal", "--verifytypes", "rmsjit"]
    # pyright does not see packages that are installed as editable.
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    symbols: list[dict[str, Any]] = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    return symbols


def known(symbol: dict[str, Any]) -> bool:
    return symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]


def messages(symbol: dict[str, Any]) -> list[str]:
    return [diagnostic["message"].splitlines()[0] for diagnostic in symbol["diagnostics"]]


def is_public(name: str) -> bool:
    owner, _, member = name.rpartition(".")
    return name in NAMES or (owner in NAMES and not member.startswith("_"))


def public_names() -> Iterator[str]:
    """The full names of what the public modules offer, and of the bases of classes."""
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            yield f"{module_name}.{name}"
            thing = getattr(module, name)
            for part in getattr(thing, "__mro__", (thing,)):
                home = getattr(part, "__module__", "")
                if home.partition(".")[0] == "rmsjit":
                    yield f"{home}.{part.__qualname__}"


NAMES = frozenset(public_names())

if __name__ == "__main__":
    sys.exit(main())
