"""A function of torch is replaced by one that calls it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def replace_function(owner: Any, name: str, wrap: Wrap) -> None:
    """Put what `wrap` makes of a function into its place in a class or module, under its name and with its words."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(wrap(original)))
