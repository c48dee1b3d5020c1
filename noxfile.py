"""Everything that must hold, each in an environment of its own: ``nox --list``.

A session whose interpreter is not installed is skipped.  ``nox -R -s quick`` is for while you work.
"""

import re
import tarfile
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
KERNELS = {"RMSJIT_CACHE_DIR": str(ROOT / ".nox" / "kernels"), "MPLBACKEND": "Agg"}
# What needs no extra; pytest, hypothesis and ml_dtypes are used by the tests themselves.
WITHOUT_EXTRAS = [
    f"tests/test_{name}.py"
    for name in (
        "errors",
        "golden",
        "import",
        "numba_internals",
        "optimizer",
        "schedules",
        "sparse",
        "without_autograd",
    )
]

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [
    "tests",
    "oldest",
    "without_extras",
    "sdist",
    "wheel",
    "lint",
    "types",
    "docs",
]


def run_tests(session, *arguments):
    session.run("python", "-m", "pytest", *arguments, *session.posargs, env=KERNELS)


@nox.session(python=PYTHONS)
def tests(session):
    """All tests, with the newest versions of everything."""
    session.install("--upgrade", "-e", ".[test]")
    run_tests(session)


@nox.session(python="3.11")
def oldest(session):
    """All tests, with the lower bound of every dependency."""
    # The oldest Matplotlib uses what pyparsing 3.3 has deprecated.
    session.install("-e", ".[test]", "pyparsing<3.3", *lower_bounds())
    run_tests(session)


def lower_bounds():
    """Every dependency of the package and of its tests, in the oldest version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("autograd", "demo", "hdf5", "mpi", "safetensors", "test")
    wanted = [*project["dependencies"], *(line for name in names for line in extras[name])]
    return [re.sub(r">=([\d.]+)(,<[\d.]+)?", r"==\1", line) for line in wanted if ">=" in line]


@nox.session(python="3.11")
def without_extras(session):
    """The tests that need no extra."""
    session.install("-e", ".", "pytest", "pytest-xdist", "hypothesis", "ml_dtypes")
    run_tests(session, *WITHOUT_EXTRAS)


@nox.session
def sdist(session):
    """All tests, as the source distribution has them."""
    folder = built(session, "--sdist")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    session.chdir(folder / archive.name.removesuffix(".tar.gz"))
    session.install(".[test]")
    run_tests(session)


@nox.session
def wheel(session):
    """The wheel without extras runs the first example of the README, outside of the checkout."""
    folder = built(session, "--wheel")
    (file,) = folder.glob("*.whl")
    session.install(str(file))
    example = folder / "example.py"
    example.write_text(re.search(r"```python\n(.*?)```", readme(), re.DOTALL)[1])
    session.chdir(folder)
    session.run("python", "-W", "error", str(example), env=KERNELS)
    session.run("rmsjit", "info", env=KERNELS)


def built(session, what):
    """The folder with what `build` makes."""
    folder = Path(session.create_tmp()).resolve() / "dist"  # sessions change the folder
    session.install("build")
    session.run("python", "-m", "build", what, "--outdir", str(folder), str(ROOT))
    return folder


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


@nox.session
def lint(session):
    """Style and format."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session):
    """The package, what users' type checkers see of it, and how complete its types are."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("mypy", "typing_tests")
    session.run("pyright")
    session.run("python", "typing_tests/completeness.py")


@nox.session(python="3.11", default=False)
def long(session):
    """The tests that take minutes, and all cases of what other runs test by pairs."""
    session.install("-e", ".[test]")
    run_tests(session, "-m", "long")


@nox.session(default=False)
def coverage(session):
    """All tests, with the lines of Python code that they run."""
    session.install("-e", ".[test,torch]", "coverage>=7.10", "pytest-cov>=6.3")
    run_tests(session, "--cov", "--cov-report=term")


@nox.session
def docs(session):
    """The site, without a warning."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/site")


@nox.session(default=False)
def links(session):
    """The links of the site that leave it, which needs a network."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-b", "linkcheck", "-q", "docs", "build/links")


@nox.session(python=PYTHONS, default=False)
def quick(session):
    """The tests that take no seconds each, up to the first that fails."""
    session.install("-e", ".[test]")
    run_tests(session, "-x", "-q", "-m", "not slow")
