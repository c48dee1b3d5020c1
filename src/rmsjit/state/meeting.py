"""How the copy of an optimizer finds out which arrays are its variables, when it first sees them.

See `rmsjit.state.copies`: an entry of a copy has several homes, arrays that were copied with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, canonical_view
from rmsjit.arrays.owners import held_elsewhere
from rmsjit.runtime.uninterrupted import run
from rmsjit.state.entries import Entry, Home, entry_of

if TYPE_CHECKING:
    from rmsjit.state.slots import SlotStore


def meet(store: SlotStore, key: Key, array: NDArray[Any], name: str = "") -> None:
    """Find out which entry of a copy belongs to an array, when the copy first sees it."""
    settle(store)
    entry = store.unmet.get(key)
    if entry is not None:
        home = next(home for home in entry.homes if home.key == key)
        _settle_at(store, {entry.key: (entry, home)})
    elif store.unmet and key not in store.entries:
        _meet_stranger(store, array, name)


def settle(store: SlotStore) -> None:
    """Settle, once, each entry with exactly one home that somebody else holds and may train."""
    if not store.unsettled:
        return
    found: dict[Key, dict[Key, Any]] = {}  # the homes of each entry, by their memory
    for entry, home in held_homes(_distinct(store.unmet.values())):
        found.setdefault(entry.key, {})[home.key] = entry, home
    store.apart = not found
    alone = {key: places for key, places in found.items() if len(places) == 1}
    _settle_at(store, {key: next(iter(places.values())) for key, places in alone.items()})
    store.unsettled = False


def held_homes(unmet: Sequence[Entry]) -> list[tuple[Entry, Home]]:
    """The homes of entries that somebody else holds and may train.

    Copying links array objects, so whoever holds what is below them does not matter.
    """
    homes = [
        (entry, home)
        for entry in unmet
        for home in entry.homes
        if home.is_linked and home.view.flags.writeable
    ]
    views = [
        [home.view, *(entry.own_views[:3] if home is entry.homes[0] else ())]
        for entry, home in homes
    ]
    held = held_elsewhere(views, as_arrays=True)
    return list(compress(homes, held))


def _settle_at(store: SlotStore, places: Mapping[Key, tuple[Entry, Home]]) -> None:
    """Make the given homes the variables of their entries."""
    changes: dict[Key, Entry | None] = {}
    stay: list[Entry] = []
    for key, (entry, home) in places.items():
        if home is entry.homes[0]:
            stay.append(entry)
            continue
        changes[key] = new = entry_of(home.view)
        new.follow(entry)
        new.given = entry.given
        for slot, flat in entry.slots.items():
            original = entry.homes[0].to_original(flat)
            new.slots[slot] = store.memories.placed(home.from_original(original), new)
    if changes:
        store.replace(changes)
    unmet = {home: e for home, e in store.unmet.items() if e.homes and e not in stay}
    # As one, since an unmet entry must have homes.
    homeless = [partial(setattr, entry, "homes", ()) for entry in stay]
    run([*homeless, partial(setattr, store, "unmet", unmet)])


def _meet_stranger(store: SlotStore, array: NDArray[Any], name: str) -> None:
    """Handle an array that was not copied with the optimizer, but may be a copied variable."""
    unmet = [
        entry
        for entry in _distinct(store.unmet.values())
        if (entry.canonical.dtype, entry.canonical.size) == (array.dtype, array.size)
    ]
    alike = [entry for entry in unmet if entry.shape == array.shape]
    same, home = _with_values(dict.fromkeys([*alike, *unmet]), array)
    if same is None and not alike:
        return
    if same is not None and home is not None:
        _settle_at(store, {same.key: (same, home)})
        settled = store.entries[home.key]
        by_axes = home.view if _is_equal(home.view, array) else None
        store.replace({settled.key: store.memories.moved(settled, array, by_axes)})
    if name and (store.apart if same is None else store.links_arrays):
        names = ", ".join(entry.name for entry in (alike or unmet)[:3])
        begins = f"starts without state: its values are not those of {names}"
        if same is not None:
            begins = f"continues with the state of {same.name}, which has the same values"
        store.tell(
            "stranger",
            f"{name} was not copied with this copy of the optimizer. It {begins}. Copy the "
            f"optimizer and its variables together, or call rebind(old, new)",
        )


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    return list({id(entry): entry for entry in entries}.values())


def _with_values(
    entries: Iterable[Entry], array: NDArray[Any]
) -> tuple[Entry, Home] | tuple[None, None]:
    """The entry, and its home, with exactly the values of an array.

    Those of another view must be in the same order in memory, and not all equal.
    """
    homes = [(entry, home) for entry in entries for home in entry.homes]
    for entry, home in homes:
        if _is_equal(home.view, array):
            return entry, home
    flat = canonical_view(array).reshape(-1)
    if (flat != flat[:1]).any():
        for entry, home in homes:
            if canonical_view(home.view).tobytes() == flat.tobytes():
                return entry, home
    return None, None


def _is_equal(view: NDArray[Any], array: NDArray[Any]) -> bool:
    """Whether two arrays have the same shape, and the same values bit for bit."""
    return view.shape == array.shape and view.tobytes() == array.tobytes()
