"""``python -m rmsjit warmup``: compile kernels into the cache ahead of the first run.

On a cluster, run it once for each type of processor, on a cache folder that all nodes can read.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from rmsjit.arrays.dtypes import SUPPORTED, Precision, dtype_named, kinds_of, precision_of
from rmsjit.cli.bench import VARIANTS
from rmsjit.rule.presets import keras_legacy
from rmsjit.runtime import store
from rmsjit.text import human_size

Loads = list[Callable[[], Any]]
Job = tuple[str, Loads]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``warmup``."""
    parser = subparsers.add_parser(
        "warmup",
        help="compile kernels into the cache ahead of the first run",
        description="Compile kernels into the cache, so that no training run has to wait for the "
        "compiler. Each type of processor needs its own kernels.",
    )
    add = parser.add_argument
    add(
        "--dtypes",
        type=_list_of(SUPPORTED),
        default=["float32"],
        metavar="NAME[,NAME...]",
        help=f"dtypes of the variables: {', '.join(SUPPORTED)} (default: float32)",
    )
    add(
        "--variants",
        type=_list_of(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME[,NAME...]",
        help=f"variants of the rule: {', '.join(VARIANTS)} (default: all)",
    )
    add("--sparse", action="store_true", help="also compile kernels for sparse gradients")
    add("--clear", action="store_true", help="first remove all kernels, also of older versions")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile the requested kernels that are not cached yet; return the exit status."""
    folder = store.cache_folder()
    if folder is None:
        print(
            "rmsjit warmup: there is no cache: RMSJIT_CACHE is 0, or no folder can be written",
            file=sys.stderr,
        )
        return 2
    try:
        precisions = [_precision(name) for name in arguments.dtypes]
    except ImportError:
        print("rmsjit warmup: bfloat16 needs the package ml_dtypes", file=sys.stderr)
        return 2
    if arguments.clear:
        print(f"Removed {store.clear(folder)} kernels.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # for example that the disk is full
            _work_off(jobs(precisions, arguments.variants, arguments.sparse))
    except RuntimeWarning as warning:
        print(f"rmsjit warmup: {warning}", file=sys.stderr)
        return 1
    sizes = [path.stat().st_size for path in store.contents(folder)]
    print(f"{len(sizes)} kernels ({human_size(sum(sizes))}) in {folder}")
    return 0


def jobs(precisions: Iterable[Precision], variants: Sequence[str], sparse: bool) -> Iterator[Job]:
    """Names and load functions of all requested kernels."""
    from rmsjit.kernels import loader

    yield "every step", [loader.run_act, loader.read_pairs, loader.copy_strided]
    yield "threads", [loader.run_on_threads]
    yield "views of known arrays", [loader.follow]
    if sparse:
        yield "search of rows", [loader.first_outside, loader.find_rows]
        yield "clock of rows", [loader.tick, loader.reset]
    for p in precisions:
        yield f"norms, {p.name}", [partial(loader.sums_of_squares, p.real, p.computing)]
        yield f"sums of gradients, {p.name}", [partial(loader.add_pieces, p.computing)]
        for name in variants:
            momentum, centered = VARIANTS[name]
            form = keras_legacy(centered=centered, momentum=momentum > 0).arithmetic
            kinds = kinds_of(p, tuple(slot.dtype for slot in form.slots))
            dense = partial(loader.update_dense, form, kinds)
            yield f"{name}, {p.name}", [partial(dense, clipped) for clipped in (False, True)]
            if sparse:
                rows = partial(loader.update_rows, form, kinds)
                loads: Loads = [partial(rows, exact) for exact in (False, True)]
                loads.append(partial(loader.catch_up_rows, form, kinds))
                yield f"sparse {name}, {p.name}", loads


def _work_off(work: Iterable[Job]) -> None:
    for name, loads in work:
        start = time.perf_counter()
        for load in loads:
            load()
        print(f"{name:40} {time.perf_counter() - start:6.2f} s", flush=True)


def _precision(name: str) -> Precision:
    precision = precision_of(dtype_named(name))
    assert precision is not None
    return precision


def _list_of(names: Iterable[str]) -> Callable[[str], Sequence[str]]:
    """A parser of comma-separated names."""

    def read(text: str) -> Sequence[str]:
        found = [name.strip() for name in text.split(",")]
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not among {', '.join(names)}")
        return found

    return read
