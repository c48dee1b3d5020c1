"""The notebooks run, and print and draw what they show."""

import ast
import contextlib
import io
import itertools
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


REPRESENTATIONS = {"image/svg+xml": "_repr_svg_", "text/html": "_repr_html_"}


def cells_of(path):
    """The code of a notebook's cells, each with the text and the representations that it shows."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            shown = [output["text"] for output in cell["outputs"] if "text" in output]
            results = [
                output["data"]
                for output in cell["outputs"]
                if output["output_type"] == "execute_result"
            ]
            kinds = [kind for data in results for kind in REPRESENTATIONS if kind in data]
            yield "".join(cell["source"]), "".join(itertools.chain(*shown)), kinds


def result_of(code, namespace):
    """The value of the last line of a cell that was run."""
    (*_, last) = ast.parse(code).body
    return eval(ast.unparse(last), namespace)


def steady(text):
    """Lines that do not depend on the version of a text, as those with "->" do."""
    return [line for line in text.splitlines() if "->" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_prints_what_it_shows(path, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the notebooks need rmsjit[demo]")
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the notebooks need rmsjit[demo]")
    monkeypatch.chdir(tmp_path)  # where it writes its files
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    pyplot.switch_backend("Agg")
    namespace = {"__name__": "__main__"}
    for code, shown, kinds in cells_of(path):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, path.name, "exec"), namespace)
        assert steady(output.getvalue()) == steady(shown)
        for kind in kinds:
            assert getattr(result_of(code, namespace), REPRESENTATIONS[kind])()


def test_there_are_notebooks_with_results():
    assert [path.stem for path in NOTEBOOKS] == ["digits", "words"]
    assert all(any(shown for _, shown, _ in cells_of(path)) for path in NOTEBOOKS)
    assert {kind for path in NOTEBOOKS for _, _, kinds in cells_of(path) for kind in kinds} == {
        *REPRESENTATIONS
    }
