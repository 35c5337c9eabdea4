"""Keeps this process when an event loop of gloo throws what nobody catches, for which C++ would end it.

Gloo does so when a message is longer than the receiver expects: the ranks are in different operations, or have other
shapes or types (before `send`, `recv` and what does not block nobody compares that). And torch frees the memory of a
failed `all_gather` before gloo is told to send no more of it: when a peer asks for some in that moment, the system
refuses to read there.

Before it ends the process C++ asks a handler, in the loop's thread, with all that gloo was about on the stack. Such a
handler must not return. This one ends the one connection as gloo ends those that fail otherwise, lets go of what the
stack holds, and gives the loop another thread. Its own thread ends there; what it leaves is its stack, about 0.2 MB.
Where the handler cannot find its way, the process ends as it would have.
"""

from __future__ import annotations

import ctypes
import platform
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from nbsync.worker.groups.buffers import gloo_buffers
from nbsync.worker.groups.events import is_event_loop
from nbsync.worker.groups.native import WORD, Memory, cpp_library, methods_of, own_memory, torch_library, words
from nbsync.worker.groups.tasks import LOOP, is_named

MISMATCH = "the ranks are not in the same operation, or not with the same shapes and types"
_TOP = 1 << 16  # bytes of the stack, from its beginning, in which the loop's own frames are
_LARGEST = 1024  # bytes of a connection in which its lock is
_LOOP_SIZE, _LOOP_FD = 256, 16  # bytes of a loop in which its thread is named, and where its epoll descriptor is
_INT = (1 << 32) - 1
_ONE_HOLDS = 1 << 32  # the second word of a lock: above its holder's number, how many hold it
_MANY = 1 << 16  # references to one buffer
_HEAD, _CLASS = 112, 80  # bytes in front of an exception that was thrown, and where among them is of what kind it is
_WHAT = 2  # index of `what` among an exception's methods
_TOO_LONG = re.compile(r"length <= op\.nbytes\. (\d+) vs (\d+)")
_EXIT = {"x86_64": 60}  # the system call that ends a thread
_PAIR = "_ZTVN4gloo9transport3tcp4PairE"
_END = "_ZN4gloo9transport3tcp4Pair23signalExceptionExternalERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
_RUN = "_ZN4gloo9transport3tcp4Loop3runEv"
_ADD = "_ZN9__gnu_cxx18__exchange_and_addEPVii"
_Handler = ctypes.CFUNCTYPE(None)


