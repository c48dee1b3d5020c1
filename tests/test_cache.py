"""The cache of compiled kernels: shared, edited, spoilt, full, or not there at all."""

import os
import shutil
import stat
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.dtypes import kinds_of, precision_of
from rmsjit.arrays.layout import address_of
from rmsjit.rule import presets
from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS, Slot
from rmsjit.runtime import cache, settings, store
from rmsjit.runtime.flags import FLAGS, HOLDING_GIL, PARALLEL
from strategies import run_python
from test_layers import MODULES, imports_of

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert text.count("return value - step\n") == 1
    rule.write_text(text.replace("return value - step\n", "return value + step\n"))
    run_python(code.format(+1), **environment)
    rule.write_text(text)
    run_python(STEP + COUNTED.format("check('float32', 0.0, False)"), **environment)


SOURCES = [
    *sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("kernels/*.py")),
    *cache._OTHER_SOURCES,
]


@pytest.fixture(scope="module")
def copied_sources(tmp_path_factory):
    copy = tmp_path_factory.mktemp("sources") / "rmsjit"
    shutil.copytree(PACKAGE, copy)
    return copy


def changes_identity(sources, name, monkeypatch):
    """Whether an edit of a source makes every kernel another one."""
    monkeypatch.setattr(cache, "_ROOT", sources)
    before = cache._digest_of_sources.__wrapped__()
    assert cache._digest_of_sources.__wrapped__() == before
    text = (sources / name).read_text()
    (sources / name).write_text(text + "# edited\n")
    edited = cache._digest_of_sources.__wrapped__()
    (sources / name).write_text(text)
    return edited != before


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_kernels_is_part_of_the_identity(name, copied_sources, monkeypatch):
    assert changes_identity(copied_sources, name, monkeypatch)


def test_kernels_are_made_of_nothing_else(copied_sources, monkeypatch):
    """What they import of other rooms must be part of the identity, or of the key of a kernel."""
    in_keys = {"arrays.dtypes"}  # `Kinds`, names of types
    not_in_code = {"runtime.settings"}  # which Numba's own settings in the identity stand for
    kernels = {name: path for name, path in MODULES.items() if name.partition(".")[0] == "kernels"}
    imported = {
        other for path in kernels.values() for other, _ in imports_of(path.read_text(), MODULES)
    }
    others = imported - set(kernels) - in_keys - not_in_code
    assert others
    for name in others:
        source = MODULES[name].relative_to(PACKAGE).as_posix()
        assert changes_identity(copied_sources, source, monkeypatch), f"{name} is not watched"


def identity_of(name="first_outside", key="", arguments=3, flags=FLAGS):
    """That of a kernel as `compile_kernel` is asked for it."""
    asked = []

    def note(name, key, *rest):
        asked.append(f"{name} {cache._identity(key)}")
        return None, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_kernels", {})
        patch.setattr(cache, "_obtained", note)
        cache.compile_kernel(name, key, None, arguments, flags)
    return asked[0]


def test_the_identity_holds_all_that_code_depends_on(monkeypatch):
    identities = [
        identity_of(),
        identity_of(name="find_rows"),
        identity_of(key="another"),
        identity_of(arguments=1),
        identity_of(flags=PARALLEL),
        identity_of(flags=HOLDING_GIL),
        identity_of(flags={**FLAGS, "error_model": "python"}),
    ]
    for setting in cache._SETTINGS_IN_CODE:
        with settings.changed(**{setting: "another"}):
            identities.append(identity_of())
    assert len(set(identities)) == len(identities)
    assert len(cache._SETTINGS_IN_CODE) > 3
    assert identity_of() == identities[0]
    digest = cache._digest_of_sources()
    monkeypatch.setattr(cache, "_digest_of_sources", lambda: digest[::-1])
    assert identity_of() not in identities


def test_the_digest_of_a_program_without_sources_is_that_of_its_code(monkeypatch, tmp_path):
    digest_of_sources = cache._digest_of_sources.__wrapped__
    with_sources = digest_of_sources()
    monkeypatch.setattr(cache, "_ROOT", tmp_path)
    assert digest_of_sources() == digest_of_sources() != with_sources


# --- forms ----------------------------------------------------------------------------------

