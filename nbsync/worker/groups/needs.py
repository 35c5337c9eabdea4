"""What torch must have for some of its operations to be compared. It is private, and another torch may lack it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from operator import attrgetter

import torch


def can_compare(what: str, needs: Iterable[str]) -> bool:
    """Whether torch has all these names. If not, it is told that `what` is not compared: ranks work without that.

    To be asked before any of it is replaced, so that nothing stays half done.
    """
    missing = next((name for name in needs if not _has(name)), None)
    if missing is not None:
        lack = f"torch {torch.__version__} has no torch.{missing}"
        print(f"nbsync: the ranks do not compare {what}: {lack}", file=sys.stderr)
    return missing is None


def _has(name: str) -> bool:
    try:
        attrgetter(name)(torch)
    except AttributeError:
        return False
    return True
