"""Make the golden vectors of the forms from live libraries, or check the committed ones.

    python tests/golden/make_forms.py torch optax         writes forms/torch.npz, forms/optax.npz
    python tests/golden/make_forms.py --check keras       makes them in memory and compares

Without names it runs every library, each in a process of its own.  They can live in several
environments; rmsjit is not imported.  Chainer needs a NumPy before 1.24.  Keras runs on the backend
that KERAS_BACKEND names: its vectors are those of TensorFlow; on JAX the same but for the weight
decay of float64 variables, which is not rounded to float32 there.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from golden import form_cases, form_libraries, form_vectors


def states_of(case):
    """What the library of a case gives, by step and name."""
    run = form_libraries.RUNS[case.form](case)
    return [{name: np.array(value) for name, value in state.items()} for state in run]


def write(form):
    made = {str(case): states_of(case) for case in form_cases.cases_of(form, form_cases.LIVE[form])}
    form_vectors.save(form, made)


def is_the_same_here(case):
    """Whether the backend of Keras makes no difference."""
    on_jax = case.form == "keras" and os.environ.get("KERAS_BACKEND") == "jax"
    return not (on_jax and case.dtype == "float64" and "weight_decay" in case.arguments)


def check(form):
    """What differs between the committed file and the library that is installed, as lines."""
    complaints = []
    for case in filter(is_the_same_here, form_cases.cases_of(form, form_cases.LIVE[form])):
        stored, made = form_vectors.load(case), states_of(case)
        worst = form_vectors.largest_distance(made, stored)
        if worst > form_vectors.SAME_LIBRARY:
            complaints.append(f"{case}: {worst:.3g} units from the committed vectors")
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help="names of `LIVE`")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args()
    if len(given.forms) != 1:
        again = [sys.executable, __file__, *["--check"] * given.check]
        forms = given.forms or form_cases.LIVE
        return max(subprocess.run([*again, form], check=False).returncode for form in forms)
    warnings.simplefilter("ignore")
    (form,) = given.forms
    if not given.check:
        write(form)
        return 0
    complaints = check(form)
    print("\n".join(complaints) or f"the committed vectors are those of this {form}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
