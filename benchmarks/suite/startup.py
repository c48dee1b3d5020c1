"""The cost of a fresh process: imports, the first step, memory."""

import subprocess
import sys

from .common import dense_step, values

FIRST_STEP = """
import numpy as np
import rmsjit
rmsjit.RMSprop().apply_gradients([(np.ones(100, np.float32), np.ones(100, np.float32))])
"""
WITHOUT_CACHE = """
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    os.environ["RMSJIT_CACHE_DIR"] = folder
"""
MEMORY_SIZE = 10_000_000


class Startup:
    """Each sample is a separate process."""

    number = 1
    repeat = 5

    def timeraw_import(self):
        return "import rmsjit"

    def timeraw_optimizer(self):
        return "import rmsjit; rmsjit.RMSprop()"

    def timeraw_import_of_numba(self):
        return "import numba"

    def timeraw_first_step_compiling(self):
        return WITHOUT_CACHE + FIRST_STEP.replace("\n", "\n    ")


class WarmStartup:
    """The kernels come from the cache."""

    number = 1
    repeat = 5

    def setup(self):
        subprocess.run([sys.executable, "-c", FIRST_STEP], check=True)

    def timeraw_first_step(self):
        return FIRST_STEP


class Memory:
    """The difference counts: both include the interpreter, Numba and the compiler."""

    def peakmem_arrays(self):
        self.arrays = [values(MEMORY_SIZE, "float32", seed) for seed in range(2)]

    def peakmem_step(self):
        dense_step((MEMORY_SIZE,), variant="momentum")()
