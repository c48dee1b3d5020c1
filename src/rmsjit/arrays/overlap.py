"""Which arrays overlap: variables, which must not, and the memory that a step writes.

Known arrays are kept sorted by address, so a new one is compared with its neighbours only.
Columns of one array are interleaved, so their addresses don't separate them; they are
distinguished by their start addresses modulo their common stride.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of

Span = tuple[int, int]  # first address, and the address after the last byte
T = TypeVar("T")

_OVERLAP_WORK: Any = 100_000  # NumPy's stubs know only two special values
_CHUNK = 512  # spans in one list, to keep insertion cheap


class Memory(Protocol):
    """A variable or a slot, as it is compared with others."""

    @property
    def key(self) -> Key: ...
    @property
    def canonical(self) -> NDArray[Any]: ...
    @property
    def span(self) -> Span: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


M = TypeVar("M", bound=Memory)


class Spans(Generic[T]):
    """A sorted map from disjoint spans to things."""

    def __init__(self) -> None:
        self._chunks: list[list[tuple[int, int, T]]] = [[]]
        self._starts: list[int] = [0]  # where each chunk begins; the first has no lower limit

    def add(self, start: int, end: int, thing: T) -> None:
        """Add a span that meets no other."""
        k = max(bisect_right(self._starts, start) - 1, 0)
        chunk = self._chunks[k]
        insort(chunk, (start, end, thing), key=itemgetter(0))
        if len(chunk) > 2 * _CHUNK:
            self._chunks[k : k + 1] = chunk[:_CHUNK], chunk[_CHUNK:]
            self._starts.insert(k + 1, chunk[_CHUNK][0])

    def remove(self, start: int) -> None:
        """Remove the span that begins there."""
        k = max(bisect_right(self._starts, start) - 1, 0)
        del self._chunks[k][bisect_left(self._chunks[k], (start,))]
        if not self._chunks[k] and len(self._chunks) > 1:  # `meeting` looks back by one chunk
            del self._chunks[k], self._starts[k]

    def meeting(self, start: int, end: int) -> Iterator[tuple[int, int, T]]:
        """The spans that meet the given one, in ascending order."""
        k = max(bisect_right(self._starts, start) - 1, 0)
        at = bisect_left(self._chunks[k], (start,))
        before = self._chunks[k][at - 1 : at] or (self._chunks[k - 1][-1:] if k and not at else [])
        if before and before[0][1] > start:
            yield before[0]
        while k < len(self._chunks):
            chunk = self._chunks[k]
            while at < len(chunk):
                if chunk[at][0] >= end:
                    return
                yield chunk[at]
                at += 1
            k, at = k + 1, 0


class _Comb(Generic[M]):
    """Memories with the same largest stride, by their start addresses modulo that stride.

    Each consists of equal pieces, one per stride.  Memories whose pieces cover different residues
    have no byte in common, wherever they start.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.members: list[M] = []
        self._by_residue: dict[int, list[M]] = {}
        self._residues: list[int] = []
        self._widest = 0

    def add(self, memory: M, width: int) -> None:
        residue = memory.span[0] % self.stride
        if residue not in self._by_residue:
            insort(self._residues, residue)
        self._by_residue.setdefault(residue, []).append(memory)
        self.members.append(memory)
        self._widest = max(self._widest, width)

    def near(self, start: int, width: int) -> Iterator[M]:
        """Members that may meet a memory that starts there and whose pieces have this width."""
        if width + self._widest > self.stride:
            yield from self.members
            return
        first = (start - self._widest + 1) % self.stride
        last = first + self._widest + width - 1  # one past the last residue that may meet it
        for low, high in ((first, last), (first - self.stride, last - self.stride)):
            for k in range(bisect_left(self._residues, low), bisect_left(self._residues, high)):
                yield from self._by_residue[self._residues[k]]


class _Cluster(Generic[M]):
    """Memories that are not contiguous and whose spans meet."""

    def __init__(self) -> None:
        self.combs: dict[int, _Comb[M]] = {}
        self.size = 0

    @property
    def members(self) -> list[M]:
        return [memory for comb in self.combs.values() for memory in comb.members]

    def add(self, memory: M) -> None:
        stride, width = _stride_and_width(memory.canonical)
        self.combs.setdefault(stride, _Comb(stride)).add(memory, width)
        self.size += 1

    def near(self, memory: Memory) -> Iterator[M]:
        contiguous = memory.canonical.flags.c_contiguous
        start, end = memory.span
        stride, width = (0, end - start) if contiguous else _stride_and_width(memory.canonical)
        for comb in self.combs.values():
            if stride in (0, comb.stride):
                yield from comb.near(start, width)
            else:
                yield from comb.members


