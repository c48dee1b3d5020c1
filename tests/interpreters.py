"""Other interpreters, for libraries that can't be imported beside today's NumPy."""

import os
import subprocess
import sys

import pytest


def chainer_python():
    """An interpreter with Chainer: that which CHAINER_PYTHON names, or this one; else a skip."""
    python = os.environ.get("CHAINER_PYTHON", sys.executable)
    tried = subprocess.run([python, "-c", "import chainer"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("Chainer needs NumPy 1: set CHAINER_PYTHON to an interpreter that imports it")
    return python
