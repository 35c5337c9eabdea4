"""What the user reads: how ranks and sizes are written, and which limit an error of the system means."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

_PLURALS = {"was": "were", "has": "have", "is": "are", "does": "do"}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def describe_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0-3`, `ranks 0,2-3`."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {format_ranks(ranks)}"


def ranks_do(ranks: Sequence[int], what: str) -> str:
    """`rank 1 was killed`, `ranks 0-1 were killed`: `what` is said of one rank."""
    return f"{describe_ranks(ranks)} {_agreeing(ranks, what)}"


def ranks_each_do(what: Mapping[int, str]) -> list[str]:
    """As `ranks_do`, for each thing that is said of some of the ranks."""
    said: dict[str, list[int]] = {}
    for rank, each in sorted(what.items()):
        said.setdefault(each, []).append(rank)
    return [ranks_do(ranks, each) for each, ranks in said.items()]


def they_do(ranks: Sequence[int], what: str) -> str:
    """`it was killed`, `they were killed`: as `ranks_do`, of ranks that were just named."""
    return f"{pronoun(ranks, 'they')} {_agreeing(ranks, what)}"


def _agreeing(ranks: Sequence[int], what: str) -> str:
    verb, _, rest = what.partition(" ")
    return f"{verb if len(ranks) == 1 else _PLURALS.get(verb, verb.removesuffix('s'))} {rest}"


def pronoun(ranks: Sequence[int], several: str) -> str:
    """`it`, or for several ranks `they` or `them`."""
    return "it" if len(ranks) == 1 else several


def way_back(ranks: Sequence[int], who: str) -> str:
    """What brings ranks back whose process has ended, `who` in words."""
    return f"`%nbsync restart --ranks {format_ranks(ranks)}` brings {who} back"


def format_ranks(ranks: Iterable[int]) -> str:
    """Return the shortest spec for `ranks`: ``(0, 2, 3, 4)`` is ``"0,2-4"``."""
    # Within a run of neighbours, rank minus position stays the same.
    runs = groupby(enumerate(sorted(set(ranks))), key=lambda pair: pair[1] - pair[0])
    bounds = [[rank for _, rank in run] for _, run in runs]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in bounds)


def describe_limit(error: BaseException) -> str:
    """Which limit of this process has been reached, where the error does not tell; "" when it is none."""
    if not isinstance(error, OSError) or error.errno != errno.EMFILE:
        return ""
    import resource  # not on every system

    return f"all {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} file descriptors of this process are in use"


def without_colours(text: str) -> str:
    """The text without those in which IPython renders a traceback."""
    return _COLOURS.sub("", text)


def format_size(nbytes: float) -> str:
    """`412 MB`, `2.1 GB`."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
