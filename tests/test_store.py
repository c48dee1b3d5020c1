"""The cache of kernels where files, homes, rights and sources are not what they should be."""

import contextlib
import io
import os
import stat
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import rmsjit
from rmsjit.runtime import cache, forks, settings, store, threads
from strategies import interrupted_at

PACKAGE = Path(rmsjit.__file__).parent
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and rights of POSIX")
unprivileged = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
STEP = """
    import numpy as np, rmsjit
    w = np.zeros(3)
    rmsjit.RMSprop(0.1).apply_gradients([(np.ones(3), w)])
    assert w.all()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(folder))
    monkeypatch.setattr(store, "_warned", False)
    return folder


def written(folder, content=b"content"):
    path = store.path_for(folder, "kernel", "identity")
    store.write(path, "identity", content)
    return path


# --- trust ----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o2775, 0o722])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_can_write_is_not_read(folder, what, mode):
    path = written(folder)
    assert store.read(path, "identity") == b"content"
    (folder if what == "folder" else path).chmod(mode)
    with pytest.raises(PermissionError, match="others can write to"):
        store.read(path, "identity")


@posix
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500, 0o555, 0o2755])
def test_what_others_can_read_is_read(folder, mode):
    path = written(folder)
    folder.chmod(mode)
    assert store.read(path, "identity") == b"content"
    folder.chmod(0o700)


@as_root
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_belongs_to_another_is_not_read(folder, what):
    path = written(folder)
    os.chown(folder if what == "folder" else path, 65534, -1)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        store.read(path, "identity")


@as_root
def test_what_belongs_to_root_is_read_by_all(folder, monkeypatch):
    path = written(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert store.read(path, "identity") == b"content"


@posix
def test_the_folder_that_was_opened_counts(folder, tmp_path, monkeypatch):
    """Not the one that has its name by the time that the file is opened."""
    path = written(folder)
    other = tmp_path / "other"
    planted = written(other, b"planted")
    check = store._check_trusted

    def swap(descriptor, checked):
        check(descriptor, checked)
        if checked == folder:
            folder.rename(tmp_path / "moved")
            other.rename(folder)

    monkeypatch.setattr(store, "_check_trusted", swap)
    assert store.read(path, "identity") == b"content"
    assert planted.name == path.name


@posix
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_none(folder, make):
    folder.mkdir()
    path = store.path_for(folder, "kernel", "identity")
    make(path)
    assert store.read(path, "identity") is None  # and it does not wait for a writer


@posix
def test_a_pipe_is_replaced(folder):
    folder.mkdir()
    path = store.path_for(folder, "kernel", "identity")
    os.mkfifo(path)
    store.write(path, "identity", b"content")
    assert store.read(path, "identity") == b"content"


@posix
def test_our_own_folder_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        path = written(tmp_path / "kernels")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o022 == 0
    assert store.read(path, "identity") == b"content"


def test_a_file_system_without_rights_serves(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError("no rights here")

    monkeypatch.setattr(os, "chmod", refuse)
    assert store.read(written(folder), "identity") == b"content"
    assert [path.name[:1] for path in folder.iterdir()] == ["k"]


def test_drafts_are_no_longer_named_than_kernels(tmp_path):
    path = store.path_for(tmp_path, "n" * (255 - len("-.kernel") - 24), "identity")
    store.write(path, "identity", b"content")
    assert store.read(path, "identity") == b"content"


def obtained(monkeypatch):
    """Whether a kernel was compiled, and the warnings; nothing is really compiled."""
    compiled = []
    recipe = SimpleNamespace(compiled=lambda: compiled.append(True))
    monkeypatch.setattr(cache.numba_internals, "packed", lambda _: b"packed")
    monkeypatch.setattr(cache.numba_internals, "entry", lambda result: (result, None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            cache._obtained("kernel", "key", recipe)
    return len(compiled), [str(warning.message) for warning in caught]


@posix
def test_a_folder_of_all_costs_one_warning_and_is_left_alone(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o1777)
    compiled, (message,) = obtained(monkeypatch)
    assert compiled == 2
    assert str(folder) in message
    assert "others can write to" in message
    assert "chmod go-w" in message
    assert list(folder.iterdir()) == []


def test_what_kernels_are_made_from_unknown_is_no_fault_of_the_folder(folder, monkeypatch):
    def unknown(_):
        raise ImportError("there is neither a source nor code of it")

    monkeypatch.setattr(cache, "_identity", unknown)
    compiled, (message,) = obtained(monkeypatch)
    assert compiled == 2
    assert "neither a source nor code" in message
    assert str(folder) not in message
    assert "RMSJIT_CACHE_DIR" not in message


# --- homes ----------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.delenv("RMSJIT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(temporary))
    return temporary


@pytest.mark.parametrize("chosen", ["~no such user/x", "~nosuchuser/x"])
def test_a_home_that_is_not_there_is_as_good_as_none(chosen, temporary, monkeypatch):
    monkeypatch.delenv("RMSJIT_CACHE_DIR", raising=False)
    default = store.cache_folder()
    monkeypatch.setenv("RMSJIT_CACHE_DIR", chosen)
    assert store.cache_folder() == default


@posix
def test_a_tilde_without_a_home(temporary, monkeypatch):
    monkeypatch.setenv("RMSJIT_CACHE_DIR", "~/x")
    monkeypatch.setattr(Path, "expanduser", Path.home)
    monkeypatch.setattr(Path, "home", refusing_home)
    assert store.cache_folder() == temporary / f"rmsjit-{os.getuid()}"


def refusing_home(*_):
    raise RuntimeError("Could not determine home directory.")


@posix
@pytest.mark.parametrize("home", ["/", "/nonexistent", "/proc"])
def test_a_home_that_can_not_be_written(temporary, monkeypatch, home):
    """As for an unknown user in a container; root can write to `/`, so rights are asked here."""
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).startswith(str(temporary)))
    folder = store.cache_folder()
    assert folder == temporary / f"rmsjit-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()


@unprivileged
def test_an_unwritable_home_as_it_is(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert store.cache_folder().parent == temporary


@posix
def test_a_filled_folder_that_can_only_be_read_is_taken(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = store._folder_at_home()
    path = written(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert store.cache_folder() == folder
    path.unlink()
    assert store.cache_folder().parent == temporary


@posix
@pytest.mark.parametrize("spoil", ["open", "link", "file"])
def test_a_temporary_folder_of_another_is_not_taken(temporary, tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(Path, "home", refusing_home)
    folder = temporary / f"rmsjit-{os.getuid()}"
    if spoil == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif spoil == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.write_text("in the way")
    assert store.cache_folder() is None


def test_no_temporary_folder_at_all(temporary, monkeypatch):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(Path, "home", refusing_home)
    monkeypatch.setattr(store.tempfile, "gettempdir", nowhere)
    assert store.cache_folder() is None


# --- sources --------------------------------------------------------------------------------


def digest_elsewhere(place, seed="0"):
    """What another process makes of the package at `place`, a folder or an archive."""
    code = "from rmsjit.runtime import cache; print(cache._digest_of_sources(), cache.__file__)"
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True
    )
    digest, file = done.stdout.split(maxsplit=1)
    assert file.startswith(str(place))
    return digest


def packed(path, sources, change=None):
    """The package as an archive of sources or of compiled code, as from the same compiler."""
    import py_compile

    with zipfile.ZipFile(path, "w") as archive:
        for source in PACKAGE.rglob("*.py"):
            name = f"rmsjit/{source.relative_to(PACKAGE).as_posix()}"
            text = source.read_text()
            if change is not None:
                text = change(name, text)
            if sources:
                archive.writestr(name, text)
            else:
                copy = path.parent / "one.py"
                copy.write_text(text)
                compiled = py_compile.compile(str(copy), str(copy) + "c", name, doraise=True)
                archive.write(compiled, name + "c")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("sources", [True, False], ids=["sources", "code"])
def test_archives_have_an_identity_that_stays_and_tells_edits(tmp_path, sources):
    def edited(name, text):
        edit = name.endswith("kernels/rule.py")
        return text.replace("return value - step\n", "return value + step\n") if edit else text

    def another_set(name, text):  # frozensets have another order in another process
        added = "\ndef also(x):\n    return x in {'a', 'b', 'c', 'd'}\n"
        return text + added if name.endswith("kernels/rule.py") else text

    changes = {"plain": None, "changed": edited, "set": another_set}
    places = {
        name: packed(tmp_path / f"{name}.zip", sources, edit) for name, edit in changes.items()
    }
    digests = {name: digest_elsewhere(place) for name, place in places.items()}
    assert len(set(digests.values())) == 3
    for name in ("plain", "set"):
        assert digest_elsewhere(places[name], "1") == digests[name]


@pytest.mark.slow
@pytest.mark.parametrize("sources", [True, False], ids=["sources", "code"])
def test_a_program_without_files_of_sources_keeps_its_kernels(tmp_path, sources):
    archive = packed(tmp_path / "program.zip", sources)
    environment = os.environ | {"PYTHONPATH": str(archive), "RMSJIT_CACHE_DIR": str(tmp_path / "k")}
    code = textwrap.dedent(STEP) + f"assert rmsjit.__file__.startswith({str(archive)!r})\n"
    for kept in (False, True):
        if kept:
            code = "from rmsjit.runtime import cache\ncache._Recipe.compiled = None\n" + code
        done = subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
            env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "k").glob("*.kernel"))


# --- interrupts -----------------------------------------------------------------------------


def test_an_interrupt_at_any_line_of_compiling_leaves_no_thread_busy(monkeypatch):
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "_obtained", lambda *_: ("kernel", None))
    monkeypatch.setattr(threads, "start", lambda: None)
    config = settings.numba_config()
    before = {name: getattr(config, name) for name in ("DISABLE_JIT", "BOUNDSCHECK")}
    files = ("cache.py", "forks.py", "settings.py")
    line, came = 0, True
    while came:
        line += 1
        cache._kernels.clear()
        came = interrupted_at(
            line, lambda: cache.compile_kernel("x", "y", None, 1, {"parallel": True}), files
        )
        assert forks._busy == {}
        assert not cache._lock.lock._is_owned()
        assert {name: getattr(config, name) for name in before} == before
    assert line > 20


def test_nested_guards_end_with_the_outermost():
    with forks.undisturbed():
        with forks.undisturbed(), contextlib.redirect_stdout(io.StringIO()):
            assert len(forks._busy) == 1
        assert len(forks._busy) == 1
    assert forks._busy == {}
