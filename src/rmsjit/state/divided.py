"""Variables that are divided among processes, each of which has the slots of one part."""

from typing import Any, NamedTuple

from rmsjit.state.entries import Entry


class Divided(NamedTuple):
    """A divided variable.

    Attributes
    ----------
    whole : Entry
        Without slots; it tells the group of the variable.
    part : Entry or None
        The entry of this process's part in the store, if it has one.
    """

    whole: Entry
    part: Entry | None

    def join(self, group: Any) -> None:
        """Put the variable into a group, and so its part."""
        self.whole.group = group
        if self.part is not None:
            self.part.group = group
            self.part.stem = self.whole.stem  # patterns are about the whole variable
