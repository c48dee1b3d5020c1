"""The line on a terminal before the first kernel is compiled."""

import io
import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="needs terminals of POSIX")

STEP = """
import numpy as np
from rmsjit.runtime import cache
from rmsjit.kernels import rows
for name in ("one", "two"):
    cache.compile_kernel("first_outside", name, lambda: rows.first_outside, arguments=3)
"""


def said(code, terminal, **environment):
    """What a fresh Python writes to standard error."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, **environment}
    subprocess.run([sys.executable, "-c", code], stderr=writer, env=environment, check=True)
    os.close(writer)
    text = b""
    try:
        while part := os.read(reader, 1000):
            text += part
    except OSError:  # the end of a terminal
        pass
    os.close(reader)
    return text.decode()


@pytest.mark.slow
def test_a_terminal_gets_one_line_where_something_is_compiled(tmp_path):
    cold = {"RMSJIT_CACHE_DIR": str(tmp_path / "kernels")}
    assert said(STEP, terminal=True, RMSJIT_QUIET="1", RMSJIT_CACHE="0") == ""
    assert said(STEP, terminal=False, RMSJIT_CACHE="0") == ""
    (line,) = said(STEP, terminal=True, **cold).splitlines()
    assert "compiling" in line
    assert said(STEP, terminal=True, **cold) == ""


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize("stream", [None, CLOSED], ids=["none", "closed"])
def test_a_program_without_standard_error_compiles(stream, monkeypatch):
    from rmsjit.runtime import notice

    monkeypatch.setattr(notice, "_told", False)
    monkeypatch.setattr(sys, "stderr", stream)
    notice.compiling()
    assert not notice._told
