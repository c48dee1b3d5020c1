"""The examples for other libraries: they run, and the table says what they have and do."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1] / "examples" / "clients"
ROW = re.compile(r"^\| `(\w+)\.py` \| [^|]+ \| (\d+) \| (?:below )?(\S+) \| ", re.MULTILINE)
DISTANCE = re.compile(r"^distance from .+: (\S+)$", re.MULTILINE)
WITHOUT_PACKAGES = ["hogwild_client"]  # also in runs without -m live

TABLE = {
    name: (int(lines), float(bound))
    for name, lines, bound in ROW.findall((CLIENTS / "README.md").read_text())
}
EXAMPLES = sorted(path.stem for path in CLIENTS.glob("*_client.py"))


def text_of(name):
    return (CLIENTS / f"{name}.py").read_text()


def glue_lines(text):
    """The number of lines of code between the two headings, without comments and docstrings."""
    _, glue, _ = re.split(r"^# --- (?:glue|the program) ---$", text, flags=re.MULTILINE)
    lines = enumerate(map(str.strip, glue.splitlines()), start=1)
    code = {number for number, line in lines if line and not line.startswith("#")}
    for node in ast.walk(ast.parse(glue)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return len(code)


def missing_packages(text):
    """The packages that an example imports and that are not installed."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    roots = {name.partition(".")[0] for name in names} - {"comparison"}
    return sorted(root for root in roots if importlib.util.find_spec(root) is None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in WITHOUT_PACKAGES else pytest.mark.live)
        for name in EXAMPLES
    ],
)
def test_a_client_trains_as_the_original_does(name):
    missing = missing_packages(text_of(name))
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, CLIENTS / f"{name}.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    distances = [float(distance) for distance in DISTANCE.findall(done.stdout)]
    assert distances
    assert max(distances) <= TABLE[name][1], done.stdout


def test_the_table_has_every_client_and_its_lines():
    assert {name: lines for name, (lines, _) in TABLE.items()} == {
        name: glue_lines(text_of(name)) for name in EXAMPLES
    }


def test_lines_are_counted():
    glue = '\ndef f():\n    """A.\n\n    B."""\n    # C\n    return 1\n'
    assert glue_lines(f"import a\n# --- glue ---\n{glue}# --- the program ---\nf()\n") == 2
