"""The command line: what it prints where, and its exit statuses."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import rmsjit
from rmsjit.__main__ import main
from rmsjit.cli import bench, demo, info
from rmsjit.runtime import numba_internals
from rmsjit.text import human_size

QUICK = ["--epochs", "1", "--hidden", "16"]
LAST_LINE = re.compile(
    r"The optimizer took \S+ % of the training time \([\d,]+ µs a step\)\. The same rule in "
    r"hand-written NumPy takes [\d,]+ µs a step, \S+ times as long\."
)
BENCH_COLUMNS = ["elements", "variant", "step", "GB/s", "floor", "share", "NumPy", "ratio"]


def python(*arguments, **options):
    """The finished process of a fresh interpreter."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture
def needs_demo():
    for name in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason="the demos need rmsjit[demo]")


# --- the frame ------------------------------------------------------------------------------


@pytest.mark.slow
def test_version_in_a_fresh_process():
    process = python("-m", "rmsjit", "--version")
    assert (process.returncode, process.stdout) == (0, f"rmsjit {rmsjit.__version__}\n")


@pytest.mark.slow
def test_help_imports_nothing_slow():
    process = python(
        "-c",
        "import sys, rmsjit.__main__\n"
        "try: rmsjit.__main__.main(['--help'])\n"
        "finally: print(sorted(sys.modules.keys() & "
        "{'numba', 'matplotlib', 'sklearn', 'scipy', 'tqdm'}))",
    )
    assert process.returncode == 0
    assert process.stdout.endswith("\n[]\n")
    for command in ("demo", "info", "schedule", "warmup", "bench"):
        assert f"  {command} " in process.stdout


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: rmsjit")


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"], ["demo", "digits", "-h"]])
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: rmsjit")


COSINE = ["schedule", "cosine", "--initial-learning-rate", "0.1", "--decay-steps", "10"]


