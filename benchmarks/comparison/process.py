"""The worker processes of the comparison, seen from the parent."""

import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


class PeerError(Exception):
    """A peer could not answer a request."""


class PeerProcess:
    """One peer in a separate process, so that thread pools of libraries don't compete.

    Parameters
    ----------
    name : str
    threads : int
    pythons : dict of str to str
        The interpreters of peers, by patterns of their names.
    """

    def __init__(self, name: str, threads: int, pythons: dict[str, str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        python = next(
            (path for pattern, path in pythons.items() if fnmatch.fnmatch(name, pattern)),
            sys.executable,
        )
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.comparison.worker", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=_ROOT,
            env=environment(threads),
            text=True,
            encoding="utf-8",
        )

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send a request to the worker and return its answer.

        Raises
        ------
        PeerError
            If the request fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([request, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"the process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["value"]

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.wait()}"

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def environment(threads: int) -> dict[str, str]:
    """The environment of a worker, with each library's own setting for the number of threads."""
    return {
        **os.environ,
        **dict.fromkeys(_THREAD_COUNTS, str(threads)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def chosen(name: str, patterns: list[str]) -> bool:
    """Whether a name matches one of the patterns, or there are none."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
