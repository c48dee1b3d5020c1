"""The pages of the comparison with other libraries are written from the committed figures."""

from pathlib import Path

import pytest
from benchmarks.comparison import report
from benchmarks.comparison.results import Figure, Results, Run, Samples, Where

FOLDER = Path(__file__).parent.parent / "benchmarks"
MACHINES = Results.all_in(FOLDER / "results")


def run_of(*seconds):
    where = Where("2026-01-31", {"CPU": "Some CPU (model 1)"}, {"rounds": 3, "runs": 1}, {"a": "1"})
    return Run(where, {"100": {"rmsjit": Samples(list(seconds), 2000.0)}})


def test_pages_show_the_committed_figures():
    assert (FOLDER / "RESULTS.md").read_text("utf-8") == report.side_by_side(MACHINES)
    assert (FOLDER / "GOALS.md").read_text("utf-8") == report.goals(MACHINES)


@pytest.mark.parametrize("results", MACHINES, ids=lambda results: results.where.file_name)
def test_each_machine_has_its_page(results):
    page = FOLDER / "results" / f"{results.where.file_name}.md"
    assert page.read_text("utf-8") == report.of_machine(results)


def test_samples_of_several_runs_are_combined(tmp_path):
    for number, seconds in enumerate([(1.0, 2.0, 3.0), (4.0, 5.0)]):
        run_of(*seconds).save(tmp_path / f"{number}.json")
    runs = [Run.load(tmp_path / f"{number}.json") for number in range(2)]
    results = Run.pooled(runs).results()
    assert results.figures == {"100": {"rmsjit": Figure(3.0, 2.0, 4.0, 2000.0)}}
    assert results.where.settings == {"rounds": 6, "runs": 2}
    results.save(tmp_path / "kept")
    assert Results.all_in(tmp_path / "kept") == [results]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["some-cpu-model-1.json"]


def test_runs_of_different_machines_are_not_combined():
    other = run_of(1.0)
    other.where.machine["CPU"] = "Another"
    with pytest.raises(ValueError, match="machine or versions"):
        Run.pooled([run_of(1.0), other])
