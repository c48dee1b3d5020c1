"""The cache of compiled kernels: shared, edited, spoilt, full, or not there at all."""

import ast
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.dtypes import precision_of
from rmsjit.runtime import cache, settings, store
from strategies import run_python

PACKAGE = Path(rmsjit.__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")

# One step of one dtype and form, compared with the rule in NumPy.
STEP = """
import sys
import numpy as np
import rmsjit

def check(dtype, momentum, centered, size=50, sign=-1):
    random = np.random.default_rng(0)
    g = random.standard_normal(size)
    if dtype.startswith("complex"):
        g = g + 1j * random.standard_normal(size)
    g, variable = g.astype(dtype), np.ones(size, dtype)
    rmsjit.RMSprop(0.5, 0.75, momentum, 0.25, centered).apply_gradients([(g, variable)])
    g = g.astype(np.result_type(dtype, np.float64))
    variance = 0.25 * g * g - (0.25 * g) ** 2 if centered else 0.25 * g * g
    d = np.sqrt(variance + 0.25) if momentum else np.sqrt(variance) + 0.25
    error = np.abs(variable - (1 + sign * 0.5 * g / d)).max()
    assert error < (5e-3 if dtype == "float16" else 1e-5), (dtype, momentum, centered, error)
"""


# --- many processes -------------------------------------------------------------------------


def test_processes_at_once_on_a_cold_folder(tmp_path):
    """Each compiles what it needs, some of it the same; none fails, and all is right after."""
    plain, both = ("float32", 0.0, False, 50), ("float64", 0.5, True, 50)
    jobs = [
        [plain, both],
        [both],
        [plain],
        [("float32", 0.0, False, 1_100_000)],
    ]
    code = STEP + "for job in eval(sys.argv[1]): check(*job)"
    environment = {**os.environ, "RMSJIT_CACHE_DIR": str(tmp_path / "not" / "yet")}
    command = [sys.executable, "-W", "error", "-c", code]
    running = [
        subprocess.Popen([*command, repr(job)], env=environment, stderr=subprocess.PIPE, text=True)
        for job in jobs
    ]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    later = STEP + COUNTED.format("for job in eval(sys.argv[1]): check(*job)")
    every = repr([job for jobs_of_one in jobs for job in jobs_of_one])
    assert run_python(later, every, RMSJIT_CACHE_DIR=environment["RMSJIT_CACHE_DIR"]) == "0\n"
    names = [path.name for path in (tmp_path / "not" / "yet").iterdir()]
    assert all(name.endswith(".kernel") for name in names), names


COUNTED = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    {}
print(len(recorder.buffer))
"""


# --- edits ----------------------------------------------------------------------------------


def test_an_edit_of_the_rule_is_seen(tmp_path):
    copy = tmp_path / "rmsjit"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RMSJIT_CACHE_DIR": str(tmp_path / "cache"),
    }
    code = STEP + "check('float32', 0.0, False, sign={}); print(rmsjit.__file__)"
    assert run_python(code.format(-1), **environment).startswith(str(copy))
    rule = copy / "kernels" / "rule.py"
    text = rule.read_text()
    assert text.count("load(variable, i) - step") == 1
    rule.write_text(text.replace("load(variable, i) - step", "load(variable, i) + step"))
    run_python(code.format(+1), **environment)
    rule.write_text(text)
    run_python(STEP + COUNTED.format("check('float32', 0.0, False)"), **environment)


@pytest.mark.parametrize("name", sorted(path.name for path in PACKAGE.glob("kernels/*.py")))
def test_every_kernel_source_is_part_of_the_identity(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_KERNEL_FOLDER", tmp_path)
    for path in PACKAGE.glob("kernels/*.py"):
        shutil.copy(path, tmp_path)
    file = Path(cache.__file__)
    before = cache._digest_of_sources.__wrapped__(file)
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# edited\n")
    assert cache._digest_of_sources.__wrapped__(file) != before


def first_outside():
    """The function and signature of a kernel that compiles in no time."""
    from rmsjit.kernels import loader, rows

    return rows.first_outside, (loader._INTEGERS, loader._INT64)


def test_the_identity_holds_all_that_code_depends_on(monkeypatch, tmp_path):
    function, signature = first_outside()
    identities = {
        cache._identity(function, signature, False),
        cache._identity(function, signature, True),
        cache._identity(function, signature[:1], False),
        cache._identity(store.read, signature, False),
    }
    for setting in ("OPT", "LOOP_VECTORIZE", "USING_SVML"):
        with settings.changed(**{setting: "another"}):
            identities.add(cache._identity(function, signature, False))
    assert len(identities) == 7
    monkeypatch.setattr(cache, "_KERNEL_FOLDER", tmp_path)  # as in a frozen program
    cache._digest_of_sources.cache_clear()
    with pytest.raises(FileNotFoundError):
        cache._identity(function, signature, False)
    cache._digest_of_sources.cache_clear()


# --- spoilt, full, forbidden ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cold cache in a process that seems fresh."""
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_results", {})
    monkeypatch.setattr(store, "_warned", False)
    return tmp_path / "cache"


def obtained(check=None):
    """The kernel, as a fresh process would get it, and the warnings."""
    cache._results.clear()
    function, signature = first_outside()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel = cache.compile_kernel(function, signature, parallel=False, check=check)
    assert kernel(np.array([0, 1, 7, 2]), 3) == 2
    assert all(warning.category is RuntimeWarning for warning in caught), caught
    return [str(warning.message) for warning in caught]


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_loaded_or_compiled(folder):
    from numba.core import event

    with event.install_recorder("numba:compile") as recorder:
        assert obtained() == []
        compiled = len(recorder.buffer)
        assert compiled > 0
        content = only_file(folder).read_bytes()
        assert obtained() == []
        assert len(recorder.buffer) == compiled
        assert only_file(folder).read_bytes() == content


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: b"",
        lambda stored: b"garbage" * 100,
        lambda stored: stored[: len(stored) // 2],
        lambda stored: stored[:-1],
        lambda stored: stored + b"x",
        lambda stored: stored[:5000] + bytes([stored[5000] ^ 1]) + stored[5001:],
        lambda stored: bytes(len(stored)),
        lambda stored: stored.replace(b"kernel 1", b"kernel 0"),
    ],
    ids=["empty", "garbage", "half", "short", "long", "flipped", "zeros", "version"],
)
def test_spoilt_files_are_replaced(folder, spoil):
    obtained()
    path = only_file(folder)
    stored = path.read_bytes()
    path.write_bytes(spoil(stored))
    assert obtained() == []
    assert only_file(folder) == path
    assert len(path.read_bytes()) == pytest.approx(len(stored), rel=0.01)


