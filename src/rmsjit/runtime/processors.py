"""How many processors this process may keep busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rmsjit.runtime.settings import numba_config


def thread_limit() -> int:
    """The least of all `limits`; asked anew each time, since affinity and quotas can change."""
    return max(1, min(limit for limit in limits().values() if limit is not None))


def limits() -> dict[str, int | None]:
    """Each limit by the name of what sets it; None where there is none."""
    return {
        "affinity": affinity(),
        "control_group": control_group_quota(),
        "SLURM_CPUS_PER_TASK": slurm_cpus(),
        "NUMBA_NUM_THREADS": numba_config().NUMBA_NUM_THREADS,
    }


def affinity() -> int | None:
    """The processors that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def slurm_cpus() -> int | None:
    """What a SLURM job has asked for; its affinity mask says so only where SLURM binds tasks."""
    text = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(text) if text.isdigit() and int(text) > 0 else None


def control_group_quota(root: str | Path = "/") -> int | None:
    """Processors' worth of time that a container or job may use, rounded up.

    Parameters
    ----------
    root : path
        Where ``proc`` and ``sys`` are found.
    """
    quotas = [quota for quota in _quotas(Path(root)) if quota is not None]
    return min(quotas) if quotas else None


def _quotas(root: Path) -> Iterator[int | None]:
    """The quota of this process's control group and of all that enclose it."""
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        memberships = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        memberships = ["0::/", "1:cpu:/"]
    for membership in memberships:
        _, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _upwards(mounts, path):
                yield _quota_of_version_2(folder)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                for folder in _upwards(mounts / mount, path):
                    yield _quota_of_version_1(folder)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and of its ancestors.

    In a container the path may be the host's, of which the mount shows only the end.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _quota_of_version_2(folder: Path) -> int | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return _processors(quota, period)


def _quota_of_version_1(folder: Path) -> int | None:
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text().strip()
        period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return _processors(quota, period)


def _processors(quota: str, period: str) -> int | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1: no limit
    return max(1, -(-int(quota) // int(period)))
