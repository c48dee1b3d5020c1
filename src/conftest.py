"""The doctests of what needs a library that is not installed are left out."""

import importlib.util

_NEEDS = {
    "autograd": [
        f"rmsjit/autodiff/{name}.py"
        for name in ("autograd_names", "gather", "losses", "record", "sparse", "tape", "traced")
    ],
    "torch": ["rmsjit/torch"],
}

collect_ignore = ["conftest.py"]  # which pytest would take for that of the tests
for _library, _paths in _NEEDS.items():
    if importlib.util.find_spec(_library) is None:
        collect_ignore += _paths