def test_a_file_of_another_identity_is_no_match(folder):
    """As if two hashes were equal, or a file had been renamed."""
    obtained()
    path = only_file(folder)
    head, digest, body = path.read_bytes()[:16], *split(path.read_bytes()[16:], 32)
    assert store.read(path, body.split(b"\n")[0].decode()) is not None
    assert store.read(path, "another identity") is None
    assert len(head) == 16
    assert len(digest) == 32


def split(data, length):
    return data[:length], data[length:]


def test_a_pickle_that_does_not_load(folder):
    obtained()
    path = only_file(folder)
    identity = cache._identity(*first_outside(), False)
    store.write(path, identity, b"no pickle")
    (message,) = obtained()
    assert str(folder) in message


def unusable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    yield tmp_path / "file"
    yield tmp_path / "file" / "below"
    if sys.platform == "linux":
        yield Path("/proc/rmsjit")
        yield Path("/dev/null")


def test_unusable_folders_cost_one_warning(folder, tmp_path, monkeypatch):
    for place in unusable(tmp_path):
        monkeypatch.setenv("RMSJIT_CACHE_DIR", str(place))
        monkeypatch.setattr(store, "_warned", False)
        (message,) = obtained()
        assert str(place) in message
        assert "RMSJIT_CACHE_DIR" in message
        assert obtained() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on file sizes")
