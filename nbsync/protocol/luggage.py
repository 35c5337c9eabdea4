"""What a worker that was not forked from the notebook takes with it: the notebook's variables, function and settings.

It travels in one file of shared memory. Large tensors and arrays lie in it uncopied, and every rank maps the same
pages: they are there once for all ranks, until a rank writes to them.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import dill

from nbsync.errors import Interrupted
from nbsync.protocol.salvage import Salvager, Spoiled
from nbsync.protocol.serial import Common, Pickler, Unpickler
from nbsync.protocol.spec import WorkerSpec

#: The name under which the function of a launch travels among the notebook's variables.
CALL = "nbsync call"

_SIZE = struct.Struct("!Q")
_ALIGNED = 64  # bytes: what vector instructions want of an array's beginning
_LONG_PUT = struct.Struct("<cI")


@dataclass(frozen=True)
class Settings:
    """What makes a fresh process like the notebook, beside its variables.

    Attributes:
        kernel_pid: the notebook's process.
        extensions: of IPython, to be loaded by name.
        shell: traits of the IPython shell, by name.
        cells: for the file name of each cell, its number and source, for tracebacks.
        known: names of classes and functions that both sides have, and send by name from now on.
        missing: variables that could not be packed, with their types.
    """

    kernel_pid: int
    path: Sequence[str]
    folder: str
    environ: Mapping[str, str]
    argv: Sequence[str]
    extensions: Sequence[str] = ()
    shell: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[str, tuple[int, Sequence[str]]] = field(default_factory=dict)
    known: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """One variable in the stream: where it begins, its first buffer, and its first number in the pickle's memo."""

    name: str
    start: int
    buffer: int
    memo: int


@dataclass
class Variables:
    """The notebook's variables as one stream of pickles, in which what they share is shared.

    Attributes:
        missing: those that could not be packed, with the name of their type.
    """

    stream: bytes = b""
    buffers: list[Any] = field(default_factory=list)  # PickleBuffers; memoryviews where they have arrived
    parts: list[_Part] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def pack(cls, values: Mapping[str, Any]) -> Variables:
        """Pack every variable that can be packed."""
        packed = cls()
        file = io.BytesIO()
        pickler = _Pickler(file, Common(), packed.buffers.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dill.PicklingWarning)  # told as missing where it matters
            for name, value in values.items():
                part = _Part(name, file.tell(), len(packed.buffers), len(pickler.memo))
                try:
                    pickler.dump(value)
                    packed.parts.append(part)
                except KeyboardInterrupt:
                    raise Interrupted([f"while packing {spoken(name)} for the workers"]) from None
                except Exception:  # a user's __reduce__ may raise anything
                    packed.missing[name] = _type_name(value)
                    packed._roll_back(part, file, pickler)
        packed.stream = file.getvalue()
        return packed

    def _roll_back(self, part: _Part, file: io.BytesIO, pickler: Any) -> None:
        """As if `part` had never been begun: what comes later must not refer to what it holds."""
        file.seek(part.start)
        file.truncate()
        del self.buffers[part.buffer :]
        for key in list(pickler.memo)[part.memo :]:
            del pickler.memo[key]
        pickler._postproc.clear()

    def unpack(self, begin: Callable[[str], None]) -> Iterator[tuple[str, Any, Exception | None]]:
        """Each variable's name with its value, or with the error that kept it from being rebuilt.

        Args:
            begin: is told the name of each before it is rebuilt.
        """
        unpickler = Unpickler(io.BytesIO(self.stream), buffers=self.buffers)
        spoiled: dict[int, Any] = {}  # by number in the memo: the unpickler fails where it is referred to
        for index, part in enumerate(self.parts):
            begin(part.name)
            try:
                value = unpickler.load()
            except Exception:  # a missing module, a user's __setstate__, a reference to what is spoiled
                known = {number: thing for number, thing in unpickler.memo.copy().items() if number < part.memo}
                salvager = Salvager(io.BytesIO(self.stream[part.start :]), self.buffers[part.buffer :], known | spoiled)
                value = salvager.load()
                spoiled = {number: thing for number, thing in salvager.memo.items() if isinstance(thing, Spoiled)}
                whole = {number: thing for number, thing in salvager.memo.items() if number not in spoiled}
                unpickler = self._unpickler_after(index, whole)
            yield (part.name, None, value.error) if isinstance(value, Spoiled) else (part.name, value, None)

    def _unpickler_after(self, index: int, memo: Mapping[int, Any]) -> Any:
        """It gets the memo by a pickle before the others: to set it has no effect, in CPython."""
        start, buffer = len(self.stream), len(self.buffers)
        if index + 1 < len(self.parts):
            start, buffer = self.parts[index + 1].start, self.parts[index + 1].buffer
        puts = b"".join(pickle.NEXT_BUFFER + _put(number) + pickle.POP for number in memo)
        file = io.BytesIO(puts + pickle.NONE + pickle.STOP + self.stream[start:])
        unpickler = Unpickler(file, buffers=[*memo.values(), *self.buffers[buffer:]])
        unpickler.load()
        return unpickler


def _put(number: int) -> bytes:
    return _LONG_PUT.pack(pickle.LONG_BINPUT, number)


class _Pickler(Pickler):
    """Numbers what it remembers explicitly, so that a part of the stream can be left out in reading."""

    def put(self, idx: int) -> bytes:
        return _put(idx)


def write_luggage(file: BinaryIO, settings: Settings, specs: Sequence[WorkerSpec], variables: Variables) -> None:
    """Put everything into a file, which is empty."""
    views = [buffer.raw() for buffer in variables.buffers]
    head = pickle.dumps((settings, tuple(specs), variables.stream, variables.parts, [view.nbytes for view in views]))
    file.write(_SIZE.pack(len(head)) + head)
    for view in views:
        file.seek(_aligned(file.tell()))
        file.write(view)
    file.truncate(max(file.tell(), 1))
    file.flush()


def read_luggage(fd: int) -> tuple[Settings, tuple[WorkerSpec, ...], Variables]:
    """What `write_luggage` put there. The buffers are this process's own: writing to them changes no other rank."""
    mapped = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    (size,) = _SIZE.unpack(mapped[: _SIZE.size])
    end = _SIZE.size + size
    settings, specs, stream, parts, lengths = pickle.loads(mapped[_SIZE.size : end])
    buffers = []
    for length in lengths:
        start = _aligned(end)
        end = start + length
        buffers.append(mapped[start:end])
    return settings, specs, Variables(stream, buffers, parts)


def anonymous_file() -> BinaryIO:
    """A file that has no name, in shared memory where the system offers that."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("nbsync-luggage"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def spoken(name: str) -> str:
    """A variable as the user knows it."""
    return "the function or its arguments" if name == CALL else repr(name)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNED) * _ALIGNED


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
