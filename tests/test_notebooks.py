"""The notebooks run, and print what they show."""

import contextlib
import io
import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the notebooks need rmsjit[demo]")
pytest.importorskip("matplotlib", reason="the notebooks need rmsjit[demo]")

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells_of(path):
    """The code of a notebook's cells, each with the text that it shows."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            shown = [output["text"] for output in cell["outputs"] if "text" in output]
            yield "".join(cell["source"]), "".join(itertools.chain(*shown))


def steady(text):
    """Lines that do not depend on the version of a text, as those with "->" do."""
    return [line for line in text.splitlines() if "->" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_prints_what_it_shows(path, tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)  # where it writes its files
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    pyplot.switch_backend("Agg")
    namespace = {"__name__": "__main__"}
    for code, shown in cells_of(path):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, path.name, "exec"), namespace)
        assert steady(output.getvalue()) == steady(shown)


def test_there_are_notebooks_with_results():
    assert [path.stem for path in NOTEBOOKS] == ["digits", "words"]
    assert all(any(shown for _, shown in cells_of(path)) for path in NOTEBOOKS)