def test_a_full_disk_costs_one_warning(folder):
    """A limit on the size of files stands for it: the write fails half way."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        (message,) = obtained()
        assert "File too large" in message
        assert obtained() == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []  # nothing half written is left
    assert obtained() == []
    assert only_file(folder).stat().st_size > 2000


@posix
def test_files_are_as_open_as_their_folder(tmp_path):
    """A strict umask must not hide the kernels of a shared folder from the others."""
    before = os.umask(0o077)
    try:
        for mode in (0o2775, 0o755, 0o700):
            folder = tmp_path / f"{mode:o}"
            folder.mkdir()
            folder.chmod(mode)
            store.write(folder / "a.kernel", "identity", b"content")
            assert stat.S_IMODE((folder / "a.kernel").stat().st_mode) == mode & 0o666
    finally:
        os.umask(before)


def test_a_folder_that_can_only_be_read_serves(folder, monkeypatch):
    obtained()

    def refuse(*arguments):
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(store, "write", refuse)
    assert obtained() == []


def test_a_wrong_kernel_is_found_and_replaced(folder):
    from rmsjit.kernels import selfcheck

    function, signature = first_outside()

    def wrong(indices, rows):
        return 0

    obtained()
    path, identity = only_file(folder), cache._identity(function, signature, False)
    right = path.read_bytes()
    store.write(path, identity, cache._packed(cache._compiled(wrong, signature, False)))
    assert path.read_bytes() != right
    (message,) = obtained(selfcheck.first_outside)
    assert "wrong results" in message
    assert obtained(selfcheck.first_outside) == []


def test_without_a_cache(folder, monkeypatch):
    for value in ("0", "false", "OFF", "no"):
        monkeypatch.setenv("RMSJIT_CACHE", value)
        assert store.cache_folder() is None
    assert obtained() == []
    assert not folder.exists()
    monkeypatch.setenv("RMSJIT_CACHE", "1")
    assert store.cache_folder() == folder


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("RMSJIT_CACHE_DIR", "~/kernels")
    assert store.cache_folder() == Path.home() / "kernels"
    monkeypatch.delenv("RMSJIT_CACHE_DIR")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert store.cache_folder() == tmp_path / "rmsjit"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert store.cache_folder() == Path.home() / ".cache" / "rmsjit"


@posix
def test_without_a_home_the_folder_is_private(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.delenv("RMSJIT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = store.cache_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # somebody else may have put something there
    assert store.cache_folder() is None


def test_clearing(folder):
    obtained()
    (folder / ".first_outside-0123-abcd").write_text("left by a process that was killed")
    (folder / "notes.txt").write_text("not ours")
    assert len(list(store.contents(folder))) == 1
    assert store.clear(folder) == 1
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


# --- the self-check -------------------------------------------------------------------------

NAMES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("slots", [(False, False), (True, True)], ids=["plain", "both"])
def test_right_kernels_pass_and_wrong_ones_do_not(dtype, slots):
    import ml_dtypes

    from rmsjit.kernels import loader, selfcheck
    from rmsjit.kernels.rule import RuleNumbers

    precision = precision_of(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    kernel = loader.update_dense(precision, *slots, False)
    assert selfcheck.update_dense(precision, *slots, kernel)
    assert not selfcheck.update_dense(precision, *slots, lambda *arguments: None)

    def half_of_it(*arguments):
        kernel(*arguments[:3], np.array([0, 1]), *arguments[4:])

    def uphill(*arguments):
        kernel(*arguments[:4], -arguments[4], *arguments[5:])

    def with_another_rate(*arguments):
        numbers = arguments[5].copy()
        numbers[RuleNumbers._fields.index("lr")] *= 1.5
        kernel(*arguments[:5], numbers, *arguments[6:])

    def for_other_types(*arguments):
        raise TypeError("can't unbox")

    for wrong in (half_of_it, uphill, with_another_rate, for_other_types):
        assert not selfcheck.update_dense(precision, *slots, wrong)
    norm = loader.sums_of_squares(precision.real, precision.computing, False)
    assert selfcheck.sums_of_squares(precision.real, precision.computing, norm)
    assert not selfcheck.sums_of_squares(
        precision.real, precision.computing, lambda *arguments: arguments[-1].fill(0)
    )


def test_every_loader_has_its_check():
    """A kernel without one would be trusted as it comes from the folder."""
    tree = ast.parse((PACKAGE / "kernels" / "loader.py").read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "compile_kernel"
    ]
    assert len(calls) > 5
    for call in calls:
        assert "check" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


# --- the user's own Numba -------------------------------------------------------------------

SETTINGS = {
    "NUMBA_DISABLE_JIT": "1",
    "NUMBA_BOUNDSCHECK": "1",
    "NUMBA_CACHE_LOCATOR_CLASSES": "NoSuchLocator",
}

UNTOUCHED = """
import numba
from numba.core import config

