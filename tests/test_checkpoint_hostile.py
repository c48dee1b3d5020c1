"""Checkpoints that were forged, disks that are nearly good, and interrupts at every line."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit.checkpoints import array_file
from rmsjit.checkpoints.save import load, save
from strategies import interrupted_at

HUGE = 10**400  # beyond all floats
FIRST, SECOND, WEIGHT = ("variables", 0), ("variables", 1), ("optimizer", "weights", 0)


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    return tmp_path / f"run{request.param}"


@pytest.fixture
def run():
    """An optimizer and its variables; "row" is in the memory of "w"."""
    w, b = np.arange(6.0).reshape(2, 3), np.ones(3, np.complex64)
    optimizer = rmsjit.RMSprop(0.1, momentum=0.5)
    optimizer.apply_gradients([(w + 1, w), (b, b)])
    return optimizer, {"w": w, "flat": w.reshape(-1), "b": b}


def bits(optimizer, variables):
    """All that `load` may change."""
    arrays = [*variables.values(), *(weight.array for weight in optimizer.weights)]
    return [np.asarray(array).tobytes() for array in arrays], optimizer.skipped_steps


def rewritten(path, change):
    text, arrays = array_file.read_arrays(path)
    content = json.loads(text)
    change(content, arrays)
    path.unlink()
    array_file.write_arrays(path, json.dumps(content), arrays)


def assert_refused(path, optimizer, variables, match="can't be loaded|is damaged"):
    """In place and anew."""
    before = bits(optimizer, variables)
    for given in [(optimizer, variables), ()]:
        with pytest.raises(ValueError, match=match):
            load(path, *given)
    assert bits(optimizer, variables) == before


# --- the text -------------------------------------------------------------------------------

WRONG = {
    ("version",): [True, 2.0, "2", None, [], -1],
    ("rmsjit",): [None, 1, []],
    ("variables",): [None, {}, "w", [None], [[]], ["w"]],
    ("optimizer",): [None, [], "x"],
    (*FIRST, "name"): [None, 3, ["w"], "b"],
    (*FIRST, "array"): [None, 3, [], {}, "variables/b"],
    (*FIRST, "dtype"): [None, 8, "<f8", "O", "V8", "float64,float64", "M8[s]", "float32", "int64"],
    (*FIRST, "shape"): [None, 6, [6], [2.0, 3.0], [True, 6], [-2, -3], [2, HUGE], [1] * 65, "23"],
    (*FIRST, "axes"): [None, [0.0, 1.0], [0, 0], [0], [0, 1, 2], [-2, -1], ["0", "1"], [[0], [1]]],
    (*FIRST, "flipped"): [None, [2], [-1], [0.5], {"0": 1}, [None]],
    (*FIRST, "same_memory_as"): ["w", "flat", "b", 3, [], {}],
    (*SECOND, "same_memory_as"): [None, "b", "flat", "nothing", ["w"]],
    (*SECOND, "dtype"): ["int64", "float32", "complex64"],
    ("optimizer", "class"): [None, "RMSPropOptimizer", "object", ["RMSprop"], {}],
    ("optimizer", "subclass"): [None, 1, [], "RMSPropOptimizer"],
    ("optimizer", "iterations"): [None, True, -1, 1.0, float("nan"), "1", [], HUGE, 2**64, 2**63],
    ("optimizer", "skipped_steps"): [None, True, -1, 0.0, float("nan"), "x", [], HUGE],
    ("optimizer", "loss_scale"): [
        *(None, [], {}, {"value": 1.0}),
        *({"value": value, "good_steps": 0} for value in (0.0, -1.0, 1e39, HUGE, "x", True, None)),
        *({"value": 1.0, "good_steps": count} for count in (-1, 0.5, None)),
    ],
    ("optimizer", "weights"): [None, {}, [None], "x"],
    (*WEIGHT, "variable"): ["nothing", "flat", 0, [], "b"],
    (*WEIGHT, "name"): [None, 1, ["rms"], "momentum"],
    (*WEIGHT, "array"): [None, 0, [], "variables/w"],
    (*WEIGHT, "dtype"): ["float32", "complex64", None],
    (*WEIGHT, "shape"): [[6], [3, 2], None],
}
WRONG_FORM = {
    "slots": [[], ["rms"], ["rms", "rms", "momentum"], ["momentum"], "rms", [["rms"]], [3], HUGE],
    "epsilon": ["x", None, True, []],
    "clamp": ["x", 1, None, False],
    "nesterov": [True, "x"],
    "weight_decay": ["coupled", 0.1],
    "unknown": [1],
}
WRONG_CONFIG = {
    "learning_rate": [None, True, "0.1", [], HUGE, float("nan"), -float("inf"), {}],
    "rho": [None, 2.0, -1, "x", HUGE],
    "momentum": [None, 2.0, HUGE, True],
    "epsilon": [None, -1.0, "x", HUGE],
    "decay": [None, -1.0, HUGE],
    "centered": [None, True, 1, "x"],
    "name": [None, 3, ""],
    "clipnorm": [None, "x", HUGE, -1.0],
    "sparse": ["x", None],
    "nonfinite": ["x", None],
    "loss_scale": ["x", True, None, 0.0, -1.0, HUGE, {"initial": 0}, {"other": 1}],
    "master_weights": [True, 1, None],
    "rounding": ["stochastic", "x", None],
    "seed": [-1, 0.5, None, 2**64],
    "strategy": ["x"],
    "slot_allocator": ["x"],
    "form": [{}, {"slots": ["rms"]}, {"slots": ["no such"]}, {"slots": [{"name": "rms"}]}, None],
}


def put(content, place, value):
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


@pytest.mark.parametrize("place", WRONG, ids=lambda place: "-".join(map(str, place)))
def test_wrong_values_are_refused_before_anything_is_used(path, run, place):
    save(path, *run)
    whole = path.read_bytes()
    for value in WRONG[place]:
        path.write_bytes(whole)
        rewritten(path, lambda content, _: put(content, place, value))  # noqa: B023
        assert_refused(path, *run)


@pytest.mark.parametrize("part", ["form", "config"])
def test_wrong_settings_are_refused(tmp_path, run, part):
    path = tmp_path / "run.npz"
    save(path, *run)
    whole = path.read_bytes()
    for name, values in (WRONG_FORM if part == "form" else WRONG_CONFIG).items():
        for value in values:
            path.write_bytes(whole)
            rewritten(path, lambda content, _: put(content, ("optimizer", part, name), value))  # noqa: B023
            with pytest.raises(ValueError, match="can't be loaded"):
                load(path)


def test_every_field_must_be_there(path, run):
    save(path, *run)
    whole = path.read_bytes()
    content = json.loads(array_file.read_arrays(path)[0])
    places = [
        ((), content),
        (FIRST, content["variables"][0]),
        (("optimizer",), content["optimizer"]),
    ]
    places.append((WEIGHT, content["optimizer"]["weights"][0]))
    places.append((("optimizer", "config"), content["optimizer"]["config"]))
    for place, record in places:
        for name in record:
            path.write_bytes(whole)

            def remove(content, _, place=place, name=name):
                for key in place:
                    content = content[key]
                del content[name]

            rewritten(path, remove)
            assert_refused(path, *run)


@pytest.mark.parametrize("kind", ["variables", "weights"])
def test_nothing_is_there_twice(path, run, kind):
    save(path, *run)

    def double(content, _):
        records = content.get(kind) or content["optimizer"][kind]
        records.append(records[0])

    rewritten(path, double)
    assert_refused(path, *run, "occurs twice")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[]", "3", "null", '"x"', "NaN"])
def test_text_that_is_no_checkpoint(path, text):
    array_file.write_arrays(path, text, {})
    with pytest.raises(ValueError, match=r"was not written by rmsjit\.save"):
        load(path)


def test_form_that_contradicts_the_class_of_a_user(tmp_path):
    class Mine(rmsjit.RMSprop):
        pass

    path = tmp_path / "run.npz"
    save(path, Mine(), {})
    rewritten(
        path, lambda content, _: put(content, ("optimizer", "form"), {"slots": ["rms", "mg"]})
    )
    with pytest.raises(ValueError, match="the configuration makes"):
        load(path, custom_objects={"Mine": Mine})
    with pytest.raises(ValueError, match=r"custom_objects\['\w+'\] must be a subclass of"):
        load(path, custom_objects={"Mine": print})


@pytest.mark.parametrize(
    ("made", "later"), [(0.0, 0.9), (0.9, 0.0), (lambda: 0.0, 0.0)], ids=["on", "off", "callable"]
)
def test_momentum_that_was_set_later_still_loads(path, made, later):
    optimizer, w = rmsjit.RMSprop(momentum=made), np.ones(3)
    optimizer.momentum = later
    optimizer.apply_gradients([(w, w)])
    save(path, optimizer, {"w": w})
    resumed, _ = load(path)
    assert resumed.form == optimizer.form
    assert resumed.momentum == later


# --- the arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6).astype("M8[s]").reshape(2, 3),
        np.array([b"abcdefgh"] * 6).reshape(2, 3),
        np.ones((2, 6), np.float32),
        np.ones((2, 3, 2), np.float32),
        np.zeros((2, 3), "V8"),
        np.ones((2, 3), "u8"),
        np.zeros((2, 3), [("a", "f4"), ("b", "f4")]),
        np.ones(6),
        np.ones((2, 3, 1)),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_another_dtype_are_refused(tmp_path, run, array):
    path = tmp_path / "run.npz"
    save(path, *run)
    rewritten(path, lambda _, arrays: arrays.update({"variables/w": array}))
    assert_refused(path, *run)


def test_bits_stand_for_bfloat16_alone(tmp_path):
    path, w = tmp_path / "run.npz", np.ones(3, ml_dtypes.bfloat16)
    save(path, rmsjit.RMSprop(), {"w": w})
    assert load(path)[1]["w"].dtype == w.dtype
    rewritten(path, lambda content, _: content["variables"][0].update(dtype="float16"))
    with pytest.raises(ValueError, match="can't be read as float16"):
        load(path)


def test_other_byte_order_is_read(tmp_path, run):
    path = tmp_path / "run.npz"
    save(path, *run)
    with np.load(path) as file:
        members = {name: file[name] for name in file.files}
    members["variables/w"] = members["variables/w"].astype(">f8")
    np.savez(path, **members)
    assert (load(path)[1]["w"] == run[1]["w"]).all()


@pytest.mark.parametrize("name", ["extra", "variables/x", "rmsjit.npy", "../w"])
def test_array_that_the_text_does_not_name_is_refused(path, run, name):
    save(path, *run)
    rewritten(path, lambda _, arrays: arrays.update({name: np.ones(2)}))
    assert_refused(path, *run, "is unknown")


# --- zip files ------------------------------------------------------------------------------


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def npy(header, data=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


@pytest.mark.parametrize("member", ["rmsjit.npy", "variables/w.npy", "extra.npy"])
def test_compressed_members_are_refused_before_they_are_inflated(tmp_path, run, member):
    path = tmp_path / "run.npz"
    save(path, *run)
    members = {"extra.npy": b"", **members_of(path)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name != member:
                archive.writestr(name, data)
        with archive.open(zipfile.ZipInfo(member), "w") as file:  # stored, which is allowed
            file.write(members[member])
        archive.infolist()[-1].compress_type = zipfile.ZIP_DEFLATED
    assert_refused(path, *run, "is compressed")


@pytest.mark.slow
def test_bomb_takes_no_memory(tmp_path, run):
    path = tmp_path / "run.npz"
    save(path, *run)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("extra.npy", bytes(256 << 20))
    tracemalloc.start()
    assert_refused(path, *run, "is compressed")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "data",
    [
        npy({"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)}),
        npy({"descr": "<f8", "fortran_order": False, "shape": (2**62,)}, bytes(48)),
        npy({"descr": "<f8", "fortran_order": False, "shape": (HUGE,)}, bytes(48)),
        npy({"descr": "<f8", "fortran_order": False, "shape": (-2, -3)}, bytes(48)),
        npy({"descr": "<f8", "fortran_order": False, "shape": (2, 3)}, bytes(40)),
        npy({"descr": "<f8", "fortran_order": False, "shape": (2, 3)}, bytes(56)),
        npy({"descr": "|O", "fortran_order": False, "shape": (6,)}, bytes(48)),
        npy({"descr": "V1000000000", "fortran_order": False, "shape": (6,)}, bytes(48)),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 9000,
        b"\x93NUMPY\x09\x00" + bytes(60),
        b"",
    ],
)
def test_arrays_that_announce_what_they_are_not(tmp_path, data):
    path = tmp_path / "run.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rmsjit.npy", data)
    with pytest.raises(ValueError, match="is damaged or of another format"):
        load(path)


def test_members_with_one_name_are_refused(tmp_path, run):
    path = tmp_path / "run.npz"
    save(path, *run)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("variables/w.npy", members_of(path)["variables/w.npy"])
    assert_refused(path, *run, "it holds 'variables/w.npy'")


# --- interrupts -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True], ids=["known variables", "new variables"])
def test_load_interrupted_at_every_line_is_done_or_not_begun(tmp_path, fresh):
    path = tmp_path / "run.npz"
    saved, w = rmsjit.RMSprop(0.1, momentum=0.5), np.zeros(2)
    saved.apply_gradients([(np.ones(2), w)])
    save(path, saved, {"w": w})
    files = ("restore.py", "uninterrupted.py", "slots.py")
    outcomes, line, came = set(), 0, True
    while came:
        line += 1
        optimizer, here = rmsjit.RMSprop(0.1, momentum=0.5), np.full(2, 5.0)
        if not fresh:
            optimizer.build([here])
        optimizer.iterations = 9
        came = interrupted_at(line, lambda: load(path, optimizer, {"w": here}), files)  # noqa: B023
        slots = (
            [optimizer.get_slot(here, name) for name in ("rms", "momentum")] if not fresh else []
        )
        if fresh and optimizer._store.find(here) is not None:
            slots = [optimizer._store.slot_of(here, name) for name in ("rms", "momentum")]
        new = [here[0] != 5, here[1] != 5, int(optimizer.iterations) == 1]
        new += [slot is not None and slot.array.any() for slot in slots]
        assert len({bool(x) for x in new}) == 1, (line, new)
        outcomes.add(bool(new[0]))
    assert outcomes == {True, False}


def test_set_weights_interrupted_at_every_line_is_done_or_not_begun():
    optimizer, w = rmsjit.RMSprop(momentum=0.5), np.zeros(3)
    optimizer.build([w])
    line, came = 0, True
    while came:
        line += 1
        optimizer.set_weights([np.zeros(weight.shape) for weight in optimizer.weights[1:]])
        new = [np.ones(weight.shape, weight.dtype) for weight in optimizer.weights]
        came = interrupted_at(
            line,
            lambda: optimizer.set_weights(new),  # noqa: B023
            ("keras_weights.py", "uninterrupted.py"),
        )
        assert len({float(x) for weight in optimizer.get_weights() for x in weight.flat}) == 1


def test_set_weights_from_live_slots_does_not_mix_them():
    optimizer, w = rmsjit.RMSprop(momentum=0.5), np.zeros(3)
    optimizer.apply_gradients([(np.ones(3), w)])
    count, rms, momentum = optimizer.weights
    expected = [rms.numpy(), momentum.numpy()]
    optimizer.set_weights([count, momentum, rms])
    assert (rms.array == expected[1]).all()
    assert (momentum.array == expected[0]).all()


def test_load_does_not_ask_the_callers_error_state(path):
    optimizer, w = rmsjit.RMSprop(epsilon=1e-7), np.ones(3, np.float16)
    optimizer.apply_gradients([(w, w)])
    save(path, optimizer, {"w": w})
    with np.errstate(all="raise"):
        load(path, optimizer, {"w": w})
        load(path)
        optimizer.set_weights(optimizer.get_weights())


# --- disks ----------------------------------------------------------------------------------


def refusing(function, error, when=lambda *_: True):
    def refuse(*arguments, **keywords):
        if when(*arguments):
            raise error
        return function(*arguments, **keywords)

    return refuse


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("number", [1, 5, 13, 22, 38, 95])
def test_folder_that_can_not_be_synced(path, run, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, OSError(number, "no"), is_folder))
    save(path, *run)
    load(path, *run)
    assert os.listdir(path.parent) == [path.name]


def test_folder_that_can_not_be_opened(path, run, monkeypatch):
    monkeypatch.setattr(
        os,
        "open",
        refusing(os.open, PermissionError(13, "no"), lambda name, *_: os.path.isdir(name)),
    )
    save(path, *run)
    load(path, *run)


def test_file_system_that_syncs_nothing(path, run, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, OSError(22, "Invalid argument")))
    save(path, *run)
    load(path, *run)


@pytest.mark.parametrize("number", [5, 28, 122])
def test_file_that_did_not_reach_the_disk(path, run, monkeypatch, number):
    save(path, *run)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, OSError(number, "no")))
    with pytest.raises(OSError, match="no"):
        save(path, *run)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("number", [1, 13, 38, 95])
def test_file_system_without_permissions(path, run, monkeypatch, number):
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), OSError(number, "no")))
    for _ in range(2):
        save(path, *run)
    load(path, *run)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("length", [1, 59, 60, 64, 65, 130, 250 - len(".safetensors")])
def test_names_of_any_length(path, run, length):
    target = path.with_name("n" * length + path.suffix)
    for _ in range(2):
        save(target, *run)
    load(target, *run)
    assert os.listdir(path.parent) == [target.name]


def test_abandoned_folders_of_long_names_are_removed_too(path, run):
    target = path.with_name("n" * 200 + path.suffix)
    code = (
        "import os, sys\nfrom rmsjit.checkpoints.atomic_file import replacing\n"
        "with replacing(sys.argv[1]):\n    os._exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, target], check=False).returncode == 3
    assert len(os.listdir(path.parent)) == 1
    save(target, *run)
    assert os.listdir(path.parent) == [target.name]


@pytest.mark.parametrize("name", ["blob", "blob.bin", "blob.npz", "blob.safetensors", ".npz"])
def test_link_stays_and_its_ending_counts(path, run, name):
    folder = path.parent / "store"
    folder.mkdir()
    path.symlink_to(folder / name)  # which is not there yet
    for _ in range(2):
        save(path, *run)
        load(path, *run)
        assert path.is_symlink()
        assert os.listdir(folder) == [name]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_full_disk_is_an_os_error(path):
    code = (
        "import resource, signal, sys\nimport numpy as np, rmsjit\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: rmsjit.save(sys.argv[1], rmsjit.RMSprop(), {'w': np.ones(100_000)})\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    assert done.stdout == "27\n"
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("step", [float("inf"), float("nan"), 1e300, "x", None, HUGE])
def test_steps_of_torch_that_are_no_count(step):
    state = {"step": step, "square_avg": np.ones(2)}
    group = {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "momentum": 0, "params": [0]}
    state_dict = {"state": {0: state}, "param_groups": [group]}
    with pytest.raises(ValueError, match="can't be loaded"):
        rmsjit.interop.from_torch_state_dict(state_dict, {"w": np.ones(2)})
