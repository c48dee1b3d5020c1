"""The number of processors that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rmsjit.runtime.settings import numba_config


def thread_limit() -> int:
    """The smallest of all `limits`, read on each call because affinity and quotas can change."""
    return max(1, min(limit for limit in limits().values() if limit is not None))


def limits() -> dict[str, int | None]:
    """Each limit by its source; None if the source sets no limit."""
    return {
        "affinity": affinity(),
        "control_group": control_group_quota(),
        "SLURM_CPUS_PER_TASK": slurm_cpus(),
        "NUMBA_NUM_THREADS": numba_config().NUMBA_NUM_THREADS,
    }


def affinity() -> int | None:
    """The number of processors that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def slurm_cpus() -> int | None:
    """What a SLURM job has requested; the affinity mask shows it only if SLURM binds tasks."""
    text = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def control_group_quota(root: str | Path = "/") -> int | None:
    """The CPU quota of the container or job in processors, rounded up.

    Parameters
    ----------
    root : path
        The folder that contains ``proc`` and ``sys``.
    """
    return min((quota for quota in _quotas(Path(root)) if quota is not None), default=None)


def _quotas(root: Path) -> Iterator[int | None]:
    """The quotas of this process's control group and its ancestors."""
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        memberships = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        memberships = ["0::/", "1:cpu:/"]
    for membership in memberships:
        _, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            for folder in _upwards(mounts, path):
                yield _quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                for folder in _upwards(mounts / mount, path):
                    yield _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and of its ancestors.

    In a container, the path may be the host's while the mount shows only the end of it.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _quota(*files: Path) -> int | None:
    """The number of processors from files that contain a quota and then its period."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
    except (OSError, ValueError):
        return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max" or -1: no limit
    return max(1, -(-int(quota) // int(period)))
