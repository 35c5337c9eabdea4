"""Names by which all ranks know the same of their objects: what it looks like, and its number among those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Names:
    """Gives the names, in the order in which the objects are made.

    Attributes:
        given: how many, by look.
    """

    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    def give(self, look: str) -> str:
        """`Linear #2` for the second that looks like `Linear`."""
        self.given[look] += 1
        return f"{look} #{self.given[look]}"

    def catch_up(self, given: Mapping[str, int]) -> None:
        """Skip what another rank has given, so that later objects have the same names on all ranks again."""
        self.given |= Counter(given)
