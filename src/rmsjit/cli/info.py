"""``python -m rmsjit info``: versions, processor, threads and cache, as for a bug report."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rmsjit._version import __version__
from rmsjit.text import human_size

IMPORTED = ("numpy", "numba", "llvmlite")
ENVIRONMENT = ("RMSJIT_CACHE", "RMSJIT_CACHE_DIR")
REASONS = {
    "affinity": "the affinity mask",
    "control_group": "the control group's quota",
    "SLURM_CPUS_PER_TASK": "SLURM_CPUS_PER_TASK",
    "NUMBA_NUM_THREADS": "NUMBA_NUM_THREADS",
}

Report = dict[str, Any]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``info``."""
    parser = subparsers.add_parser(
        "info",
        help="show versions, processor, threads and cache",
        description="Show versions, processor, threads and the cache of compiled kernels.",
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report, only on rank 0 under ``mpiexec``; return the exit status."""
    report = collect()
    if report["ranks"] is None and "ranks" not in report["problems"]:
        return 0
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def collect() -> Report:
    """Collect the report.

    Returns
    -------
    dict
        Can be written as JSON.  Facts that could not be found are None, and "problems" says why.
        Under ``mpiexec`` this is a collective operation, and "ranks" is None on all ranks but 0.
    """
    problems: dict[str, str] = {}

    def known(name: str, find: Callable[[], Any]) -> Any:
        try:
            return find()
        except Exception as error:  # a broken installation must still get its report
            problems[name] = f"{type(error).__name__}: {error}"
            return None

    return {
        "versions": {
            "rmsjit": __version__,
            "python": platform.python_version(),
            **{name: known(name, partial(_imported_version, name)) for name in IMPORTED},
            "tbb": known("tbb", _tbb_version),
        },
        "cpu": {
            "model": known("cpu model", _cpu_model),
            "llvm_name": known("cpu llvm_name", _llvm_cpu_name),
            "count": os.cpu_count(),
        },
        "numba_lacks": known("numba_lacks", _numba_lacks),
        "threads": known("threads", _threads),
        "threading_layer": known("threading_layer", _threading_layer),
        "learned": known("learned", _learned),
        "cache": known("cache", _cache),
        "ranks": known("ranks", _ranks),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "problems": problems,
    }


def as_text(report: Report) -> str:
    """The report as readable, aligned lines."""
    parts = (_versions, _machine, _trials, _storage, _cluster, _problems)
    blocks = [list(part(report)) for part in parts]
    width = max(len(label) for block in blocks for label, _ in block)
    return "\n\n".join(
        "\n".join(f"{label:{width}}  {value}" for label, value in block)
        for block in blocks
        if block
    )


# --- collecting -----------------------------------------------------------------------------


def _imported_version(name: str) -> str:
    version: str = importlib.import_module(name).__version__
    return version


def _tbb_version() -> str | None:
    try:
        return importlib.metadata.version("tbb")
    except importlib.metadata.PackageNotFoundError:
        return None  # not a problem: there are other threading layers


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _llvm_cpu_name() -> str:
    from llvmlite import binding

    name: str = binding.get_host_cpu_name()
    return name


def _numba_lacks() -> list[str]:
    """The private names of Numba that rmsjit uses and this version does not have."""
    from rmsjit.runtime import numba_internals

    importlib.import_module("numba")  # without it, all would be missing
    return [
        f"{private.module}.{private.name} ({private.reason})"
        for private in numba_internals.missing()
    ]


def _threads() -> Report:
    from rmsjit.runtime import processors

    limits = processors.limits()
    used = processors.thread_limit()
    return {"used": used, "limited_by": _limiting(used, limits), "limits": limits}


def _limiting(used: int, limits: dict[str, int | None]) -> list[str]:
    """The names of the limits that keep the number of threads below that of the CPUs."""
    if used == os.cpu_count():
        return []
    names = [name for name, limit in limits.items() if limit == used]
    # Unless the user has set it, Numba's own limit follows the affinity mask.
    if "NUMBA_NUM_THREADS" not in os.environ and len(names) > 1:
        names = [name for name in names if name != "NUMBA_NUM_THREADS"]
    return names


def _threading_layer() -> str:
    from rmsjit.runtime import threads

    return threads.layer_name()


def _learned() -> list[Report]:
    from rmsjit.runtime import learned

    return [
        {
            "kind": work.kind,
            "bytes": [1 << work.bits - 1, 1 << work.bits],
            "most_threads": work.most,
            "fastest": str(learned.fastest(costs)),
            "bytes_per_second": {str(way): 1 / cost for way, cost in sorted(costs.items())},
        }
        for work, costs in sorted(learned.known().items())
    ]


def _cache() -> Report:
    from rmsjit.runtime import store

    folder = store.cache_folder()
    if folder is None:
        return {"folder": None, "kernels": 0, "bytes": 0}
    sizes = [path.stat().st_size for path in store.contents(folder)]
    return {"folder": str(folder), "kernels": len(sizes), "bytes": sum(sizes)}


def _ranks() -> list[Report] | None:
    from rmsjit.distributed import comm, report

    return report.report(comm.load_mpi().COMM_WORLD) if report.launched_by_mpi() else []


# --- formatting -----------------------------------------------------------------------------

Lines = Iterator[tuple[str, str]]


def _versions(report: Report) -> Lines:
    versions = report["versions"]
    yield "rmsjit", versions["rmsjit"]
    yield "Python", f"{versions['python']} ({platform.system()}, {platform.machine()})"
    for label in ("NumPy", "Numba", "llvmlite"):
        yield label, versions[label.lower()] or "can't be imported"
    yield "TBB", versions["tbb"] or "not installed"
    if report["numba_lacks"]:
        yield "Numba has changed", "it lacks " + "; ".join(report["numba_lacks"])


def _machine(report: Report) -> Lines:
    cpu, threads = report["cpu"], report["threads"]
    yield "CPU", f"{_or_unknown(cpu['model'])} (LLVM: {_or_unknown(cpu['llvm_name'])})"
    yield "CPUs of the machine", _or_unknown(cpu["count"])
    yield "Threads", _or_unknown(threads and f"{threads['used']} ({_reason(threads)})")
    yield "Threading layer", _or_unknown(report["threading_layer"])


def _reason(threads: Report) -> str:
    if not threads["limited_by"]:
        return "one for each CPU"
    return "limited by " + " and ".join(REASONS[name] for name in threads["limited_by"])


def _trials(report: Report) -> Lines:
    """What steps that were run in several ways have found, a line for each kind."""
    label = "Found to be fastest"
    for row in report["learned"] or []:
        least, most = map(human_size, row["bytes"])
        by_way = row["bytes_per_second"].items()
        speeds = [f"{way}: {human_size(speed)}/s" for way, speed in by_way]
        work = f"{row['kind']}, {least} to {most} written"
        threads, *prefetching = row["fastest"].split()
        fastest = " ".join([threads, "of", str(row["most_threads"]), *prefetching])
        yield label, f"{fastest} ({work}; {', '.join(speeds)})"
        label = ""


def _storage(report: Report) -> Lines:
    cache = report["cache"]
    yield "Cache folder", _or_unknown(cache and (cache["folder"] or "none"))
    if cache:
        yield "Cached kernels", f"{cache['kernels']} ({human_size(cache['bytes'])})"
        if cache["kernels"]:
            yield "", "`rmsjit warmup --clear` also removes those of older versions"
    for name, value in report["environment"].items():
        yield name, "not set" if value is None else value


def _cluster(report: Report) -> Lines:
    ranks = report["ranks"] or []
    if ranks:
        yield "MPI", f"{ranks[0]['library']}, {_counted(len(ranks), 'rank')}"
    for rank in ranks:
        role = "compiles for its host" if rank["compiles"] else "loads what another compiles"
        threads = _counted(rank["threads"], "thread")
        yield f"Rank {rank['rank']}", f"{rank['host']}, {threads}, {role}"


def _problems(report: Report) -> Lines:
    for name, text in report["problems"].items():
        yield f"Problem: {name}", text


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _or_unknown(value: Any) -> str:
    return "unknown" if value is None else str(value)
