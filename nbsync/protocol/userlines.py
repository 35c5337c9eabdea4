"""Which lines are the user's: of a traceback, the part that tells the user something."""

from __future__ import annotations

import os
import re
import sysconfig
from functools import lru_cache
from types import CodeType, TracebackType

_LIBRARIES = tuple(
    {os.path.join(sysconfig.get_paths()[key], "") for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {os.path.join(os.path.dirname(os.path.dirname(__file__)), "")}
)
_COMPILED = re.compile(r"/(..)/c\1\w{40,}\.py$")  # what torch.compile has made of the user's code, in its cache
_ANY_PYTHONS = ("/site-packages/", "/dist-packages/")  # also the user's own, and those of a system under a venv


def is_users(code: CodeType) -> bool:
    """Whether this is code of the notebook or of the user's files, not of a library."""
    return _is_users_file(code.co_filename)


@lru_cache
def _is_users_file(name: str) -> bool:
    is_library = name.startswith(_LIBRARIES) or any(folder in name for folder in _ANY_PYTHONS) or _COMPILED.search(name)
    return not is_library and not (name.startswith("<") and "ipython-input" not in name)


def keep_users_lines(error: BaseException) -> None:
    """Cut off the library's frames around the user's lines, where they tell the user nothing; also of the cause."""
    error.__traceback__ = _users_part(error.__traceback__)
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = _users_part(error.__cause__.__traceback__)
        if error.__cause__.__traceback__ is None:
            error.__cause__ = None


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """From the user's first line to the last; None if there is no such line."""
    first = last = None
    while trace is not None:
        if is_users(trace.tb_frame.f_code):
            first, last = first or trace, trace
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None
    return first
