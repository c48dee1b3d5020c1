"""Cycles per element of the dense kernels on processors that need not be at hand.

Each kernel is compiled for each processor, and llvm-mca computes how long its innermost loop takes
if all data is in the first-level cache.  The figures depend on the versions of Numba and llvm-mca
alone, not on the machine, so they show a regression that no timing could.

    python -m benchmarks.static            write STATIC.md
    python -m benchmarks.static --check    exit with 1 if a loop has become more than 5 % slower
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

PROCESSORS = ("cascadelake", "icelake-server", "sapphirerapids", "znver3", "znver4")
DTYPES = ("float32", "float64", "bfloat16", "float16")
FORMS = ("plain", "momentum", "centered", "both")
MASTER = "master weights"
REDUCED = {"rms in bfloat16": "bfloat16", "rms in 8 bits": "8bit"}
TABLE = Path(__file__).with_name("STATIC.md")
TOLERANCE = 1.05
_ITERATIONS = 200
_ROOT = re.compile(r"^\s*v?sqrt(ps|pd)\s.*%([xyz]mm)\d+\s*$", re.MULTILINE)
_BYTES = {"xmm": 16, "ymm": 32, "zmm": 64}
_PACKS = re.compile(r"^\s*vp(ackusdw|movdw)\s", re.MULTILINE)  # 32-bit lanes into 16-bit ones
_COUNTS = re.compile(r"^\s*addq\s+\$(\d+), %r\w+\s*$", re.MULTILINE)


class Kernel(NamedTuple):
    """A dense kernel: the slots of its form, the dtype of the variable, whether it clips."""

    form: str
    dtype: str
    clipped: bool

    @property
    def name(self) -> str:
        return f"{self.form}, {self.dtype}" + (", clipped" if self.clipped else "")

    def bytes_per_element(self) -> int:
        """What a step reads and writes: the gradient once, variable and slots twice."""
        import numpy as np

        slots = sum(np.dtype(name).itemsize for name in _compiled_form(self)[1].slots)
        return 3 * int(_dtype(self.dtype).itemsize) + 2 * slots


class Loop(NamedTuple):
    """An innermost loop, and how many elements an iteration computes."""

    text: str
    elements: int


KERNELS = (
    *(Kernel(form, "float32", clipped) for form in FORMS for clipped in (False, True)),
    *(Kernel("plain", dtype, False) for dtype in DTYPES[1:]),
    *(Kernel(MASTER, dtype, False) for dtype in ("bfloat16", "float16")),
    *(Kernel(form, "float32", False) for form in REDUCED),
)


def _dtype(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, name))


# --- from a kernel to the cycles of its loop -------------------------------------------------


def assembly(kernel: Kernel) -> str:
    """The machine code for the processor that NUMBA_CPU_NAME names; it is not run."""
    from numba import int64, njit

    from rmsjit.kernels import dense, driver
    from rmsjit.runtime.flags import FLAGS

    form, kinds = _compiled_form(kernel)
    work = dense.update_pieces(form, kinds, kernel.clipped)
    dispatcher = njit(**FLAGS)(driver.over_bins(work, driver.nothing, driver.nothing))
    dispatcher.compile((int64, int64))
    return dispatcher.inspect_asm((int64, int64))


def _compiled_form(kernel: Kernel) -> tuple[Any, Any]:
    """The form of a kernel, and the dtypes that it is compiled for."""
    from rmsjit.arrays.dtypes import kinds_of, precision_of
    from rmsjit.rule import presets

    form = presets.keras_legacy(
        centered=kernel.form in ("centered", "both"), momentum=kernel.form in ("momentum", "both")
    )
    if kernel.form == MASTER:
        form = form.with_master()
    if kernel.form in REDUCED:
        form = form.with_state({"rms": REDUCED[kernel.form]})
    form, precision = form.arithmetic, precision_of(_dtype(kernel.dtype))
    assert precision is not None
    return form, kinds_of(precision, tuple(slot.dtype for slot in form.slots))


def hot_loops(text: str) -> list[Loop]:
    """The loop that computes nearly all elements, and the one that rounds master weights, if any.

    The first takes most roots at a time.  The second has none, and packs words to half words.
    """
    bodies = list(_innermost(text))
    computing = [Loop(body, _elements(body)) for body in bodies if _ROOT.search(body)]
    if not computing:
        raise ValueError("the kernel has no loop with packed roots")
    rounding = [
        Loop(body, int(_COUNTS.findall(body)[0]))
        for body in bodies
        if _PACKS.search(body) and not _ROOT.search(body)
    ]
    return [max(loops, key=lambda loop: loop.elements) for loops in (computing, rounding) if loops]


def _innermost(text: str) -> Iterator[str]:
    """The bodies of loops without inner ones."""
    parts = re.split(r"^([.\w$]+):", text, flags=re.MULTILINE)
    for label, block in zip(parts[1::2], parts[2::2], strict=True):
        back = re.search(rf"^\s*j\w+\s+{re.escape(label)}\s*$", block, flags=re.MULTILINE)
        if back:
            code = block[: back.start()].splitlines()
            yield "\n".join(line for line in code if not line.lstrip().startswith(("#", ".")))


def _elements(body: str) -> int:
    sizes = {"ps": 4, "pd": 8}
    return sum(_BYTES[width] // sizes[kind] for kind, width in _ROOT.findall(body))


def cycles_per_element(loop: Loop, processor: str) -> float:
    """According to llvm-mca, if all data is in the first-level cache."""
    report = subprocess.run(
        [_mca(), f"-mcpu={processor}", f"-iterations={_ITERATIONS}", "-instruction-info=0"],
        input=loop.text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (total,) = re.findall(r"^Total Cycles:\s+(\d+)", report, flags=re.MULTILINE)
    return int(total) / _ITERATIONS / loop.elements


def _mca() -> str:
    return shutil.which("llvm-mca") or ""


def knows(processor: str) -> bool:
    """Whether llvm-mca has a model of a processor."""
    asked = subprocess.run(
        [_mca(), f"-mcpu={processor}"], input="nop", capture_output=True, text=True, check=False
    )
    return asked.returncode == 0 and "not a recognized processor" not in asked.stderr


# --- the table -------------------------------------------------------------------------------


def measured(processors: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Cycles per element, by the names of kernel and processor."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        columns = list(pool.map(_column, processors))
    return {
        kernel.name: dict(zip(processors, row, strict=True))
        for kernel, row in zip(KERNELS, zip(*columns, strict=True), strict=True)
    }


def _column(processor: str) -> list[float]:
    """The figures of all kernels, from a process in which Numba compiles for that processor."""
    lines = subprocess.run(
        [sys.executable, "-m", "benchmarks.static", "--compile", processor],
        env={**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""},
        cwd=TABLE.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [float(line) for line in lines]


def versions() -> str:
    """What the figures depend on besides the sources."""
    import llvmlite.binding
    import numba

    version = ".".join(map(str, llvmlite.binding.llvm_version_info))
    text = subprocess.run([_mca(), "--version"], capture_output=True, text=True, check=True).stdout
    (analyser,) = re.findall(r"LLVM version ([\d.]+)", text)
    return f"Numba {numba.__version__} (LLVM {version}), llvm-mca {analyser}"


def page(table: dict[str, dict[str, float]], processors: tuple[str, ...]) -> str:
    """STATIC.md."""
    rows = [
        f"| kernel | bytes | {' | '.join(processors)} |",
        "| --- " * (2 + len(processors)) + "|",
    ]
    for kernel in KERNELS:
        figures = (f"{table[kernel.name][processor]:.2f}" for processor in processors)
        rows.append(f"| {kernel.name} | {kernel.bytes_per_element()} | {' | '.join(figures)} |")
    return _PAGE.format(versions=versions(), rows="\n".join(rows))


_PAGE = """# Cycles per element

