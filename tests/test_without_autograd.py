"""rmsjit where the package autograd is not installed: all but tapes works."""

import re
from pathlib import Path

import pytest

import rmsjit
from strategies import run_python

HIDDEN = """
import sys
sys.modules["autograd"] = None  # as if it were not installed
import numpy as np
import rmsjit

w = np.ones(3)
"""


@pytest.mark.slow
def test_all_but_the_tape_works(tmp_path):
    code = """
table, v = np.ones((5, 2)), rmsjit.Variable(np.ones(3))
optimizer = rmsjit.RMSprop(rmsjit.schedules.CosineDecay(0.1, 10), momentum=0.5)
rows = rmsjit.IndexedSlices(np.ones((2, 2)), [1, 3])
optimizer.apply_gradients([(w.copy(), w), (rows, table), (2 * v, v)])
rmsjit.save(sys.argv[1], optimizer, {"w": w, "table": table, "v": v})
rmsjit.load(sys.argv[1])
rmsjit.train.RMSPropOptimizer(0.1).apply_gradients([(w.copy(), w)])
rmsjit.forms.autograd(step_size=0.1).apply_gradients([(w.copy(), w)])
print(rmsjit.optimize(lambda x: (x**2).sum(), w, jac=lambda x: 2 * x).success)
"""
    assert run_python(HIDDEN + code, tmp_path / "run.npz") == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        "rmsjit.GradientTape()",
        "rmsjit.gather(w, [0])",
        "rmsjit.RMSprop().minimize(lambda: 0.0, [rmsjit.Variable(w)])",
        "rmsjit.train.RMSPropOptimizer(0.1).minimize(lambda: 0.0, var_list=[rmsjit.Variable(w)])",
        "rmsjit.optimize(lambda x: (x**2).sum(), w)",
        "from rmsjit import GradientTape; GradientTape(persistent=True)",
    ],
)
def test_the_error_says_what_to_install(use):
    code = f"""
try:
    {use}
except ImportError as error:
    print(error)
"""
    assert 'pip install "autograd>=1.8", or rmsjit with its extra [autograd]' in run_python(
        HIDDEN + code
    )


@pytest.mark.slow
def test_every_public_name_is_there():
    """For star imports, `help` and completion, whatever of the optional libraries is missing."""
    code = """
for name in ("h5py", "matplotlib", "ml_dtypes", "mpi4py", "safetensors", "scipy", "sklearn"):
    sys.modules[name] = None
from rmsjit import *
import inspect, pydoc
names = dict(inspect.getmembers(rmsjit))
print(set(rmsjit.__all__) <= set(names), all(names[n] is globals()[n] for n in rmsjit.__all__))
print("autograd" in pydoc.render_doc(rmsjit.GradientTape))
pydoc.render_doc(rmsjit)
"""
    assert run_python(HIDDEN + code) == "True True\nTrue\n"


@pytest.mark.slow
def test_the_names_work_once_autograd_has_come():
    """As after ``%pip install autograd`` in a notebook that has the names already."""
    pytest.importorskip("autograd")
    code = """
from rmsjit import GradientTape, gather
del sys.modules["autograd"]
table = rmsjit.Variable(np.ones((4, 2)))
with GradientTape(persistent=True) as tape:
    loss = np.sum(gather(table, [1, 1, 2]) ** 2)
print(tape.gradient(loss, table).indices.tolist(), type(tape).__name__)
"""
    assert run_python(HIDDEN + code) == "[1, 1, 2] GradientTape\n"


def test_one_module_imports_autograd():
    package = Path(rmsjit.__file__).parent
    imported = re.compile(r"^\s*(import|from) autograd\b", re.MULTILINE)
    found = [path.name for path in package.rglob("*.py") if imported.search(path.read_text())]
    assert found == ["autograd_names.py"]