class Overlaps(Generic[M]):
    """Memories that do not overlap, to be searched for one that overlaps another.

    Attributes
    ----------
    compared : int
        How often two memories were compared.  Per search, it must not grow with their number.
    """

    def __init__(self, memories: Iterable[M] = ()) -> None:
        self._contiguous: Spans[M] = Spans()
        self._clusters: Spans[_Cluster[M]] = Spans()
        self.compared: int = 0
        for memory in memories:
            self.add(memory)

    def add(self, memory: M) -> None:
        """Add a memory that overlaps no other."""
        start, end = memory.span
        if start == end:
            return
        if memory.canonical.flags.c_contiguous:
            self._contiguous.add(start, end, memory)
            return
        found = list(self._clusters.meeting(start, end))
        clusters = (cluster for _, _, cluster in found)
        cluster = max(clusters, key=lambda cluster: cluster.size, default=_Cluster())
        for first, last, other in found:
            self._clusters.remove(first)
            start, end = min(start, first), max(end, last)
            for member in other.members if other is not cluster else ():
                cluster.add(member)
        cluster.add(memory)
        self._clusters.add(start, end, cluster)

    def meeting(self, memory: Memory) -> M | None:
        """A memory that shares an element with `memory` and is not the same, or None."""
        start, end = memory.span
        if start == end:
            return None
        for _, _, other in self._contiguous.meeting(start, end):
            if self._share(memory, other):
                return other
        for _, _, cluster in self._clusters.meeting(start, end):
            for other in cluster.near(memory):
                if self._share(memory, other):
                    return other
        return None

    def _share(self, one: Memory, other: Memory) -> bool:
        self.compared += 1
        (start, end), (first, last) = one.span, other.span
        if end <= first or last <= start or one.key == other.key:
            return False
        return _share(one, other)


def refuse_overlap(
    known: Overlaps[Any] | Iterable[Memory],
    new: Iterable[Memory],
    name: Callable[[Any], str],
    rule: str = "variables must not overlap in part",
) -> None:
    """Raise `ValueError` if a new memory overlaps a known or another new one in part.

    The message begins with `rule` and names both memories by calling `name`.
    """
    index = known if isinstance(known, Overlaps) else Overlaps(known)
    fresh: Overlaps[Memory] = Overlaps()
    for memory in {memory.key: memory for memory in new}.values():
        other = index.meeting(memory) or fresh.meeting(memory)
        if other is not None:
            first, second = (f"{name(one)} of shape {one.shape}" for one in (other, memory))
            hint = _hint(other.shape, memory.shape)
            raise ValueError(f"{rule}, but {first} and {second} share memory{hint}")
        fresh.add(memory)


def _hint(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    """Advice if the shapes look like a table and some of its rows, or like two sets of rows."""
    both_rows = one[1:] == other[1:] and len(one) > 1
    if not (both_rows or one == other[1:] or other == one[1:]):
        return ""
    return (
        "; to train some rows of a table, pass the whole table, and an IndexedSlices of these rows "
        "as its gradient"
    )


def _share(one: Memory, other: Memory) -> bool:
    """Whether two memories share an element; also true if NumPy gives up."""
    return _shares(one.canonical, other.canonical)


def _shares(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        return bool(np.shares_memory(one, other, max_work=_OVERLAP_WORK))
    except np.exceptions.TooHardError:
        return True


def _stride_and_width(canonical: NDArray[Any]) -> tuple[int, int]:
    """The largest stride, and the size in bytes of the piece that it repeats."""
    pairs = [
        (stride, length)
        for length, stride in zip(canonical.shape, canonical.strides, strict=True)
        if length > 1
    ]
    inner = sum(stride * (length - 1) for stride, length in pairs[1:])
    return pairs[0][0], inner + canonical.itemsize


def merged_spans(spans: Iterable[Span]) -> NDArray[np.int64]:
    """Ascending, disjoint spans of the same memory, as an array of starts and ends."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if ends and start < ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return np.array((starts, ends), np.int64)


def overlapping(arrays: Sequence[NDArray[Any]], written: Sequence[NDArray[Any]]) -> list[int]:
    """The positions of those `arrays` that share an element with one of `written`."""
    if not arrays:
        return []
    spans = merged_spans(map(byte_bounds, written))
    if not spans.size:
        return []
    starts, ends = np.array([byte_bounds(array) for array in arrays], np.int64).T
    last = np.searchsorted(spans[0], ends - 1, side="right") - 1
    near = np.flatnonzero((last >= 0) & (spans[1, last] > starts)).tolist()
    return [k for k in near if any(_shares(arrays[k], array) for array in written)]


def span_that_meets(spans: NDArray[np.int64], contiguous: NDArray[Any]) -> Span | None:
    """The last of `merged_spans` that shares memory with a contiguous array, or None."""
    start = address_of(contiguous)
    end = start + contiguous.nbytes
    last = int(np.searchsorted(spans[0], end - 1, side="right")) - 1
    if start == end or last < 0 or spans[1, last] <= start:
        return None
    return int(spans[0, last]), int(spans[1, last])