class Uncaught:
    """What gloo's event loops have thrown in this process.

    Attributes:
        count: how often, since the groups were healed.
        tell: is called each time.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tell: Callable[[], None] = lambda: None
        self._handler: Callable[[], None] | None = None  # C++ holds no reference
        self._before: Callable[[], None] = lambda: None

    def install(self) -> None:
        """From now on, outlive it."""
        try:
            set_terminate = cpp_library()["_ZSt13set_terminatePFvvE"]
            self._handler = _Handler(self._handle)
        except (OSError, AttributeError, MemoryError):  # torch was built with another library, or there is no room
            return
        set_terminate.restype = _Handler
        self._before = set_terminate(self._handler)

    def _handle(self) -> None:
        """In the thread of which C++ says that it must end: go on for it, or return, which ends the process."""
        try:
            if not is_named(Path(f"/proc/self/task/{threading.get_native_id()}"), LOOP):
                raise LookupError("this is no event loop")
            with own_memory() as memory:
                scene = _Scene(memory, _thrown(memory))
                self.count += 1  # before anybody can see that an operation has failed
                scene.end_connection()
        except (OSError, AttributeError, ValueError, LookupError):  # another build of torch, or another system
            self._before()
            return
        self.tell()
        scene.go_on()
        self._before()  # there is no room for another thread


class _Scene:
    """What the thread was about, as its stack shows.

    Raises:
        LookupError, OSError, AttributeError, ValueError: it does not show that.
    """

    def __init__(self, memory: Memory, thrown: str) -> None:
        self._memory = memory
        self._exit = _EXIT[platform.machine()]  # elsewhere C++ calls functions in ways that Python cannot
        self._torch, self._libc = torch_library("torch_cpu"), ctypes.CDLL(None)
        self._myself = threading.get_ident()  # as the system's threads are known to each other
        stack = self._stack()
        self._text, self._held = f"Connection closed by peer, after: {thrown}", list[tuple[int, int]]()
        if too_long := _TOO_LONG.search(thrown):
            self._text = "{} bytes came where {} are expected: {}".format(*too_long.groups(), MISMATCH)
            self._held = [self._buffer_held(stack)]
        self._loop = _first(word for word in stack if self._threads(word))
        (self._thread,) = self._threads(self._loop)
        pair = methods_of(self._torch, _PAIR)
        self._connection = _first(word for word in stack if self._is(word, pair) and self._locks(word))
        (self._lock,) = self._locks(self._connection)

    def end_connection(self) -> None:
        """As gloo does when it sees an error: who uses the connection gets an exception to raise."""
        said, (_, tell) = _String(self._text), gloo_buffers()
        for buffer, references in self._held:
            tell(buffer, self._text.encode())  # gloo has taken it off the list of those that it would tell
            cpp_library()[_ADD](ctypes.c_void_p(references + WORD), -1)  # else its operation would wait for this stack
        self._libc.pthread_mutex_unlock(ctypes.c_void_p(self._lock))
        self._torch[_END](ctypes.byref(ctypes.c_void_p()), ctypes.c_void_p(self._connection), ctypes.byref(said))

    def go_on(self) -> None:
        """Let another thread be the event loop's, which waits for its end, and end this one. Returns if there is none.

        A call of the loop from here would not do: what it throws would be caught, by those who called the handler.
        """
        thread, loop = ctypes.c_void_p(self._thread), ctypes.c_void_p(self._loop)
        if self._libc.pthread_create(thread, None, self._torch[_RUN], loop) == 0:
            self._libc.syscall(self._exit, 0)

    def _buffer_held(self, stack: list[int]) -> tuple[int, int]:
        """The buffer of the message that came, and where references to it are counted, of which the stack holds one.

        It may be the last one: whoever drops the operation waits until it is given back.
        """
        table, _ = gloo_buffers()
        for counter, buffer in pairwise(stack):  # read downwards: the counter lies above the pointer
            if self._is(buffer, table) and self._counts(counter):
                return buffer, counter
        raise LookupError("it is not on the stack")

    def _stack(self) -> list[int]:
        """The first words of this thread's stack, downwards from its beginning."""
        attributes, bottom, size = ctypes.create_string_buffer(256), ctypes.c_void_p(), ctypes.c_size_t()
        self._libc.pthread_getattr_np(ctypes.c_void_p(self._myself), attributes)
        self._libc.pthread_attr_getstack(attributes, ctypes.byref(bottom), ctypes.byref(size))
        self._libc.pthread_attr_destroy(attributes)
        return list(words(self._memory, (bottom.value or 0) + size.value - _TOP, _TOP)[::-1])

    def _at(self, address: int, size: int = WORD) -> tuple[int, ...]:
        if address % WORD == 0 and address:
            with suppress(OSError, OverflowError):
                return words(self._memory, address, size)
        return ()

    def _is(self, address: int, table: int) -> bool:
        """Whether an object of the class with this table of methods begins there."""
        return self._at(address) == (table,)

    def _threads(self, address: int) -> list[int]:
        """Where the loop that begins there, which also knows its descriptor, has noted that this is its thread."""
        fields = self._at(address, _LOOP_SIZE)
        if len(fields) < _LOOP_SIZE // WORD or not is_event_loop(fields[_LOOP_FD // WORD] & _INT):
            return []
        return [each for each in fields if self._at(each) == (self._myself,)][:1]

    def _locks(self, address: int) -> list[int]:
        """The locks in the object that begins there which this thread holds."""
        thread, fields = threading.get_native_id(), self._at(address, _LARGEST)
        held = ((state, _ONE_HOLDS | thread) for state in (1, 2))
        return [address + WORD * i for pair in held for i in range(len(fields) - 1) if fields[i : i + 2] == pair]

    def _counts(self, address: int) -> bool:
        """Whether references are counted there, strong ones and weak ones."""
        fields = self._at(address, 2 * WORD)
        return len(fields) == 2 and 0 < fields[1] & _INT < _MANY and 0 < fields[1] >> 32 < _MANY


class _String(ctypes.Structure):
    """C++'s."""

    _fields_ = (("text", ctypes.c_char_p), ("size", ctypes.c_size_t), ("room", ctypes.c_size_t * 2))

    def __init__(self, text: str) -> None:
        encoded = text.encode()
        super().__init__(encoded, len(encoded))


def _first(found: Iterator[int]) -> int:
    for each in found:
        return each
    raise LookupError("it is not on the stack")


def _thrown(memory: Memory) -> str:
    """What the exception that this thread handles says of itself."""
    get_globals = cpp_library()["__cxa_get_globals"]
    get_globals.restype = ctypes.c_void_p
    (head,) = words(memory, get_globals(), WORD)
    fields = words(memory, head, _HEAD)
    thrown = fields[0] if fields[_CLASS // WORD] & 0xFF else head + _HEAD  # of one thrown again, the head tells where
    (methods,) = words(memory, thrown, WORD)
    (what,) = words(memory, methods + _WHAT * WORD, WORD)
    said = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(what)(thrown)
    return bytes(said or b"").decode(errors="replace")
