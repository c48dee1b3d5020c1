"""A cluster in a box: nodes of namespaces, with mpiexec and its launcher between them."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import rmsjit

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "mpi"
SECONDS = 300  # of one launch; most of it is compiling

sys.path.insert(0, str(FOLDER))
try:
    import cluster
    import nodes
finally:
    sys.path.remove(str(FOLDER))


why_not = cache(nodes.why_not)


@pytest.fixture
def on_nodes(tmp_path):
    """Runs ``cluster.py`` on two nodes, which share `tmp_path`: its exit status and reports."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    if why_not():
        pytest.skip(why_not())

    def run(ranks, *arguments, own=(), without=(), **environment):
        for report in tmp_path.glob("*.json"):
            report.unlink()
        words = nodes.command(2, ranks, FOLDER / "cluster.py", tmp_path, *arguments, own=own)
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        with subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**inherited, **environment},
        ) as process:
            try:
                output, _ = process.communicate(timeout=SECONDS)
            finally:
                process.kill()  # and with it all that runs in the namespaces
        print(output)
        return process.returncode, [
            json.loads((tmp_path / f"{rank}.json").read_text())
            for rank in range(ranks)
            if (tmp_path / f"{rank}.json").exists()
        ]

    return run


def check_trained(reports, steps):
    """All ranks must have what one process has after these steps."""
    w, opt = np.ones(40), rmsjit.RMSprop(0.125, momentum=0.5)
    for step in range(steps):
        whole = sum(cluster.gradient_of(part, step) for part in range(cluster.PARTS))
        opt.apply_gradients([(whole, w)])
    for report in reports:
        assert report["w"] == w.tolist()


def test_each_node_compiles_once_in_its_own_home(on_nodes, tmp_path):
    """Ranks are divided among nodes by their hosts, and the first one of each compiles."""
    home = tmp_path / "home"
    home.mkdir()
    status, reports = on_nodes(
        3, 2, own=[home], without=["RMSJIT_CACHE_DIR", "XDG_CACHE_HOME"], HOME=str(home)
    )
    assert status == 0
    assert [report["host"] for report in reports] == ["node1", "node1", "node2"]
    assert [report["on_host"] for report in reports] == [2, 2, 1]
    assert [report["compiled"] > 0 for report in reports] == [True, False, True]
    assert not any(home.iterdir())  # here it is that of neither node
    check_trained(reports, 2)


def test_nodes_without_home_share_kernels_and_checkpoints(on_nodes, tmp_path):
    """A node dies: the job ends, and goes on from the checkpoint on fewer ranks."""
    home = {"HOME": "/nonexistent"}
    status, reports = on_nodes(4, 5, 3, **home)
    assert status != 0
    assert not reports
    status, reports = on_nodes(2, 5, **home)
    assert status == 0
    assert [report["host"] for report in reports] == ["node1", "node2"]
    assert [report["resumed"] for report in reports] == [3, 3]
    check_trained(reports, 5)
