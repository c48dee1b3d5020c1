"""Faults that happen rarely, and what the user is told then."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import rmsjit
from rmsjit import Form, Slot
from rmsjit.__main__ import BROKEN_PIPE
from rmsjit.checkpoints import array_file
from rmsjit.runtime import notice


def forged(path, change):
    """Write a checkpoint again, with another text and other arrays."""
    text, arrays = array_file.read_arrays(path)
    content = json.loads(text)
    change(content, arrays)
    path.unlink()
    array_file.write_arrays(path, json.dumps(content), arrays)


# --- forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Form((Slot("rms", zero_gradient="stay"),)),
            "zero_gradient of the slot 'rms' must be 'decay', got 'stay'",
        ),
        (lambda: Form.with_slots("rms", "peak"), "names must be among .*, got 'peak'"),
        (
            lambda: rmsjit.RMSprop(
                form=Form((Slot("rms", zero_gradient="decay"), Slot("peak"))), sparse="exact"
            ),
            "the slot 'peak' has no closed form under a zero gradient",
        ),
    ],
    ids=["known-slot", "unknown-name", "no-closed-form"],
)
def test_a_form_that_contradicts_itself_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- checkpoints ----------------------------------------------------------------------------


def test_parts_of_a_file_that_overlap_are_refused(tmp_path):
    """A small file may so claim to be a large one."""
    path, w = tmp_path / "run.npz", np.zeros(1000)
    rmsjit.save(path, rmsjit.RMSprop(), {"w": w})
    with zipfile.ZipFile(path, "a") as archive:
        large = max(archive.filelist, key=lambda member: member.file_size)
        for number in range(3):
            again = zipfile.ZipInfo(f"again{number}.npy")
            for name in ("file_size", "compress_size", "CRC", "header_offset", "compress_type"):
                setattr(again, name, getattr(large, name))
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(ValueError, match="its parts overlap"):
        rmsjit.load(path)


def test_rows_of_a_round_without_their_gradient_are_refused(tmp_path):
    path, table = tmp_path / "run.npz", np.zeros((5, 2))
    optimizer = rmsjit.RMSprop(gradient_accumulation_steps=2)
    optimizer.apply_gradients([(rmsjit.IndexedSlices(np.ones((1, 2)), [3]), table)])
    rmsjit.save(path, optimizer, {"table": table})

    def drop_gradient(content, arrays):
        sums = content["optimizer"]["accumulated"]["sums"]
        (gradient,) = (one for one in sums if one["name"] == "gradient")
        sums.remove(gradient)
        del arrays[gradient["array"]]

    forged(path, drop_gradient)
    with pytest.raises(ValueError, match="sum of 'table': rows were saved without a gradient"):
        rmsjit.load(path, rmsjit.RMSprop(gradient_accumulation_steps=2), {"table": table})


def test_a_group_that_waits_for_its_variables_can_not_be_saved(tmp_path):
    w = np.zeros(2)
    optimizer = rmsjit.RMSprop()
    optimizer.build([w])
    optimizer.add_group([w], lr_multiplier=0.5)
    waiting = rmsjit.RMSprop.from_config(optimizer.get_config())
    with pytest.raises(ValueError, match="awaits variables that have no slots yet: build them"):
        rmsjit.save(tmp_path / "run.npz", waiting, {"w": w})
    waiting.build([w])
    rmsjit.save(tmp_path / "run.npz", waiting, {"w": w})


@pytest.mark.parametrize(
    ("text", "number"),
    [("I/O error: No space left on device (os error 28)", errno.ENOSPC), ("invalid header", None)],
)
def test_an_error_of_safetensors_is_one_of_the_system(text, number, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")

    def fail(*arguments, **options):
        raise sys.modules["safetensors"].SafetensorError(text)

    monkeypatch.setattr(safetensors, "save_file", fail)
    with pytest.raises(OSError, match=text.partition("(")[0]) as caught:
        rmsjit.save(tmp_path / "run.safetensors", rmsjit.RMSprop(), {"w": np.zeros(2)})
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


# --- the terminal ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs pipes of POSIX")
def test_a_reader_that_has_gone_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rmsjit", "forms"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


@pytest.mark.parametrize("closed", [True, False])
def test_no_line_is_written_where_there_is_no_standard_error(closed, monkeypatch):
    stream = io.StringIO() if closed else None
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(notice, "_told", False)
    notice.compiling()
    assert not notice._told
