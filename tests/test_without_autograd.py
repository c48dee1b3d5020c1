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
        "from rmsjit import GradientTape",
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


def test_one_module_imports_autograd():
    package = Path(rmsjit.__file__).parent
    imported = re.compile(r"^\s*(import|from) autograd\b", re.MULTILINE)
    found = [path.name for path in package.rglob("*.py") if imported.search(path.read_text())]
    assert found == ["autograd_names.py"]
