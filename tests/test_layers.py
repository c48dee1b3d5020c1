"""Who may import whom: the table of layers in CONTRIBUTING.md, held against the code."""

import ast
import itertools
import re
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType

import pytest

import rmsjit
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.core import Core

PACKAGE = Path(rmsjit.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
TOP = "rmsjit"


def block_of(text, heading):
    """The lines of the first block under a heading."""
    block = rf"^## {heading}\n.*?^```text\n(.*?)^```"
    return re.search(block, text, re.MULTILINE | re.DOTALL)[1].splitlines()


def table(text):
    """The layers from top to bottom, each a list of rooms or modules."""
    return [line.split() for line in block_of(text, "Layers")]


def modules_in(package):
    """The path of every module, by its name without the package's; the package itself is TOP."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        modules[".".join(parts) or TOP] = path
    return modules


parsed = cache(ast.parse)


def imports_of(text, modules):
    """What a module imports of the package: pairs of a name and whether at module level."""
    found = []

    def note(name, at_top):
        assert name == TOP or name.removeprefix(f"{TOP}.") in modules, f"what is {name}?"
        found.append((name.removeprefix(f"{TOP}."), at_top))

    def visit(node, at_top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other, at_top)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == TOP:
                    note(alias.name, at_top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module.split(".")[0] == TOP:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    known = full.removeprefix(f"{TOP}.") in modules
                    note(full if known else node.module, at_top)
        else:
            at_top = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr):  # in which no import can be
                    visit(child, at_top)

    visit(parsed(text), True)
    return found


def room_of(module, layers):
    """The room in the table that a module belongs to: the longest name that it begins with."""
    rooms = [room for rooms in layers for room in rooms]
    mine = [room for room in rooms if f"{module}.".startswith(f"{room}.")]
    assert mine, f"{module} stands in no layer"
    return max(mine, key=len)


def upward(imports, layers):
    """The imports, pairs of modules, that the table forbids."""
    height = {room: k for k, rooms in enumerate(layers) for room in rooms}
    return [
        (module, other)
        for module, other in imports
        for here, there in [(room_of(module, layers), room_of(other, layers))]
        if here != there and height[there] <= height[here]
    ]


def circles(imports):
    """The modules that import each other, through any number of others."""
    reached = {}
    for module, other in imports:
        reached.setdefault(module, set()).add(other)
    for middle, (first, others) in itertools.product(tuple(reached), tuple(reached.items())):
        if middle in others:
            reached[first] |= reached[middle]
    return sorted(module for module, others in reached.items() if module in others)


MODULES = modules_in(PACKAGE)


@cache
def all_imports():
    """The imports of all modules: who imports whom, and whether at module level."""
    return [
        (module, other, at_top)
        for module, path in MODULES.items()
        for other, at_top in imports_of(path.read_text(), MODULES)
    ]


in_a_checkout = pytest.mark.skipif(not CONTRIBUTING.exists(), reason="CONTRIBUTING.md is not here")


@in_a_checkout
def test_no_import_goes_up():
    layers = table(CONTRIBUTING.read_text())
    assert upward([(module, other) for module, other, _ in all_imports()], layers) == []


@in_a_checkout
def test_every_line_of_the_table_names_what_there_is():
    names = [room for rooms in table(CONTRIBUTING.read_text()) for room in rooms]
    assert len(set(names)) == len(names)
    assert set(names) <= set(MODULES)


@in_a_checkout
def test_the_picture_of_the_architecture_names_what_there_is():
    names, package = [], ""
    for line in block_of(CONTRIBUTING.read_text(), "Architecture"):
        first, *others = re.split(" {2,}", line.strip())  # the last of them explains the line
        if first.endswith("/"):
            package = first.rstrip("/")
        elif others:
            names += [f"{package}.{name}" for name in (first, *others[:-1])]
    assert len(names) > 40
    assert set(names) <= set(MODULES)


def test_no_modules_import_each_other():
    assert circles([(module, other) for module, other, at_top in all_imports() if at_top]) == []


def test_only_the_rooms_of_compiled_code_import_numba():
    """So that importing rmsjit and making optimizers does not; all else is within functions."""
    heavy = {"numba", "llvmlite"}
    found = set()
    for module, path in MODULES.items():
        for node in parsed(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names = [node.module] if isinstance(node, ast.ImportFrom) else names
            if isinstance(node, ast.Import | ast.ImportFrom) and heavy & {
                name.split(".")[0] for name in names
            }:
                found.add(module)
    assert {module.partition(".")[0] for module in found} <= {"kernels", "cli"}


# --- the search itself ----------------------------------------------------------------------

SMALL = {"top": "", "low": "", "low.part": "", "low.hooks": "", "side": ""}
LAYERS = [["top"], ["low", "side"], ["low.hooks"]]


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("top", "import rmsjit.low", []),
        ("top", "from rmsjit import side", []),
        ("low", "from rmsjit.top import thing", [("low", "top")]),
        ("low", "def f():\n    import rmsjit.top", [("low", "top")]),
        ("low", "if True:\n    from rmsjit import top", [("low", "top")]),
        ("low", "class A:\n    from rmsjit import side", [("low", "side")]),
        ("low", "if TYPE_CHECKING:\n    import rmsjit.top", []),
        ("low", "if not A:\n    pass\nelse:\n    import rmsjit.top", [("low", "top")]),
        ("low", "from rmsjit.low import part", []),
        ("low.part", "from rmsjit.low.hooks import thing", []),
        ("low.hooks", "from rmsjit.low.part import thing", [("low.hooks", "low.part")]),
        ("low", "import numpy, rmsjitter", []),
    ],
)
def test_what_is_upward(module, text, found):
    imports = [(module, other) for other, _ in imports_of(text, SMALL)]
    assert upward(imports, LAYERS) == found


def test_what_is_a_circle():
    assert circles([("a", "b"), ("b", "c"), ("c", "d")]) == []
    assert circles([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]) == ["b", "c"]
    assert circles([("a", "a")]) == ["a"]


def test_an_import_within_a_function_makes_no_circle():
    text = "import rmsjit.low\ndef f():\n    import rmsjit.side"
    assert imports_of(text, SMALL) == [("low", True), ("side", False)]


# --- the picture of the architecture --------------------------------------------------------


def test_the_picture_names_modules_that_exist():
    (picture,) = re.findall(
        r"^## Architecture\n.*?^```text\n(.*?)^```", CONTRIBUTING.read_text(), re.M | re.S
    )
    packages = re.split(r"^ (\w+)/ .*\n", picture, flags=re.M)[1:]
    named = [
        f"{package}.{module}"
        for package, lines in zip(packages[::2], packages[1::2], strict=True)
        for names in re.findall(r"^   (\w+(?:  \w+)*)(?:   | *$)", lines, re.M)
        for module in names.split()
    ]
    assert {"optimizers.calls", "steps.engine", "kernels.rule"} <= set(named)
    assert not set(named) - modules_in(PACKAGE).keys()


# --- mixins of the optimizers -------------------------------------------------------------


def mixins():
    """The classes of which the optimizers are made, themselves aside."""
    whole = {Optimizer, rmsjit.RMSprop, rmsjit.train.RMSPropOptimizer}
    classes = {c for one in whole for c in one.__mro__ if issubclass(c, Core)}
    return sorted(classes - whole - {Core}, key=lambda mixin: mixin.__name__)


def methods(mixin):
    """The names of what a class defines to be called or read."""
    kinds = (FunctionType, property, cached_property)
    return {name for name, value in vars(mixin).items() if isinstance(value, kinds)}


@pytest.mark.parametrize("mixin", mixins())
def test_a_mixin_overrides_nothing_of_another(mixin):
    for other in set(mixins()) - {mixin}:
        assert not (methods(mixin) & methods(other)) - {"__init_subclass__"}
    assert not methods(mixin) & {"__init__", "__getstate__", "__setstate__"}
