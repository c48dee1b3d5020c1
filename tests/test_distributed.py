"""`MPIStrategy` under mpiexec, on 1 to 4 ranks (the checks of ``tests/mpi``), and its parts."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import rmsjit
from rmsjit.distributed import MPIStrategy, shared
from rmsjit.distributed.agreement import NumbersReader, words_of, words_of_groups
from rmsjit.distributed.comm import check_message
from rmsjit.distributed.dense import Part, cut
from rmsjit.distributed.incoming import Rows
from rmsjit.distributed.intent import claim
from rmsjit.distributed.node import thread_share
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shard_buffer import bundles, rounds
from rmsjit.distributed.shards import bounds_of
from rmsjit.distributed.shared import Layout, SharedArrays, SharedMemory
from rmsjit.distributed.sparse import combined
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.numbers import StepNumbers

FOLDER = Path(__file__).parent / "mpi"
SECONDS = 600  # of one launch; most of it is compiling where no kernel is in the cache yet
RANKS = range(1, 5)  # of checks
RANKS_OF_JOBS = range(1, 9)
# Ranks that wait leave the processors, of which there are fewer than ranks, to the others.
YIELDING = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "MPIR_CVAR_POLLS_BEFORE_YIELD": "10"}

sys.path.insert(0, str(FOLDER))
try:
    import calling
    import checks
    import eight_bits
    import failures
    import precision
    import resuming
    import sending
    import sharing
    import training
finally:
    sys.path.remove(str(FOLDER))

MODULES = (checks, eight_bits, resuming, failures, training, sending, precision, calling, sharing)
NAMES = [name for module in MODULES for name in module.CHECKS]


def mpiexec():
    """The launcher beside this Python, or of the system; skips where there is none."""
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    pytest.importorskip("ml_dtypes")
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if found is None:
        pytest.skip("needs mpiexec: pip install mpich")
    return found


def launch(ranks, *command, timeout=SECONDS, **environment):
    """Run Python on some ranks; what it wrote, after it has ended or been killed."""
    return subprocess.run(
        [mpiexec(), "-n", str(ranks), sys.executable, *map(str, command)],
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMPI_MCA_rmaps_base_oversubscribe": "1", **YIELDING, **environment},
    )


def run(folder, ranks, program, *arguments, timeout=SECONDS):
    """Run a program of ``tests/mpi`` that writes to a folder for each number of ranks."""
    try:
        end = launch(ranks, FOLDER / program, folder, *arguments, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        return folder, f"still running after {timeout} s\n{error.stderr!r}"
    return folder, f"exit status {end.returncode}\n{end.stdout[-3000:]}\n{end.stderr[-3000:]}"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of what each check said, and the output, of one launch for all numbers."""
    return run(tmp_path_factory.mktemp("checks"), max(RANKS), "program.py")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The folder of what random jobs said, and the output."""
    folder = tmp_path_factory.mktemp("jobs")
    return run(folder, max(RANKS_OF_JOBS), "jobs.py", 0, 3)


@pytest.fixture(scope="module")
def thousand_jobs(tmp_path_factory):
    """The same for 125 jobs on each number of ranks."""
    folder = tmp_path_factory.mktemp("thousand")
    return run(folder, max(RANKS_OF_JOBS), "jobs.py", 6, 125, timeout=6 * SECONDS)


def check_end(results, ranks, name):
    """Each rank must have come to the end of what is named, without an error."""
    folder, output = results
    for rank in range(ranks):
        file = folder / str(ranks) / f"{name}.{rank}.json"
        assert file.exists(), f"rank {rank} of {ranks} did not come to the end of {name}:\n{output}"
        error = json.loads(file.read_text())["error"]
        assert not error, f"on rank {rank} of {ranks}:\n{error}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_ranks(results, name):
    """Not a test for each number of ranks: the files with most tests begin, and compile most."""
    for ranks in RANKS:
        check_end(results, ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS_OF_JOBS)
def test_random_jobs(jobs, ranks):
    check_end(jobs, ranks, "jobs")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("ranks", RANKS_OF_JOBS)
def test_a_thousand_random_jobs(thousand_jobs, ranks):
    check_end(thousand_jobs, ranks, "jobs")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["early", "error", "caught", "sent"])
def test_rank_that_ends_early_is_named(how):
    """The others raise an error at their next step, and all come to an end."""
    process = launch(2, FOLDER / "ending.py", how, timeout=60)
    assert "rank 1 is about to end its program" in process.stdout + process.stderr
    assert ("OSError: no data" in process.stderr) == (how == "error")
    assert (process.returncode == 0) == (how == "caught")


# --- one process ----------------------------------------------------------------------------


@pytest.mark.slow
def test_file_of_ranks_is_that_of_one_process(results):
    """What three ranks have saved resumes without any strategy."""
    folder, _ = results
    for sparse, shard in resuming.MODES:
        variables = [np.zeros_like(v) for v in resuming.new_variables()]
        opt = resuming.optimizer(sparse)
        path = folder / "3" / f"resume-{sparse}-{shard}-False.npz"
        rmsjit.load(path, opt, resuming.named(variables))
        expected, alone = resuming.one_process(3, sparse, 3, 3)
        for got, wanted in zip(variables, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        for got, wanted in zip(opt.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_rank_that_fails_ends_the_job():
    process = launch(2, FOLDER / "failing.py", timeout=60)
    assert process.returncode != 0
    assert "ValueError: out of data" in process.stderr


@pytest.mark.slow
def test_rank_that_is_killed_ends_the_job():
    """The others may be waiting for it in shared memory."""
    process = launch(2, FOLDER / "dying.py", timeout=60)
    assert process.returncode != 0


@pytest.mark.slow
def test_one_rank_of_a_machine_compiles(tmp_path):
    process = launch(2, FOLDER / "compiling.py", timeout=SECONDS, RMSJIT_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stderr[-3000:]
    compiled = dict(line.split(": ") for line in process.stdout.splitlines())
    assert int(compiled["0"]) > 0
    assert compiled["1"] == "0"


@pytest.mark.slow
def test_info_shows_every_rank_once():
    process = launch(2, "-m", "rmsjit", "info", timeout=60, SLURM_CPUS_PER_TASK="1")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len([line for line in lines if line.startswith("NumPy")]) == 1
    [first, second] = [line for line in lines if line.startswith("Rank")]
    assert first.endswith("1 thread, compiles for its host")
    assert second.endswith("1 thread, loads what another compiles")


@pytest.mark.slow
def test_example_learns_and_says_from_which_epoch_it_resumes(tmp_path):
    pytest.importorskip("sklearn")
    example = FOLDER.parents[1] / "examples" / "mpi_digits.py"
    outputs = []
    for epochs in ("1", "3"):
        options = ["--epochs", epochs, "--checkpoint", tmp_path / "run.npz"]
        process = launch(2, example, *options, timeout=SECONDS)
        assert process.returncode == 0, process.stderr[-3000:]
        outputs.append(process.stdout)
    assert outputs[0].startswith("epoch 1: ")
    assert "going on with epoch 2\nepoch 2: " in outputs[1]
    assert "epoch 1: " not in outputs[1]
    assert float(outputs[1].split("test accuracy")[-1].split("%")[0]) > 85


def test_without_mpi4py_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match="pip install mpi4py"):
        MPIStrategy()


@pytest.mark.slow
def test_import_needs_no_mpi4py():
    code = "import sys, rmsjit.distributed; assert 'mpi4py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"reduce": "average"}, ValueError),
        ({"bucket_bytes": 0}, ValueError),
        ({"bucket_bytes": 1 << 31}, ValueError),
        ({"bucket_bytes": 4096.0}, TypeError),
        ({"shard_state": "no"}, TypeError),
        ({"wire_dtype": "float16"}, ValueError),
    ],
)
def test_settings_are_checked(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        Settings(**arguments)


# --- parts ----------------------------------------------------------------------------------


def test_counts_stay_below_2_to_the_31():
    """Five times 2**31 elements, of which nothing is allocated."""
    sizes = {0: 5, 1: 5 * 2**31, 2: 7}
    pieces = cut(sizes, 2**28)
    lengths = [sum(part.stop - part.start for part in piece) for piece in pieces]
    assert max(lengths) == 2**28
    assert sum(lengths) == sum(sizes.values())


@pytest.mark.parametrize("most", [1, 16, 100, 10_000])
def test_pieces_cover_every_gradient_once_in_order(most):
    sizes = {3: 10, 4: 0, 7: 1000, 8: 1, 9: 999, 11: 40, 12: 41}
    pieces = cut(sizes, most)
    elements = [
        (part.position, element)
        for piece in pieces
        for part in piece
        for element in range(part.start, part.stop)
    ]
    assert elements == [(k, element) for k, size in sizes.items() for element in range(size)]
    assert all(sum(p.stop - p.start for p in piece) == most for piece in pieces[:-1])


class Alone:
    """A communicator of one rank, whose members must not be called."""

    rank, size = 0, 1


def test_acts_use_the_halves_of_shared_memory_in_turn():
    memory = SharedMemory(Alone(), 1)
    assert not memory.is_there
    assert memory.new_layout() is None
    memory._parts, memory.place[0] = [np.zeros(2048, np.uint8) for _ in range(3)], (1024, 0, False)
    arrays = SharedArrays(memory, 64, np.float32, 5)
    for act in range(4):
        memory.begin()
        memory.begin()  # once
        for rank, array in enumerate(arrays.everyone):
            array[...] = 10 * act + rank
        assert (arrays.own == 10 * act).all()
        memory.exchange()
        total = np.empty(5, np.float32)
        arrays.add_up(None, total)
        assert (total == 30 * act + 3).all()
    [last] = [part.view(np.float32)[[16, 20, 272, 276]].tolist() for part in memory._parts[:1]]
    assert last == [30, 30, 20, 20]  # the half of the third act, and that of the fourth


def test_messages_have_places_of_their_own_until_they_are_too_large(monkeypatch):
    monkeypatch.setattr(shared, "_MOST_BYTES", 3 * 1000)
    memory = SharedMemory(Alone(), 1)
    layout = Layout(memory)
    sizes = (1, 100, 17, 201, 5)
    made = [layout.message(3, np.dtype(np.float32), size) for size in sizes]
    assert [one is None for one in made] == [False, False, False, True, False]
    assert not any(one.have_room for one in made if one)
    memory._parts, memory.place[0] = [np.zeros(1 << 14, np.uint8)], (1 << 13, 0, False)
    for number, one in enumerate(made):
        if one:
            one.own[...] = number
    assert [(one.own == k).all() for k, one in enumerate(made) if one] == [True] * 4


def test_bfloat16_messages_need_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(
        ImportError, match=r"wire_dtype=.bfloat16.: bfloat16 needs ml_dtypes: pip install"
    ):
        Settings(wire_dtype="bfloat16")


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_even_and_on_lines(ranks):
    sizes = [10_000, 3, 0, 64, 4097]
    bounds = bounds_of(sizes, ranks, 4, [0] * len(sizes))
    shares = np.diff(np.array(bounds), axis=1).sum(axis=0)
    assert shares.sum() == sum(sizes)
    assert shares.max() - shares.min() <= len(sizes) * 16
    for size, cuts in zip(sizes, bounds, strict=True):
        assert all(cut % 16 == 0 or cut == size for cut in cuts)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_shares_of_slots_in_8_bits_are_whole_records(ranks):
    sizes, records = [10_000, 4200, 9000, 3, 4100], [256, 60, 300, 0, 4100]
    bounds = bounds_of(sizes, ranks, 4, records)
    for size, length, cuts in zip(sizes, records, bounds, strict=True):
        assert len(cuts) == ranks + 1
        assert cuts[0] == 0
        assert cuts[-1] == size
        assert list(cuts) == sorted(cuts)
        assert all(cut % (length or 16) == 0 or cut == size for cut in cuts)


def test_only_large_variables_are_divided():
    """The others lie end to end, in pieces as large as those of one of them alone."""
    large, *small = np.diff(bounds_of([8192, *[1024] * 6], 3, 4, [0] * 7))
    assert large.tolist() == [2720, 2736, 2736]
    assert [part.tolist() for part in small] == [
        [1024, 0, 0],
        [1024, 0, 0],
        [0, 1024, 0],
        [0, 1024, 0],
        [0, 0, 1024],
        [0, 0, 1024],
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, []),
        ({5: 1}, [[5]]),
        ({5: 60, 4: 40, 3: 99, 2: 1, 0: 500, 1: 7}, [[5, 4], [3, 2], [0], [1]]),
    ],
)
def test_bundles_are_complete_once_they_fill_a_message(sizes, expected):
    assert bundles(sizes, 100) == expected


@pytest.mark.parametrize("each", [1, 3, 8, 100])
def test_rounds_move_every_element_once(each):
    shards = [[Part(0, 0, 7)], [], [Part(0, 7, 9), Part(2, 0, 5)]]
    moved = [[], [], []]
    for one in rounds(shards, each):
        assert max(one.counts) <= each
        for owner, owned in enumerate(one.parts):
            elements = [(p.position, e) for p in owned for e in range(p.start, p.stop)]
            assert len(elements) == one.counts[owner]
            moved[owner] += elements
    for owner, shard in enumerate(shards):
        assert moved[owner] == [(p.position, e) for p in shard for e in range(p.start, p.stop)]


def test_duplicates_are_added_in_order_of_occurrence():
    big = np.float32(2**24)
    values = np.array([[1, 1], [big, 1], [1, 1], [1, 1], [-big, 1]], np.float32)
    rows = combined(Rows(values, np.array([5, 2, 2, 2, 2])))
    assert rows.indices.tolist() == [2, 5]
    assert rows.values.tolist() == [[0, 4], [1, 1]]  # 2**24 + 1 is 2**24 in float32
    flat = combined(Rows(values[:, 0], np.array([5, 2, 2, 2, 2])))
    assert flat.values.tolist() == [0, 1]


def test_many_duplicates_are_added_in_order_of_occurrence():
    rng = np.random.default_rng(0)
    indices = rng.zipf(1.3, 2000) % 50  # some rows hundreds of times, many now and then
    values = rng.standard_normal((2000, 3)).astype(np.float32)
    rows = combined(Rows(values, indices))
    expected = np.zeros((50, 3), np.float32)
    for index, value in zip(indices, values, strict=True):
        expected[index] += value
    assert rows.indices.tolist() == sorted(set(indices.tolist()))
    assert rows.values.tobytes() == expected[rows.indices].tobytes()


def test_rows_that_are_distinct_are_not_copied():
    rows = Rows(np.ones((3, 2)), np.array([0, 4, 5]))
    assert combined(rows) is rows


@pytest.mark.parametrize(
    ("array", "dtype", "count"),
    [
        (np.zeros(3, np.int64), np.float64, 3),
        (np.zeros(2), np.float64, 3),
        (np.zeros((4, 4))[:, 0], np.float64, 4),
    ],
)
def test_messages_are_checked_before_they_are_sent(array, dtype, count):
    with pytest.raises(RuntimeError, match=f"{count} contiguous elements"):
        check_message(None, "sum", array, np.dtype(dtype), count)


def test_numbers_are_sent_bit_for_bit():
    values = itertools.islice(itertools.cycle([math.nan, -0.0, math.inf, 0.1]), 6)
    numbers = StepNumbers(*values)
    groups = (numbers._replace(rho=0.25), numbers)
    bounds = Clipping(clipnorm=0.5, gradient_scale=-1.0)
    words, of_groups = words_of(numbers, bounds), words_of_groups(groups)
    reader = NumbersReader()
    found, clipping = reader.read(words, of_groups)
    assert np.array(found).tobytes() == np.array([numbers, *groups]).tobytes()
    assert words_of(numbers, clipping).tobytes() == words.tobytes()
    assert (clipping.clipnorm, clipping.factor) == (0.5, -1.0)
    assert reader.read(words.copy(), of_groups.copy())[0] is found
    fewer, _ = reader.read(words, of_groups[:1])
    assert np.array(fewer).tobytes() == np.array(found[:2]).tobytes()


def test_fingerprints_differ():
    one = claim("header", ["a"], ["x"])
    assert 0 <= one.fingerprint < 2**63
    assert one.fingerprint != claim("header", ["a"], ["y"]).fingerprint


def test_threads_are_shared_by_ranks():
    assert thread_share(1) >= thread_share(2) >= thread_share(10_000) == 1


def test_a_header_fits_where_no_message_begins():
    """Messages in shared memory begin behind the place of headers."""
    pytest.importorskip("mpi4py")
    from rmsjit.distributed import agreement, shared

    assert agreement._WORDS * np.dtype(np.int64).itemsize <= shared._HEADER_BYTES


NOT_RUNNING = {
    "must be started first": """
        import mpi4py
        mpi4py.rc.initialize = False
        MPIStrategy()
    """,
    "has been finalized": """
        from mpi4py import MPI
        opt, w = rmsjit.RMSprop(0.1, strategy=MPIStrategy()), np.ones(3)
        opt.apply_gradients([(np.ones(3), w)])
        MPI.Finalize()
        opt.apply_gradients([(np.ones(3), w)])
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("message", NOT_RUNNING)
def test_without_mpi_running_an_error_says_so(message):
    imports = "import numpy as np, rmsjit\nfrom rmsjit.distributed import MPIStrategy\n"
    code = imports + textwrap.dedent(NOT_RUNNING[message])
    end = launch(1, "-c", code, timeout=60)
    assert end.returncode == 1
    assert f"RuntimeError: MPI {message}" in end.stderr
