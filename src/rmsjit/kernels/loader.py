"""All kernels: each is loaded from the cache, or compiled.

Kernels check nothing; `rmsjit.steps` prepares their calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rmsjit.arrays.dtypes import Kinds
from rmsjit.kernels import (
    act,
    adding,
    converting,
    copies,
    dense,
    driver,
    following,
    headers,
    identity,
    norms,
    overlap,
    rows,
    tensors,
    touching,
)
from rmsjit.rule.form import Form
from rmsjit.runtime.cache import Kernel, compile_kernel
from rmsjit.runtime.flags import HOLDING_GIL, PARALLEL


def _over_bins(
    name: str,
    key: str,
    make: Callable[[], Any],
    before: Any = driver.nothing,
    after: Any = driver.nothing,
) -> Kernel:
    """A kernel of bins, whose work `make` returns; see `rmsjit.kernels.driver.over_bins`."""
    return compile_kernel(name, key, lambda: driver.over_bins(make(), before, after), arguments=2)


@functools.cache
def run_on_threads() -> Kernel:
    """Have threads do the bins of another kernel."""
    return compile_kernel(
        "run_on_threads", "", lambda: driver.run_on_threads, arguments=2, flags=PARALLEL
    )


@functools.cache
def update_dense(form: Form, kinds: Kinds, clipped: bool) -> Kernel:
    """The rule over whole variables; `form` is some form's `arithmetic`."""
    key = f"{form} {kinds} {clipped}"
    make = functools.partial(dense.update_pieces, form, kinds, clipped)
    return _over_bins("update_dense", key, make)


@functools.cache
def update_rows(form: Form, kinds: Kinds, exact: bool) -> Kernel:
    """The rule over rows of a table, with or without a clock."""
    key = f"{form} {kinds} {exact}"
    make = functools.partial(rows.update_rows, form, kinds, exact)
    return _over_bins("update_rows", key, make, before=rows.cut_rows)


@functools.cache
def catch_up_rows(form: Form, kinds: Kinds) -> Kernel:
    """Bring rows of a table to the last step of its clock."""
    make = functools.partial(rows.catch_up_rows, form, kinds)
    return _over_bins("catch_up_rows", f"{form} {kinds}", make)


@functools.cache
def tick() -> Kernel:
    """Count a step on a clock."""
    return _over_bins("tick", "", lambda: rows.tick)


@functools.cache
def reset() -> Kernel:
    """Reset a clock."""
    return _over_bins("reset", "", lambda: rows.reset)


@functools.cache
def sums_of_squares(real: str, computing: str) -> Kernel:
    """The norms of gradients; complex ones are read as twice as many `real` numbers."""
    make = functools.partial(norms.sums_of_pieces, real, computing)
    return _over_bins("sums_of_squares", f"{real} {computing}", make, after=norms.add_up)


@functools.cache
def add_pieces(real: str) -> Kernel:
    """Add gradients to sums; all numbers have the type `real`."""
    return _over_bins("add_pieces", real, lambda: adding.add_pieces(real))


@functools.cache
def convert(source: str, target: str) -> Kernel:
    """Copy strided arrays to contiguous memory of another type, or of the same."""
    make = functools.partial(converting.convert, source, target)
    return _over_bins("convert", f"{source} {target}", make)


@functools.cache
def copy_strided() -> Kernel:
    """Copy a strided array to contiguous memory, or back."""
    return _over_bins("copy_strided", "", lambda: copies.copy_strided)


@functools.cache
def copy_parts() -> Kernel:
    """Copy parts of arrays to contiguous memory, or back."""
    return compile_kernel("copy_parts", "", lambda: copies.copy_parts)


@functools.cache
def first_outside() -> Kernel:
    """Check indices of rows."""
    return compile_kernel("first_outside", "", lambda: rows.first_outside, arguments=3)


@functools.cache
def find_rows() -> Kernel:
    """Find the occurrences of each row."""
    return compile_kernel("find_rows", "", lambda: rows.find_rows)


@functools.cache
def run_act() -> Kernel:
    """Call the kernels of a step."""
    return compile_kernel("run_act", "", lambda: act.run_act)


@functools.cache
def read_pairs() -> Kernel | None:
    """The reader of object headers; None if they do not have the layout that it expects."""
    read = compile_kernel(
        "read_pairs", "", lambda: headers.read_pairs, arguments=2, flags=HOLDING_GIL
    )
    return read if headers.headers_readable(read.call) else None


@functools.cache
def touch_pages() -> Kernel:
    """Touch new memory on several threads."""
    return _over_bins("touch_pages", "", lambda: touching.touch_pages)


@functools.cache
def meets_written() -> Kernel:
    """Whether memory that a step reads meets what it writes."""
    return compile_kernel("meets_written", "", lambda: overlap.meets_written, arguments=2)


def _of_objects(name: str, make: Callable[[], Any], arguments: int = 2) -> Kernel | None:
    """A kernel that reads Python's objects; None as for `read_pairs`."""
    if read_pairs() is None:
        return None
    return compile_kernel(name, "", make, arguments, flags=HOLDING_GIL)


@functools.cache
def follow() -> Kernel | None:
    """Finds known variables and moves a step to them; None as for `read_pairs`."""
    kernel = _of_objects("follow", lambda: following.follow)
    return kernel if kernel is not None and following.can_follow(kernel.call) else None


@functools.cache
def read_tensors() -> Kernel | None:
    """Finds where tensors are; None as for `read_pairs`, as it reads a tuple in the same way."""
    return _of_objects("read_tensors", lambda: tensors.read_tensors, arguments=3)


@functools.cache
def same_items() -> Kernel | None:
    """Whether tuples hold the same objects; None as for `read_pairs`."""
    return _of_objects("same_items", lambda: identity.same_items)


@functools.cache
def same_values() -> Kernel | None:
    """Whether dictionaries hold the same objects; None as for `read_pairs`."""
    return _of_objects("same_values", lambda: identity.same_values, arguments=4)


@functools.cache
def has_item() -> Kernel | None:
    """Whether a tuple holds an object; None as for `read_pairs`."""
    return _of_objects("has_item", lambda: identity.has_item)