def test_an_image_is_a_png_unless_it_has_a_suffix(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main([*COSINE, "--output", str(tmp_path / "rates")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'rates.png'}\n"
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [".", "", "folder"])
def test_an_image_needs_a_name_of_its_own(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as end:
        main([*COSINE, "--output", name])
    assert end.value.code == 2
    assert "must be the name of an image file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("options", "drawn"),
    [(["--text"], None), (["--output", "own.png"], "own.png"), ([], "cosine.png")],
)
def test_options_before_the_schedule_count(options, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--initial-learning-rate", "0.1", "--decay-steps", "100"]
    assert main(["schedule", *options, "cosine", *arguments]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ([] if drawn is None else [drawn])
    assert (drawn or "CosineDecay") in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "rmsjit", "forms"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert process.returncode == 1
    assert re.fullmatch(r"rmsjit forms: .*No space left on device\n", process.stderr)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench", "--sizes", "1e400"], "must be a positive whole number, got '1e400'"),
        (["bench", "--sizes", "nan"], "must be a positive whole number, got 'nan'"),
        (["demo", "--seed", str(2**32)], "must be below 2**32, got '4294967296'"),
        (["demo", "--epochs", "9" * 5000], "must have at most 30 digits"),
        (["demo", "--output", "missing/x.png"], "can't be written: 'missing/x.png' (No such"),
        (["demo", "--output", "n" * 300 + ".png"], "File name too long)"),
    ],
)
def test_odd_values_are_refused(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--text"], ["--output", "a.png"]])
def test_text_and_an_image_are_not_drawn_at_once(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["cosine", "--initial-learning-rate", "0.1", "--decay-steps", "100"]
    others = ["--output", "b.png"] if options == ["--text"] else ["--text"]
    assert main(["schedule", *options, *arguments, *others]) == 2
    assert "--text and --output can't both be given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_arguments_of_a_form_are_given_once(capsys):
    assert main(["forms", "torch", "momentum=1", "momentum=0"]) == 2
    assert "momentum must be given once, got 1 and 0" in capsys.readouterr().err
    assert main(["forms", "torch", "lr=" + "-" * 100_000 + "1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_too_little_memory_is_told_in_one_line(capsys, monkeypatch):
    def fail(*arguments, seed):
        raise MemoryError

    monkeypatch.setattr(bench, "values", fail)
    assert main(["bench", "--sizes", "10", "--variants", "plain", "--rounds", "1"]) == 1
    assert capsys.readouterr().err == "rmsjit bench: there is not enough memory\n"


def test_a_name_may_look_like_a_formula(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rates.png"
    assert main([*COSINE, "--name", r"$\frac{$", "--output", str(path)]) == 0
    assert path.exists()


def test_help_says_in_one_line_what_it_is(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "the interface of TensorFlow's two optimizers" in " ".join(shown.split())
    assert "imported" not in shown


def test_schedule_is_there(capsys):
    argv = ["schedule", "cosine", "--initial-learning-rate", "0.1", "--decay-steps", "10"]
    assert main([*argv, "--text"]) == 0
    assert "CosineDecay" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "rmsjit", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# --- demo -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["demo"], ["demo", "digits"]),
        (["demo", "--epochs", "3"], ["demo", "digits", "--epochs", "3"]),
        (["demo", "digits", "--quiet"], ["demo", "digits", "--quiet"]),
        (["demo", "--help"], ["demo", "--help"]),
        (["info"], ["info"]),
        (["info", "demo"], ["info", "demo"]),
        ([], []),
    ],
)
def test_the_first_demo_needs_no_name(argv, expected):
    assert demo.spelled_out(argv) == expected


@pytest.mark.slow
def test_demo(needs_demo, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *QUICK]) == 0
    out, err = capsys.readouterr()
    accuracy, picture, comparison = out.splitlines()
    assert re.fullmatch(r"Test accuracy \d+\.\d % after 1 epoch in \d+\.\d s", accuracy)
    assert picture == "Learning curve: rmsjit-digits.png"
    assert LAST_LINE.fullmatch(comparison)
    assert (tmp_path / "rmsjit-digits.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"a network of 64-16-10 units", err)
    assert re.search(r"ompiled (the )?kernels .*in \d+\.\d s", err)
    assert "loss" not in err  # the progress bar, which is for terminals


def test_quiet_demo_without_a_picture(needs_demo, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "digits", *QUICK, "--quiet", "--no-plot"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "tqdm"])
def test_missing_packages_are_named(package, needs_demo, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", *QUICK]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"can't import {package};" in err
    assert "pip install matplotlib scikit-learn" in err


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--epochs", "0", "must be a whole number of at least 1, got '0'"),
        ("--batch-size", "2.5", "must be a whole number of at least 1, got '2.5'"),
        ("--hidden", "-3", "at least 1, got '-3'"),
        ("--seed", "-1", "must be a whole number of at least 0, got '-1'"),
        ("--learning-rate", "0", "must be a positive number, got '0'"),
        ("--learning-rate", "nan", "must be a positive number, got 'nan'"),
        ("--learning-rate", "fast", "must be a positive number, got 'fast'"),
        ("--output", "curve.txt", "must end in .png, .pdf or .svg, got 'curve.txt'"),
        ("--output", "nowhere/curve.png", "can't be written: 'nowhere/curve.png'"),
    ],
)
def test_wrong_options_are_refused(option, value, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["demo", option, value])
    assert exit_.value.code == 2
    assert re.search(complaint, capsys.readouterr().err)


def test_options_reach_the_demo(needs_demo, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo.digits, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    picture = tmp_path / "curve.svg"
    options = "--hidden 8 4 --epochs 2 --batch-size 16 --learning-rate 1e-2 --seed 7 --quiet"
    assert main(["demo", *options.split(), "--output", str(picture)]) == 0
    settings = demo.digits.Settings(
        hidden=(8, 4), epochs=2, batch_size=16, learning_rate=0.01, seed=7
    )
    assert calls == [((settings, picture), {"quiet": True})]


@pytest.fixture
def heeded_interrupts():
    """Programs that a shell starts in the background ignore SIGINT, with all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_interrupt_ends_the_demo_quietly(needs_demo, heeded_interrupts, tmp_path):
    import pty
    import termios

    command = [sys.executable, "-m", "rmsjit", "demo", "--epochs", "100000", "--hidden", "16"]
    ours, theirs = pty.openpty()  # there is a bar only on a terminal
    termios.tcsetwinsize(theirs, (24, 120))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        seen = read_until(ours, b"accuracy")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    seen += read_until(ours, None)
    os.close(ours)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in seen


def read_until(terminal, text):
    """What a program writes to a terminal until it has written `text`, or to its end."""
    seen = b""
    with contextlib.suppress(OSError):  # the other end was closed
        while text is None or text not in seen:
            more = os.read(terminal, 1000)
            if not more:
                break
            seen += more
    return seen


# --- info -----------------------------------------------------------------------------------


def test_info_names_everything(capsys):
    assert main(["info"]) == 0
    lines = dict(
        re.split(r" {2,}", line, maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
        if line
    )
    assert lines["rmsjit"] == rmsjit.__version__
    for label in ("Python", "NumPy", "Numba", "llvmlite"):
        assert re.match(r"\d+\.\d+", lines[label])
    assert set(lines) >= {"TBB", "CPU", "RMSJIT_CACHE", "RMSJIT_CACHE_DIR", "Cache folder"}
    assert "LLVM: " in lines["CPU"]
    assert lines["CPUs of the machine"] == str(os.cpu_count())
    assert re.fullmatch(r"\d+ \((one for each CPU|limited by .*)\)", lines["Threads"])
    assert lines["Threading layer"] in ("tbb", "omp", "workqueue")
    assert re.fullmatch(r"\d+ \([\d.]+ \w+\)", lines["Cached kernels"])


def test_info_in_columns(capsys):
    main(["info"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len({re.match(r".*?  +", line).end() for line in lines}) == 1


def test_info_for_machines(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path))
    (tmp_path / "f-0123.kernel").write_bytes(bytes(1000))
    (tmp_path / "of-somebody-else").write_bytes(bytes(24))
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cache"] == {"folder": str(tmp_path), "kernels": 1, "bytes": 1000}
    assert report["environment"]["RMSJIT_CACHE_DIR"] == str(tmp_path)
    assert report["versions"]["rmsjit"] == rmsjit.__version__
    assert 1 <= report["threads"]["used"] <= report["threads"]["limits"]["NUMBA_NUM_THREADS"]
    assert report["problems"] == {}


def test_info_without_a_cache(capsys, monkeypatch):
    monkeypatch.setenv("RMSJIT_CACHE", "0")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^Cache folder +none$", out, re.MULTILINE)
    assert re.search(r"^RMSJIT_CACHE +0$", out, re.MULTILINE)


def test_info_with_a_cache_folder_that_is_not_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path / "none"))
    assert main(["info"]) == 0
    assert re.search(r"^Cached kernels +0 \(0 B\)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_info_tells_of_a_numba_that_has_changed(capsys, monkeypatch):
    shown = python("-m", "rmsjit", "info").stdout
    assert "Numba" in shown
    assert "Numba has changed" not in shown
    gone = numba_internals.PrivateName("numba.core.event", "install_reporter", "tells of all")
    monkeypatch.setattr(numba_internals, "OBSERVING", (gone,))
    assert main(["info"]) == 0
    line = r"^Numba has changed +it lacks numba\.core\.event\.install_reporter \(tells of all\)$"
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_info_on_a_broken_installation(option):
    process = python(
        "-c",
        "import sys\n"
        "sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
        "from rmsjit.__main__ import main\n"
        f"sys.exit(main(['info', *{option}]))",
    )
    assert (process.returncode, process.stderr) == (0, "")
    if option:
        report = json.loads(process.stdout)
        assert report["versions"]["numba"] is report["threads"] is None
        assert report["problems"].keys() >= {"numba", "llvmlite", "threads", "threading_layer"}
    else:
        assert re.search(r"^Numba +can't be imported$", process.stdout, re.MULTILINE)
        assert re.search(r"^Problem: numba +ModuleNotFoundError", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("used", "limits", "numba_is_set", "expected"),
    [
        (8, {"affinity": 8, "NUMBA_NUM_THREADS": 8}, False, []),
        (4, {"affinity": 4, "NUMBA_NUM_THREADS": 4}, False, ["affinity"]),
        (4, {"affinity": 4, "NUMBA_NUM_THREADS": 4}, True, ["affinity", "NUMBA_NUM_THREADS"]),
        (3, {"affinity": 8, "control_group": 3, "NUMBA_NUM_THREADS": 8}, False, ["control_group"]),
        (
            2,
            {"affinity": 8, "control_group": None, "SLURM_CPUS_PER_TASK": 2},
            False,
            ["SLURM_CPUS_PER_TASK"],
        ),
        (2, {"affinity": 8, "NUMBA_NUM_THREADS": 2}, False, ["NUMBA_NUM_THREADS"]),
    ],
)
def test_why_there_are_so_few_threads(used, limits, numba_is_set, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    if numba_is_set:
        monkeypatch.setenv("NUMBA_NUM_THREADS", "4")
    assert info._limiting(used, limits) == expected


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**20, "5.0 MiB"), (3e12, "2794.0 GiB")],
)
def test_sizes_for_people(size, text):
    assert human_size(size) == text


# --- bench ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_bench_measures_every_variant(capsys):
    assert main(["bench", "--sizes", "1e3", "--rounds", "1", "--threads", "1"]) == 0
    heading, _, columns, *lines = capsys.readouterr().out.splitlines()
    assert heading == "RMSprop on float32 with 1 thread, medians of interleaved rounds"
    assert columns.split() == BENCH_COLUMNS
    for line, variant in zip(lines, bench.VARIANTS, strict=False):
        assert re.fullmatch(
            rf" +1,000  {variant} +[\d.]+ µs +[\d.]+ +[\d.]+ +\d+% +[\d.]+ µs +[\d.]+x", line
        )


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floor_leaves_every_value(dtype, threads):
    from rmsjit.cli import floor

    arrays = [bench.values(1001, np.dtype(dtype), seed) for seed in range(4)]
    before = [array.copy() for array in arrays]
    floor.fastest_floor(arrays[0], arrays[1:], threads)()
    for array, unchanged in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, unchanged)


@pytest.mark.parametrize("kinds", [("u4", "u4", "u4"), ("u4", "u4", "u8", "u4", "u2")])
@pytest.mark.parametrize("bins", [1, 3])
def test_the_floor_passes_over_every_element_once(kinds, bins):
    from rmsjit.cli import floor
    from rmsjit.steps.act import Act

    rng = np.random.default_rng(0)
    gradient, *written = (rng.integers(0, 2**16, 20_001).astype(kind) for kind in kinds)
    before = [array.copy() for array in written]
    call = floor.call_over([gradient, *written], bins)
    call.words[floor.ZERO] = -1
    Act([call]).run()
    for array, unchanged in zip(written, before, strict=True):
        np.testing.assert_array_equal(array, unchanged ^ gradient.astype(array.dtype))
