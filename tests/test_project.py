"""The files around the package fit each other."""

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGES = [path for path in sorted((ROOT / "changes").glob("*.md")) if path.name != "README.md"]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")

in_a_checkout = pytest.mark.skipif(not WORKFLOWS, reason="not a checkout")


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CHANGES, ids=lambda path: path.name)
def test_a_change_is_one_item_of_a_list(path):
    first, *others = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("- ")
    assert all(line.startswith("  ") for line in others)


@in_a_checkout
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_sessions_that_there_are(path):
    text = path.read_text(encoding="utf-8")
    named = {name for names in re.findall(r"session: \[(.+)\]", text) for name in names.split(", ")}
    named |= set(re.findall(r'-s "?([a-z_]+)', text))
    sessions = set(re.findall(r"@nox\.session.*\ndef (\w+)", NOXFILE))
    assert named
    assert named <= sessions


@in_a_checkout
def test_every_python_that_is_claimed_is_tested():
    classifiers = " ".join(settings()["project"]["classifiers"])
    claimed = json.dumps(re.findall(r"Python :: (3\.\d+)", classifiers))
    assert f"PYTHONS = {claimed}\n" in NOXFILE
    assert f"python: {claimed}\n" in (WORKFLOWS[0].parent / "tests.yml").read_text()


def test_a_lower_bound_is_one_version():
    """As the session `oldest` needs it."""
    project = settings()["project"]
    extras = project["optional-dependencies"].values()
    for line in itertools.chain(project["dependencies"], *extras):
        if not line.startswith("rmsjit["):
            assert re.match(r"[\w-]+(\[\w+\])?>=[\d.]+(,<\d+)?(;|$)", line), line


def test_install_commands_name_extras_that_there_are():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    text = "".join(
        path.read_text(encoding="utf-8") for path in [*pages, *ROOT.glob("docs/**/*.md")]
    )
    named = {
        name
        for names in re.findall(r'pip install (?:-e )?"[\w./]+\[(.+?)\]"', text)
        for name in names.split(",")
    }
    assert {"autograd", "demo", "mpi", "torch"} <= named
    assert named <= set(settings()["project"]["optional-dependencies"])


def test_the_sdist_has_every_file_that_the_tests_read():
    included = settings()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    read = {"src", "tests", "docs", "examples", "benchmarks", "changes", "noxfile.py"}
    assert read <= set(included)
    assert all((ROOT / name).exists() for name in included)


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="needs PyYAML")
@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name
)
def test_files_for_the_code_host_can_be_read(path):
    import yaml

    assert yaml.safe_load(path.read_text(encoding="utf-8"))


@in_a_checkout
def test_a_published_readme_has_absolute_links_only(tmp_path):
    script = ROOT / ".ci" / "public_links.py"
    for name in ("README.md", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, script, tmp_path, "https://example.org/rmsjit/", "v1.2.3"]
    subprocess.run(command, check=True)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert "](https://example.org/rmsjit/raw/v1.2.3/benchmarks/results.png)" in text
    files = re.findall(r"https://example.org/rmsjit/\w+/v1.2.3/([^)#\s]+)", text)
    assert all((ROOT / name).exists() for name in files)
    published = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert published["project"]["urls"]["Source"] == "https://example.org/rmsjit"
    citation = (tmp_path / "CITATION.cff").read_text(encoding="utf-8")
    assert citation.endswith('\nrepository-code: "https://example.org/rmsjit"\n')


@in_a_checkout
def test_the_address_of_the_repository_is_given_by_a_release_only():
    """So that the sources are right wherever they are hosted."""
    assert "urls" not in settings()["project"]
    assert "repository-code" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert images
    assert all((ROOT / image).is_file() for image in images)