Written by `python -m benchmarks.static`, which compiles the dense kernels for each processor and
asks llvm-mca for the cycles of the innermost loop, and of the loop that rounds master weights where
that is one of its own. The model has all data in the first-level cache: beyond the caches the bytes
decide, which a step reads and writes for each element. A model is no processor: the columns show
what a change of the code does, and which kernels the arithmetic limits.

{versions}

{rows}
"""


def figures_of(text: str) -> dict[tuple[str, str], float]:
    """The figures of a page, by kernel and processor."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    (_, _, *processors), _, *rows = ([cell.strip() for cell in cells] for cells in lines)
    return {
        (name, processor): float(figure)
        for name, _, *figures in rows
        for processor, figure in zip(processors, figures, strict=True)
    }


def slower(before: str, after: str) -> list[str]:
    """What has become more than 5 % slower between two pages."""
    old, new = figures_of(before), figures_of(after)
    return [
        f"{name} on {processor}: {old[name, processor]} -> {figure} cycles per element"
        for (name, processor), figure in new.items()
        if figure > TOLERANCE * old.get((name, processor), figure)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.static",
        description="Cycles per element of the dense kernels, by llvm-mca.",
    )
    parser.add_argument("--check", action="store_true", help="compare with STATIC.md instead")
    parser.add_argument("--compile", metavar="CPU", help=argparse.SUPPRESS)  # a process of our own
    options = parser.parse_args(arguments)
    if not _mca():
        print("skipped: llvm-mca is missing (Debian's package llvm has it)")
        return 0
    if options.compile:
        for kernel in KERNELS:
            loops = hot_loops(assembly(kernel))
            print(sum(cycles_per_element(loop, options.compile) for loop in loops), flush=True)
        return 0
    known = tuple(filter(knows, PROCESSORS))
    if not options.check:
        TABLE.write_text(page(measured(known), known))
        return 0
    before = TABLE.read_text()
    if versions() not in before:
        print(f"skipped: STATIC.md is not of {versions()}")
        return 0
    found = slower(before, page(measured(known), known))
    print("\n".join(found) or "no loop has become slower")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
