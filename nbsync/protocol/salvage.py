"""Reads a pickle in which something cannot be rebuilt: what does not hold that thing is rebuilt all the same.

This is slower than the usual way, and is taken only where that has failed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import dill

_Load = Callable[[Any], None]
_ATOMS = (type(None), bool, int, float, complex, str, bytes)  # hold nothing, and may be one object in many places
_Unpickler: Any = pickle._Unpickler  # the one written in Python


@dataclass(eq=False)
class Spoiled:
    """Stands for an object that could not be rebuilt, or that holds such a one."""

    error: Exception


class Salvager(_Unpickler):  # type: ignore[misc]
    """An unpickler that goes on after an error. Its `load` gives the value, or `Spoiled`.

    Args:
        memo: what has been rebuilt before, by its number; what is rebuilt now is added.
    """

    dispatch: ClassVar[dict[int, _Load]] = dict(_Unpickler.dispatch)

    def __init__(self, file: io.BytesIO, buffers: Iterable[Any], memo: dict[int, Any]) -> None:
        super().__init__(file, buffers=buffers)
        self.memo = memo
        self.find_class = dill.Unpickler(io.BytesIO()).find_class
        # By id, with the thing itself, so that no other gets its id.
        self._holders: dict[int, tuple[Any, list[Any]]] = {}
        self._spoiled: dict[int, tuple[Any, Exception]] = {}
        self._meant_for: dict[int, Any] = {}  # calls that were not made: what they should have completed

    def load(self) -> Any:
        """As any unpickler's."""
        value = super().load()
        self.memo.update({number: self._stand_in(thing) for number, thing in self.memo.items()})
        return self._stand_in(value)

    def make(self, load: _Load, count: int | None, runs_code: bool) -> None:
        """Make an object of the last `count` on the stack, or of those since the mark."""
        parts, below, height = self._parts(count)
        error = self._error_in(parts)
        failure = error if error is not None and runs_code else self._try(load)
        if failure is not None:
            self._leave(below, height)
            self.append(Spoiled(failure))
        self._note(parts, self.stack[-1], error or failure)

    def call(self, load: _Load) -> None:
        """Make an object by a call. One that returns nothing is there to complete its first argument."""
        args = self.stack[-1]
        self.make(load, 2, True)
        result = self.stack[-1]
        if not (isinstance(args, tuple) and args):
            return
        if result is None:
            self._note([args], args[0], None)
        elif isinstance(result, Spoiled):
            self._meant_for[id(result)] = args[0]

    def fill(self, load: _Load, count: int | None) -> None:
        """Put the last `count` on the stack, or those since the mark, into the object below them."""
        parts, below, height = self._parts(count)
        target = below[height - 1]
        error = self._error_in([target, *parts]) or self._try(load)
        if error is not None:
            self._leave(below, height)
        self._note(parts, target, error)

    def pop(self, load: _Load) -> None:
        """Forget what a call returned."""
        result: Any = self.stack[-1] if self.stack else None
        if id(result) in self._meant_for:
            self._spoil(self._meant_for[id(result)], result.error)
        load(self)

    def _parts(self, count: int | None) -> tuple[list[Any], list[Any], int]:
        """What an operation takes from the stack, and the stack below, with its height."""
        if count is None:
            below = self.metastack[-1]
            return list(self.stack), below, len(below)
        height = len(self.stack) - count
        return self.stack[height:], self.stack, height

    def _leave(self, below: list[Any], height: int) -> None:
        """The stack as after an operation that was not done, or but half."""
        if self.stack is not below:
            self.pop_mark()
        del self.stack[height:]

    def _try(self, load: _Load) -> Exception | None:
        try:
            load(self)
        except Exception as error:  # a missing module, a user's __setstate__
            return error
        return None

    def _error_in(self, things: Iterable[Any]) -> Exception | None:
        return next((found.error for thing in things if isinstance(found := self._stand_in(thing), Spoiled)), None)

    def _stand_in(self, thing: Any) -> Any:
        spoiled = self._spoiled.get(id(thing))
        return thing if spoiled is None else Spoiled(spoiled[1])

    def _note(self, parts: Iterable[Any], holder: Any, error: Exception | None) -> None:
        """`holder` has these parts: it is spoiled with them, now or later."""
        if error is not None:
            self._spoil(holder, error)
            return
        for part in parts:
            if not isinstance(part, _ATOMS):
                self._holders.setdefault(id(part), (part, []))[1].append(holder)

    def _spoil(self, thing: Any, error: Exception) -> None:
        todo = [thing]
        while todo:
            thing = todo.pop()
            if id(thing) not in self._spoiled and not isinstance(thing, _ATOMS):
                self._spoiled[id(thing)] = thing, error
                todo += self._holders.get(id(thing), (thing, []))[1]


def _register(codes: Iterable[bytes], act: Callable[..., None], *args: Any) -> None:
    """Have the operations of these codes done by a method of `Salvager`."""
    for code in codes:
        Salvager.dispatch[code[0]] = _operation(_Unpickler.dispatch[code[0]], act, args)


def _operation(load: _Load, act: Callable[..., None], args: tuple[Any, ...]) -> _Load:
    return lambda salvager: act(salvager, load, *args)


_register([pickle.REDUCE], Salvager.call)
_register([pickle.POP], Salvager.pop)
_register([pickle.GLOBAL], Salvager.make, 0, True)
_register([pickle.NEWOBJ, pickle.STACK_GLOBAL], Salvager.make, 2, True)
_register([pickle.NEWOBJ_EX], Salvager.make, 3, True)
_register([pickle.TUPLE1], Salvager.make, 1, False)
_register([pickle.TUPLE2], Salvager.make, 2, False)
_register([pickle.TUPLE3], Salvager.make, 3, False)
_register([pickle.TUPLE, pickle.FROZENSET], Salvager.make, None, False)
_register([pickle.APPEND, pickle.BUILD], Salvager.fill, 1)
_register([pickle.SETITEM], Salvager.fill, 2)
_register([pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS], Salvager.fill, None)
