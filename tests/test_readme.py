"""The documents: their examples run and print what they say, their links lead somewhere."""

import ast
import contextlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from rmsjit.__main__ import main

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "examples/clients/README.md",
    *PAGES,
]
CONTINUED = ["docs/cluster.md", "docs/start/tutorial.md"]  # each block goes on from the one before

BLOCK = re.compile(r"^([ ]*)```([\w{}-]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)
INCLUDED = re.compile(r"^```{include} (\S+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
LANGUAGES = {"python", "sh", "text", "{eval-rst}", "{include}", "{toctree}"}
LONG_COMMANDS = {"bench", "demo", "warmup"}  # tests/test_cli.py runs them on little
SLOW = pytest.mark.slow  # all pages together are, not a single example


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks_of(text, language):
    """The code blocks of a language, each with the number of its first line."""
    return [
        (text[: match.start(3)].count("\n") + 1, textwrap.dedent(match[3]))
        for match in BLOCK.finditer(text)
        if match[2] == language
    ]


def faults_of(code, name="example"):
    """Run an example; how what it prints differs from the comments behind its prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    return differences(code, output.getvalue())


def differences(code, output):
    expected, printed = PRINTED.findall(code), output.splitlines()
    return [] if not expected or printed == expected else [f"printed {printed}, not {expected}"]


def need_modules(code):
    """Skip the test of an example that imports a library which is not installed."""
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                pytest.skip(f"needs {name}")
            if name.startswith("rmsjit.distributed"):
                pytest.importorskip("mpi4py", reason="needs mpi4py")


EXAMPLES = [
    pytest.param(name, line, code, id=f"{name}:{line}", marks=[SLOW] * (name != "README.md"))
    for name in DOCUMENTS
    if name not in CONTINUED
    for line, code in blocks_of(text_of(name), "python")
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks, and of other libraries
@pytest.mark.parametrize(("name", "line", "code"), EXAMPLES)
def test_examples_run(name, line, code, tmp_path, monkeypatch):
    need_modules(code)
    monkeypatch.chdir(tmp_path)  # where they write their files
    assert faults_of("\n" * (line - 1) + code, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUED)
def test_examples_that_continue_each_other_run(name, tmp_path):
    """In a process of its own, which MPI needs."""
    code = "\n".join(code for _, code in blocks_of(text_of(name), "python"))
    need_modules(code)
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.stderr == ""
    assert PRINTED.findall(code)
    assert differences(code, process.stdout) == []


COMMANDS = [
    pytest.param(command, id=f"{name}:{command}")
    for name in DOCUMENTS
    for _, code in blocks_of(text_of(name), "sh")
    for command in re.findall(r"^python -m rmsjit\b(.*?)(?:  .*)?$", code, re.MULTILINE)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, capsys):
    arguments = command.split()
    if arguments[0] in LONG_COMMANDS:
        arguments.append("--help")  # which still refuses what comes before it
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "docs/forms.md", "docs/migration.md"])
def test_documents_with_code_have_examples(name):
    assert len(blocks_of(text_of(name), "python")) >= 2


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_has_a_language_that_is_known(name):
    text = text_of(name)
    assert {match[2] for match in BLOCK.finditer(text)} <= LANGUAGES
    assert text.count("```") == 2 * len(BLOCK.findall(text))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    assert missing_targets(text_of(name), ROOT / name) == []


def missing_targets(text, path):
    missing = []
    for target in LINK.findall(text):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        goal = path if not file else path.parent / file
        if not goal.exists() or (heading and heading not in anchors_of(goal)):
            missing.append(target)
    return missing


def anchors_of(path):
    """The names that GitHub gives to the headings of a document."""
    text = path.read_text(encoding="utf-8")
    for included in INCLUDED.findall(text):
        text += (path.parent / included).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_readme_has_two_commands():
    """In the form in which the gate looks for the second one."""
    commands = [code.strip() for _, code in blocks_of(text_of("README.md"), "sh")]
    assert len(commands) == 2
    demo, test = commands
    assert re.fullmatch(r"python3 -m venv .* -m rmsjit demo", demo)
    assert re.fullmatch(r"python3 -m venv .* -m pytest", test)
    for command, extra in ((demo, "demo"), (test, "test")):
        assert "\n" not in command
        assert f'".[{extra}]"' in command
    assert re.findall(r"^python3 -m venv .* -m pytest$", text_of("README.md"), re.MULTILINE) == [
        test
    ]


def test_the_gate_takes_the_command_and_the_first_example_from_the_readme():
    gate = ROOT / ".ci" / "run"
    if not gate.exists():
        pytest.skip("not a checkout")
    script = gate.read_text(encoding="utf-8")
    assert "grep -E '^python3 -m venv .* -m pytest$' README.md" in script
    assert "awk '/^```python$/" in script
    _, first = blocks_of(text_of("README.md"), "python")[0]
    assert "import autograd" not in first  # it runs where nothing but the wheel is installed
    assert "import rmsjit" in first


def test_the_checks_notice_mistakes():
    text = "- a\n\n  ```python\n  print(1)  # 1\n  ```\n\n```python\nprint(1)  # 2\n```\n"
    (one, right), (two, wrong) = blocks_of(text, "python")
    assert (one, two) == (4, 8)
    assert faults_of(right) == []
    assert faults_of(wrong) == ["printed ['1'], not ['2']"]
    assert faults_of("print(3)") == []
    with pytest.raises(ZeroDivisionError):
        faults_of("1 / 0")
    links = "[a](README.md) [b](nowhere.md) [c](#nothing) [d](README.md#limits) [e](https://e.org)"
    assert missing_targets(links, ROOT / "README.md") == ["nowhere.md", "#nothing"]


def test_every_page_is_two_clicks_from_the_start_page():
    """By links within the pages, whatever the theme's navigation adds."""
    start = ROOT / "docs" / "index.md"
    reached, last = {start}, {start}
    for _ in range(2):
        last = {page for path in last for page in pages_linked_from(path)}
        reached |= last
    assert sorted(reached) == sorted((ROOT / "docs").rglob("*.md"))


ANSWERS = {
    "how to install": "docs/index.md#in-60-seconds",
    "an embedding example": "docs/start/recipes.md#tables-only-the-rows-of-a-batch",
    "how to resume a run": "docs/start/recipes.md#save-and-resume-a-run",
    "what differs from torch's RMSprop": "docs/migration.md#from-pytorch",
    "what a step costs": "docs/reference/results.md",
    "how to add a form": "docs/project/contributing.md#how-to",
}


@pytest.mark.parametrize("question", ANSWERS)
def test_the_start_page_answers(question):
    """Itself, or by one link to the very heading."""
    text = text_of("docs/index.md")
    page, _, heading = ANSWERS[question].partition("#")
    target = page.removeprefix("docs/") + ("#" + heading if heading else "")
    here = page == "docs/index.md" and heading in anchors_of(ROOT / page)
    assert here or target in LINK.findall(text)


@pytest.mark.parametrize("question", ANSWERS)
def test_the_readme_leads_to_the_answers(question):
    """Itself, or by at most one link; it may link to the file that a page of the site includes."""
    if not (ROOT / ".ci").exists():
        pytest.skip("not a checkout: a release has absolute links")
    page = ANSWERS[question].partition("#")[0]
    linked = {target.partition("#")[0] for target in LINK.findall(text_of("README.md"))}
    folder = pathlib.PurePath(page).parent
    included = [(folder / name).as_posix() for name in INCLUDED.findall(text_of(page))]
    names = {os.path.normpath(name) for name in (page, *included)}
    assert names & linked or page == "docs/index.md"


def pages_linked_from(path):
    """The pages of the site that a page links to, also within the files that it includes."""
    text = path.read_text(encoding="utf-8")
    sources = [path, *(path.parent / name for name in INCLUDED.findall(text))]
    for source in sources:
        for target in LINK.findall(source.read_text(encoding="utf-8")):
            goal = (source.parent / target.partition("#")[0]).resolve()
            if goal.suffix == ".md" and goal.is_relative_to(ROOT / "docs"):
                yield goal
