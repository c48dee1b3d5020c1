"""What a notebook shows of an optimizer: settings, variables and the memory of slots."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from rmsjit.state.entries import Entry
from rmsjit.text import human_size

_MOST_ROWS = 20  # of variables


def page(title: str, settings: Mapping[str, Any], entries: Iterable[Entry]) -> str:
    """A fragment of HTML.

    Parameters
    ----------
    title : str
    settings : mapping of str to object
        Shown by their `repr`; nothing else is called.
    entries : iterable of Entry
        The known variables.  Only the first are listed; all are counted.

    Returns
    -------
    str
    """
    known = [entry for entry in entries if not entry.is_gone]
    parts = [f"<strong>{html.escape(title)}</strong>", _table(_rows_of_settings(settings))]
    if known:
        parts.append(
            _table(_rows_of_variables(known), head=("variable", "shape", "dtype", "slots"))
        )
        parts.append(f"<div>{_total(known)}</div>")
    return f"<div>{''.join(parts)}</div>"


def _rows_of_settings(settings: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name, repr(value)) for name, value in settings.items()]


def _rows_of_variables(entries: list[Entry]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (entry.name, str(entry.shape), str(entry.owner.dtype), human_size(_slot_bytes(entry)))
        for entry in entries[:_MOST_ROWS]
    ]
    left = len(entries) - len(rows)
    return [*rows, (f"and {left:,} more", "", "", "")] if left else rows


def _total(entries: list[Entry]) -> str:
    variables = sum(entry.owner.nbytes for entry in entries)
    slots = sum(map(_slot_bytes, entries))
    noun = "variable" if len(entries) == 1 else "variables"
    return f"{len(entries):,} {noun} of {human_size(variables)}, slots of {human_size(slots)}"


def _slot_bytes(entry: Entry) -> int:
    return sum(slot.nbytes for slot in entry.slots.values())


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