ALL_SLOTS = Form.with_slots("rms", "mg", "momentum")
DIFFERENT = [
    Form(),
    Form.with_slots("rms", "mg"),
    Form.with_slots("rms", "momentum"),
    ALL_SLOTS,
    Form((RMS, MG, Slot("momentum"))),
    Form((Slot("rms", dtype="float32", zero_gradient="decay"), MG, MOMENTUM)),
    Form((RMS, MG, MOMENTUM, Slot("third"))),
    ALL_SLOTS.with_state({"rms": "bfloat16"}),
    ALL_SLOTS.with_state({"mg": "bfloat16"}),
    Form((Slot("rms", dtype="bfloat16", zero_gradient="decay"), MG, MOMENTUM)),
    *(
        Form(ALL_SLOTS.slots, **setting)
        for setting in (
            {"epsilon": "inside"},
            {"learning_rate": "outside"},
            {"nesterov": True},
            {"bias_correction": True},
            {"weight_decay": "coupled"},
            {"weight_decay": "decoupled"},
            {"weight_decay": "subtracted"},
            {"clip_weights": True},
            {"clamp": False},
            {"complex_square": "modulus"},
            {"rms_average": "difference"},
            {"mg_average": "difference"},
            {"square": "first"},
            {"quotient": "rate_first"},
            {"quotient": "reciprocal"},
            {"quotient": "rate_over"},
            {"fused": True},
            {"rounding": "stochastic"},
        )
    ),
]
ALIKE = [
    (ALL_SLOTS, Form.with_slots("rms", "mg", "momentum", rms_start=1.0)),
    (ALL_SLOTS, Form.with_slots("rms", "mg", "momentum", rms_start="epsilon")),
    (ALL_SLOTS, Form.with_slots("momentum", "rms", "mg")),
    (ALL_SLOTS, Form.with_slots("rms", "mg", "momentum", creation="by_variable")),
    (ALL_SLOTS, Form.with_slots("rms", "mg", "momentum", one_minus_rho="exact")),
    (ALL_SLOTS, Form.with_slots("rms", "mg", "momentum", float32_numbers=("rho",))),
    (Form(weight_decay="decoupled"), Form(weight_decay="independent")),
    (Form(), Form(mg_average="difference", clamp=False)),
    (Form(rms_average="difference"), Form(rms_average="difference", square="first")),
    (
        Form.with_slots("rms", "momentum", learning_rate="outside"),
        Form.with_slots("rms", "momentum", learning_rate="outside", quotient="rate_first"),
    ),
    (presets.tf1(centered=True), presets.keras_legacy(centered=True, momentum=True)),
]


def file_of(load, form, *arguments):
    """Where the kernel of a form is kept."""
    from rmsjit.kernels import loader

    asked = []

    def note(path, identity):
        asked.append(path.name)
        raise OSError("enough")

    slots = tuple(slot.dtype for slot in form.arithmetic.slots)
    kinds = kinds_of(precision_of(np.dtype(np.float32)), slots)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_kernels", {})
        patch.setattr(cache, "_loaded", note)
        patch.setattr(cache._Recipe, "compiled", lambda recipe: None)
        patch.setattr(cache.numba_internals, "entry", lambda result: (None, None))
        patch.setattr(store, "warn_once", lambda folder, error: None)
        getattr(loader, load).__wrapped__(form.arithmetic, kinds, *arguments)
    return asked[0]


LOADS = [("update_dense", False), ("update_rows", True), ("catch_up_rows",)]


@pytest.mark.parametrize(("load", "flags"), [(load, flags) for load, *flags in LOADS])
def test_two_forms_never_share_a_file(folder, load, flags):
    files = {file_of(load, form, *flags) for form in DIFFERENT}
    assert len(files) == len(DIFFERENT)
    for flag in flags:
        files |= {file_of(load, form, not flag) for form in DIFFERENT}
        assert len(files) == 2 * len(DIFFERENT)


@pytest.mark.parametrize(("one", "other"), ALIKE)
@pytest.mark.parametrize(("load", "flags"), [(load, flags) for load, *flags in LOADS])
def test_forms_that_kernels_need_not_tell_apart_share_one(folder, load, flags, one, other):
    assert one != other
    assert file_of(load, one, *flags) == file_of(load, other, *flags)


