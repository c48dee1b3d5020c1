"""What trials of steps have learned, from one process to the next."""

import functools
import json
import os
import subprocess
import sys

import pytest

from rmsjit.__main__ import main
from rmsjit.runtime import learned, store
from rmsjit.runtime.learned import Way, Work
from rmsjit.runtime.trials import Trials

DENSE, SPARSE, LARGE = Work("dense", 4, 21), Work("sparse", 4, 20), Work("dense", 4, 31)
COSTS = {Way(1): 2e-10, Way(2): 1e-10, Way(4): 4e-10}
PREFETCHING = {**COSTS, Way(2, True): 0.8e-10}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty cache folder, and a process that knows nothing."""
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(learned, "_own", {})
    monkeypatch.setattr(learned, "_earlier", functools.cache(learned._earlier.__wrapped__))
    return tmp_path


def in_the_next_process(monkeypatch):
    learned.save()
    monkeypatch.setattr(learned, "_own", {})
    learned._earlier.cache_clear()


def test_the_next_process_begins_with_the_fastest(monkeypatch):
    assert Trials(4, True, learned.guess(DENSE)).choose() == Way(1)
    for costs, fastest in ((COSTS, Way(2)), (PREFETCHING, Way(2, True))):
        learned.note(DENSE, costs)
        in_the_next_process(monkeypatch)
        assert learned.guess(DENSE) == costs
        assert learned.guess(SPARSE) == {}
        assert Trials(4, True, learned.guess(DENSE)).choose() == fastest


def test_what_can_not_fetch_ahead_is_not_told_to():
    assert Trials(4, False, PREFETCHING).choose() == Way(2)


def test_a_wrong_guess_is_found_out():
    """The first round tries all candidates, whatever comes first."""
    trials = Trials(4, guess=COSTS)
    for _ in range(18):
        way = trials.choose()
        trials.took(way, 1.0 if way.threads == 4 else 3.0, 1)
    assert trials.best == Way(4)
    assert trials.costs == {Way(1): 3.0, Way(2): 3.0, Way(4): 1.0}


def test_rounds_are_noted():
    noted = []
    trials = Trials(2, settled=lambda costs: noted.append(dict(costs)))
    for _ in range(12):
        way = trials.choose()
        trials.took(way, 2.0 / way.threads, 1)
    assert noted == [{Way(1): 2.0, Way(2): 1.0}]


def test_processes_add_to_each_other(monkeypatch):
    learned.note(DENSE, COSTS)
    in_the_next_process(monkeypatch)
    learned.note(SPARSE, {Way(1): 1e-9})
    in_the_next_process(monkeypatch)
    assert learned.known() == {DENSE: COSTS, SPARSE: {Way(1): 1e-9}}


def test_machines_are_told_apart(monkeypatch, folder):
    learned.note(DENSE, COSTS)
    in_the_next_process(monkeypatch)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(learned, "_machine", lambda: "another, 64 CPUs")
        learned._earlier.cache_clear()
        assert learned.guess(DENSE) == {}
        learned.note(DENSE, {Way(1): 1e-10, Way(4): 2e-10})
        in_the_next_process(elsewhere)
        assert learned.guess(DENSE) == {Way(1): 1e-10, Way(4): 2e-10}
    learned._earlier.cache_clear()
    assert learned.guess(DENSE) == COSTS


def test_nothing_is_written_without_need(monkeypatch, folder):
    learned.save()
    assert not list(folder.iterdir())
    learned.note(DENSE, COSTS)
    in_the_next_process(monkeypatch)
    before = (folder / store.LEARNED_FILE).stat().st_ino
    learned.note(DENSE, {Way(1): 9e-10, Way(2): 8e-10})  # other figures, the same choice
    learned.save()
    assert (folder / store.LEARNED_FILE).stat().st_ino == before
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(folder / "none"))
    learned.save()
    monkeypatch.setenv("RMSJIT_CACHE", "0")
    learned.save()
    assert [path.name for path in folder.iterdir()] == [store.LEARNED_FILE]


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"[" * 100_000,
    b'{"MACHINE": 3}',
    b'{"MACHINE": [3, [], [1, 2, 3, 4], ["dense", 4, 21, {"1": "fast"}]]}',
    b'{"MACHINE": [["dense", 4, 21, {"1": -1}], ["dense", 4, 21, {"2": NaN}]]}',
    b'{"MACHINE": [["dense", 4, 21, {"one": 1}], ["dense", "four", 21, {"1": 1}]]}',
    b'{"MACHINE": [["dense", 4, 21, {"2 or so": 1}], ["dense", 4, 21, {" prefetching": 1}]]}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_ignored_and_replaced(folder, content, monkeypatch):
    machine = json.dumps(learned._machine()).encode()
    path = folder / store.LEARNED_FILE
    path.write_bytes(content.replace(b'"MACHINE"', machine))
    assert learned.guess(DENSE) == {}
    assert learned.known() == {}
    learned.note(DENSE, COSTS)
    in_the_next_process(monkeypatch)
    assert learned.known() == {DENSE: COSTS}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_read(folder):
    os.mkfifo(folder / store.LEARNED_FILE)
    assert learned.guess(DENSE) == {}


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_a_file_that_others_can_write_is_not_read(folder, monkeypatch):
    learned.note(DENSE, COSTS)
    in_the_next_process(monkeypatch)
    (folder / store.LEARNED_FILE).chmod(0o666)
    assert learned.guess(DENSE) == {}


def test_clearing_the_cache_removes_it(folder):
    learned.note(DENSE, COSTS)
    learned.save()
    assert store.clear(folder) == 0
    assert not list(folder.iterdir())


def test_info_shows_it(capsys):
    learned.note(DENSE, COSTS)
    learned.note(LARGE, PREFETCHING)
    learned.note(SPARSE, {Way(1): 1e-9})
    main(["info"])
    lines = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert (
        "2 of 4 (dense, 1.0 MiB to 2.0 MiB written; "
        "1: 4.7 GiB/s, 2: 9.3 GiB/s, 4: 2.3 GiB/s)" in lines
    )
    assert (
        "2 of 4 prefetching (dense, 1.0 GiB to 2.0 GiB written; 1: 4.7 GiB/s, "
        "2: 9.3 GiB/s, 2 prefetching: 11.6 GiB/s, 4: 2.3 GiB/s)" in lines
    )
    assert "1 of 4 (sparse, 512.0 KiB to 1.0 MiB written; 1: 953.7 MiB/s)" in lines
    main(["info", "--json"])
    rows = json.loads(capsys.readouterr().out)["learned"]
    assert rows[0] == {
        "kind": "dense",
        "bytes": [1 << 20, 1 << 21],
        "most_threads": 4,
        "fastest": "2",
        "bytes_per_second": {"1": 5e9, "2": 1e10, "4": 2.5e9},
    }


@pytest.mark.slow
def test_a_process_leaves_it_when_it_ends(folder):
    code = (
        "from rmsjit.runtime import learned\n"
        "from rmsjit.runtime.trials import TrialsBySize\n"
        "trials = TrialsBySize().of(2, 1e6, 'dense')\n"
        "for _ in range(12):\n"
        "    way = trials.choose()\n"
        "    trials.took(way, 1e-3 / way.threads, 1e6)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    ((work, costs),) = learned.known().items()
    assert work == Work("dense", 2, 20)
    assert costs == pytest.approx({Way(1): 1e-9, Way(2): 5e-10})