names = [name for name in dir(config) if name.isupper()]
before = {name: getattr(config, name) for name in names}
check("float32", 0.5, True)
after = {name: getattr(config, name) for name in names}
assert before == after

@numba.njit
def own(x):
    return x + 1

print(type(own).__name__, own(1))
"""


@pytest.mark.parametrize("cached", ["0", "1"])
def test_the_users_settings_neither_break_us_nor_change(tmp_path, cached):
    environment = {**SETTINGS, "NUMBA_CACHE_DIR": str(tmp_path), "RMSJIT_CACHE": cached}
    assert run_python(STEP + UNTOUCHED, **environment) == "function 2\n"
    assert list(tmp_path.iterdir()) == []


def test_all_kernels_without_the_users_jit():
    code = """
import numpy as np
import rmsjit

w, table = np.ones((20, 3), np.float32), np.ones((20, 3), np.float32)
optimizer = rmsjit.RMSprop(momentum=0.5, clipnorm=1.0, sparse="exact")
for _ in range(3):
    rows = rmsjit.IndexedSlices(np.ones((2, 3), np.float32), [1, 5])
    optimizer.apply_gradients([(w.copy(), w), (rows, table)])
optimizer.sync(table)
"""
    run_python(code, **SETTINGS)


def test_the_rest_of_numba_works_after_kernels_were_loaded():
    """Loading sets up only a part of it."""
    code = """
check("float32", 0.5, True)
check("float32", 0.5, True, 1_100_000)
import numba

@numba.njit(parallel=True)
def sum_of_roots(a):
    total = 0.0
    for i in numba.prange(len(a)):
        total += np.sqrt(a[i])
    return total

@numba.njit
def words(count):
    if count < 0:
        raise ValueError("negative")
    return "a" * count

assert sum_of_roots(np.full(5, 4.0)) == 10.0
print(words(3))
"""
    assert run_python(STEP + code) == "aaa\n"


def test_a_first_step_loads_no_more_of_numba_than_it_needs():
    """Numba's compiler takes longer to get ready than all else, scipy.linalg the most of it."""
    code = """
check("float32", 0.5, True)
for name in ("scipy.linalg", "numba.typed.typedlist", "numba.np.linalg"):
    assert name not in sys.modules, name
"""
    run_python(STEP + "check('float32', 0.5, True)")  # so that there is something to load
    run_python(STEP + code)


# --- python -m rmsjit warmup ----------------------------------------------------------------

WARMUP = """
import argparse
import sys
from rmsjit.cli import warmup

parser = argparse.ArgumentParser()
warmup.add_parser(parser.add_subparsers())
arguments = parser.parse_args(["warmup", *sys.argv[1:]])
sys.exit(arguments.run(arguments))
"""


def test_warmup_leaves_nothing_to_compile():
    """In the cache of all tests, where most of it is there already."""
    said = run_python(WARMUP, "--dtypes", "float32,float64", "--variants", "both", "--sparse")
    assert "both, float64, parallel" in said
    assert "sparse both, float32, serial" in said
    assert str(store.cache_folder()) in said.splitlines()[-1]
    steps = """
w, table = np.ones(1_100_000), np.ones((20, 3), np.float32)
optimizer = rmsjit.RMSprop(momentum=0.5, centered=True, clipnorm=1.0, sparse='exact')
rows = rmsjit.IndexedSlices(np.ones((2, 3), np.float32), [1, 5])
with event.install_recorder("numba:compile") as recorder:
    for _ in range(3):
        optimizer.apply_gradients([(w.copy(), w), (rows, table)])
    optimizer.sync(table)
print(len(recorder.buffer))
"""
    assert run_python(STEP + "from numba.core import event" + steps) == "0\n"


def test_warmup_clears(tmp_path):
    (tmp_path / "plain-0123.kernel").write_text("of an older version")
    command = [sys.executable, "-c", WARMUP, "--clear", "--variants", "nonsense"]
    environment = {**os.environ, "RMSJIT_CACHE_DIR": str(tmp_path)}
    assert (
        subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 2
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert store.clear(tmp_path) == 1


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({"RMSJIT_CACHE": "0"}, 2, "RMSJIT_CACHE is 0"),
        ({"RMSJIT_CACHE_DIR": os.devnull}, 1, os.devnull),
    ],
)
def test_warmup_without_a_folder(environment, status, said):
    done = subprocess.run(
        [sys.executable, "-c", WARMUP],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