def test_real_variables_have_no_kernels_of_their_own_for_the_modulus():
    product, modulus = ALL_SLOTS, Form(ALL_SLOTS.slots, complex_square="modulus")
    real, paired = (precision_of(np.dtype(name)) for name in ("float32", "complex64"))
    assert product.compiled_for(real) == modulus.compiled_for(real)
    assert product.compiled_for(paired) != modulus.compiled_for(paired)
    # With fused operations the variance is rounded in another place.
    product, modulus = (replace(form, fused=True) for form in (product, modulus))
    assert product.compiled_for(real) != modulus.compiled_for(real)


def test_every_setting_of_a_form_is_tried_above():
    from rmsjit.rule.form import _CHOICES

    shared = {"creation", "one_minus_rho", "float32_numbers"}
    for name in Form.__dataclass_fields__:
        values = [getattr(form, name) for form in DIFFERENT]
        if name in shared or name == "slots":
            continue
        for choice in _CHOICES.get(name, (False, True)):
            assert choice in values or (name, choice) == ("weight_decay", "independent"), name


# --- spoilt, full, forbidden ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cold cache in a process that seems fresh."""
    monkeypatch.setenv("RMSJIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(store, "_warned", False)
    return tmp_path / "cache"


IDENTITY = ("first_outside", "", 3, *FLAGS.items())


def obtained():
    """The kernel, as a fresh process would get it, and the warnings."""
    from rmsjit.kernels import rows

    cache._kernels.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # It compiles in no time.
        kernel = cache.compile_kernel("first_outside", "", lambda: rows.first_outside, arguments=3)
    assert kernel.call(address_of(np.array([0, 1, 7, 2])), 4, 3) == 2
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


@pytest.mark.slow
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
    identity = cache._identity(str(IDENTITY))
    assert store.read(path, identity)
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


@pytest.mark.slow
def test_unusable_folders_cost_one_warning(folder, tmp_path, monkeypatch):
    for place in unusable(tmp_path):
        monkeypatch.setenv("RMSJIT_CACHE_DIR", str(place))
        monkeypatch.setattr(store, "_warned", False)
        (message,) = obtained()
        assert str(place) in message
        assert "RMSJIT_CACHE_DIR" in message
        assert obtained() == []


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("cached", ["0", "1"])
def test_the_users_settings_neither_break_us_nor_change(tmp_path, cached):
    environment = {**SETTINGS, "NUMBA_CACHE_DIR": str(tmp_path), "RMSJIT_CACHE": cached}
    assert run_python(STEP + UNTOUCHED, **environment) == "function 2\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
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


COMPILED = """
import sys
import numba
import rmsjit.kernels
for name, module in sorted(sys.modules.items()):
    if name.startswith("rmsjit.kernels."):
        print(name, sorted(
            key for key, value in vars(module).items()
            if isinstance(value, numba.core.dispatcher.Dispatcher)
        ))
"""


@pytest.mark.slow
def test_no_function_is_plain_python_without_the_users_jit():
    with_jit, without = run_python(COMPILED), run_python(COMPILED, **SETTINGS)
    assert without == with_jit
    assert "rmsjit.kernels.following ['" in with_jit


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_first_step_loads_no_more_than_it_needs():
    """Numba's compiler and runtime take longer to get ready than all else."""
    code = """
from numba.core.runtime.nrt import rtsys

check("float32", 0.5, True)
for name in ("scipy.linalg", "numba.typed.typedlist", "numba.np.linalg"):
    assert name not in sys.modules, name
assert not rtsys._init  # which would compile functions that kernels have in them
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


@pytest.mark.slow
def test_warmup_leaves_nothing_to_compile():
    """In the cache of all tests, where most of it is there already."""
    said = run_python(WARMUP, "--dtypes", "float32,float64", "--variants", "both", "--sparse")
    assert "both, float64 " in said
    assert "sparse both, float32 " in said
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


@pytest.mark.slow
def test_warmup_clears(tmp_path):
    (tmp_path / "plain-0123.kernel").write_text("of an older version")
    command = [sys.executable, "-c", WARMUP, "--clear", "--variants", "nonsense"]
    environment = {**os.environ, "RMSJIT_CACHE_DIR": str(tmp_path)}
    assert (
        subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 2
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert store.clear(tmp_path) == 1


@pytest.mark.slow
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
