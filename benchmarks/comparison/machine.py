"""The machine of the measurements."""

import os
import platform
from pathlib import Path


def description(threads: int) -> dict[str, str]:
    """A description of the machine that does not reveal its owner."""
    facts = {
        "CPU": _cpu_model(),
        "CPUs": f"{os.cpu_count()}, of which {threads} used",
        "Caches": _caches(),
        "Memory": _memory(),
        "Huge pages": _huge_pages(),
        "System": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _cpu_model() -> str:
    text = _read("/proc/cpuinfo")
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    model = found.get("model name") or platform.processor()
    if "cpu family" in found:
        model += f" (family {found['cpu family']}, model {found['model']})"
    return model


def _caches() -> str:
    sizes = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(folder / "type") != "Instruction":
            sizes.append(f"L{_read(folder / 'level')} {_read(folder / 'size')}")
    return ", ".join(sizes)


def _memory() -> str:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            return f"{int(line.split()[1]) / 2**20:.0f} GiB"
    return ""


def _huge_pages() -> str:
    modes = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return next((mode.strip("[]") for mode in modes.split() if mode.startswith("[")), "")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
