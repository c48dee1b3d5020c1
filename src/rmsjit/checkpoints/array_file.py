"""Files of named arrays and one text, ``.npz`` or ``.safetensors`` according to their suffix.

Neither format supports every dtype.  In ``.npz``, bfloat16 is stored as uint16 with the same bits,
and in ``.safetensors``, complex numbers are stored as pairs of real numbers.  The text has the
original dtypes.

Reading never takes more memory than the file has bytes, whatever its headers say: nothing is
compressed when it is written, and compressed data is not read.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.text import brief

Arrays = dict[str, NDArray[Any]]

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
DTYPES = ["bool", *_INTEGERS, *_FLOATS]  # supported in both formats

_TEXT = "rmsjit"  # the name of the text, among the arrays or in the metadata


def write_arrays(path: Path, text: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write ASCII text and arrays of numbers to a new file; raises `OSError` if that fails."""
    native = {
        key: array.astype(array.dtype.newbyteorder("="), copy=False)
        for key, array in arrays.items()
    }
    write, _ = _FORMATS[ending_of(path)]
    write(path, text, native)


def read_arrays(path: str | os.PathLike[str]) -> tuple[str, Arrays]:
    """The text and the arrays of a file, in the dtypes that they were stored as; see `as_dtype`.

    Raises `OSError` if the file can't be opened, `ValueError` if `write_arrays` has not written it.
    """
    _, read = _FORMATS[ending_of(path)]
    with open(path, "rb"):  # any later error is due to the content of the file
        pass
    try:
        return read(Path(path))
    except (ImportError, MemoryError):
        raise
    except KeyError as error:
        raise ValueError(f"{path} was not written by rmsjit.save: it has no {error}") from None
    except Exception as error:  # zipfile alone raises seven types for damaged files
        raise ValueError(f"{path} is damaged or of another format: {error}") from error


def ending_of(path: str | os.PathLike[str]) -> str:
    """The suffix of a path, which must be that of a known format."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or path_like, got {brief(path)}")
    ending = Path(path).suffix
    if ending not in _FORMATS:
        raise ValueError(f"path must end in {' or '.join(_FORMATS)}, got {os.fspath(path)!r}")
    return ending


def as_dtype(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Restore the dtype of an array from a file; raises `ValueError` if that is impossible."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype == dtype:
        return native
    if dtype.name == "bfloat16" and native.dtype == np.uint16:
        return native.view(dtype)
    pairs = dtype.kind == "c" and native.dtype == np.empty(0, dtype).real.dtype
    if pairs and native.shape[-1:] == (2,):
        return np.asarray(native, order="C").view(dtype)[..., 0]
    raise ValueError(f"{array.dtype} of shape {array.shape} can't be read as {dtype}")


# --- .npz -----------------------------------------------------------------------------------


def _write_npz(path: Path, text: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    held: dict[str, Any] = {key: _as_bits(array) for key, array in arrays.items()}
    np.savez(path, **held | {_TEXT: np.array(text.encode("ascii"))})


def _as_bits(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _read_npz(path: Path) -> tuple[str, Arrays]:
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size)
        text = _parsed(archive.read(members.pop(_TEXT))).tobytes().decode("ascii")
        return text, {key: _parsed(archive.read(name)) for key, name in members.items()}


def _members(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by key, checked to need no more memory than the file has bytes."""
    members = {}
    for member in archive.infolist():
        key, ending = member.filename[:-4], member.filename[-4:]
        if ending != ".npy" or key in members:
            raise ValueError(f"it holds {member.filename!r}, which is a duplicate or no array")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ValueError(f"{member.filename!r} is compressed, which rmsjit.save never does")
        members[key] = member
    if sum(member.file_size for member in members.values()) > file_size:
        raise ValueError("its parts overlap")
    return members


def _parsed(data: bytes) -> NDArray[Any]:
    """The array in the bytes of an ``.npy`` file, whose checksum has been verified.

    `numpy.load` would allocate whatever size a forged header claims, and would confuse a key that
    ends in ".npy" with another one.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) == (1, 0):
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, by_column, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    order: Literal["C", "F"] = "F" if by_column else "C"
    array = np.ndarray(shape, dtype, data, stream.tell(), order=order)
    if stream.tell() + array.nbytes != len(data):
        raise ValueError("an array is smaller than its member of the archive")
    return array


# --- .safetensors ---------------------------------------------------------------------------


def _write_safetensors(path: Path, text: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    # safetensors ignores strides and writes the memory from the first element on.
    held = {key: np.asarray(_as_pairs(array), order="C") for key, array in arrays.items()}
    safetensors = _safetensors()
    try:
        safetensors.numpy.save_file(held, path, metadata={_TEXT: text})
    except safetensors.SafetensorError as error:  # also for errors of the system
        number = re.search(r"(?:os error|code:) (\d+)", str(error))  # "code:" in version 0.4
        raise OSError(*map(int, number.groups() if number else ()), str(error)) from error


def _as_pairs(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "c":
        return array
    return np.asarray(array, order="C")[..., np.newaxis].view(array.real.dtype)


def _read_safetensors(path: Path) -> tuple[str, Arrays]:
    with contextlib.suppress(ImportError):  # safetensors reads bfloat16 only if it is registered
        dtype_named("bfloat16")
    with _safetensors().safe_open(path, framework="np") as file:
        text = (file.metadata() or {})[_TEXT]
        return text, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "files that end in .safetensors need the safetensors package: pip install safetensors"
        ) from error
    return safetensors


_Writer = Callable[[Path, str, Mapping[str, NDArray[Any]]], None]
_Reader = Callable[[Path], tuple[str, Arrays]]
_FORMATS: dict[str, tuple[_Writer, _Reader]] = {
    ".npz": (_write_npz, _read_npz),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
