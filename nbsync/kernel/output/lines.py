"""Bytes of a stream become lines, and what a terminal would show of an unfinished one."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field

# How torch's C++ begins a line: `[rank1]:[W1128 05:45:01.984217028 reducer.cpp:1529] Warning: ...`
_HEAD = re.compile(r"(\[rank\d+\]:)?(\[[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ (?=[\w.]+:\d+\] )")


def without_rank(line: str) -> str:
    """A line of torch's C++ without the rank: the label says it."""
    head = _HEAD.match(line)
    return line if head is None or head[1] is None else line[head.end(1) :]


def without_time(line: str) -> str:
    """A line as other ranks say it too: torch's C++ puts the time before what it says."""
    head = _HEAD.match(line)
    return line if head is None else head[2] + line[head.end() :]


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("backslashreplace")


@dataclass
class LineSplitter:
    """Splits one stream of one rank. Bytes that are not UTF-8 come out escaped (`\\xff`); nothing is dropped.

    Of text that a carriage return overwrites, the last state is kept, as in a terminal.
    """

    _partial: str = ""
    _decode: codecs.IncrementalDecoder = field(default_factory=_decoder)

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their newlines."""
        *lines, self._partial = (self._partial + self._decode.decode(data)).split("\n")
        if "\r" in self._partial:
            self._partial = _keep_visible(self._partial)
        return [_overwritten(line) for line in lines]

    @property
    def unfinished(self) -> str:
        """What stands on the line that is not complete yet."""
        return _overwritten(self._partial)

    def finish(self) -> list[str]:
        """The rest, as a last line; nothing if there is none."""
        rest = self._partial + self._decode.decode(b"", final=True)
        self._partial = ""
        return [_overwritten(rest)] if rest else []


def _overwritten(line: str) -> str:
    """What a terminal shows of a line with carriage returns: the last text that was written over it."""
    if "\r" not in line:
        return line
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


def _keep_visible(partial: str) -> str:
    """Drop what is overwritten already, but keep a final return: the next text begins at the line's start."""
    return _overwritten(partial) + ("\r" if partial.endswith("\r") else "")
