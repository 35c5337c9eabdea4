"""The event loops of this process, and what they are told of connections that have ended.

An event loop is an epoll descriptor here. It is told of an ended connection again and again, until its owner has closed
that; an owner that does not would take a whole processor for nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import stat
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from nbsync.worker.groups.sockets import Socket, descriptors, shut_down

_MODIFY = 3  # EPOLL_CTL_MOD
_ONLY_CHANGES = 1 << 31  # EPOLLET
_ENTRY = re.compile(r"tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+) .*ino:([0-9a-f]+)")


class _Event(ctypes.Structure):
    _pack_ = 1 if platform.machine() == "x86_64" else 0
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


def end_connections(sockets: Set[Socket]) -> None:
    """Shut them down, and have the loops be told of it once.

    Nothing goes out any more when the first operation learns that it has failed, and frees its memory: torch frees some
    of it before gloo stops to send from there, and gloo ends the process when the system refuses that.
    """
    for how in (socket.SHUT_WR, socket.SHUT_RD):
        for sock in sockets:
            shut_down(sock, how)
    tell_once(sockets)


def tell_once(sockets: Set[Socket]) -> None:
    """Have the loops be told of what happened to these sockets once more, and then of changes only.

    The processes that this one was forked from share their loops with it, so sockets are known by their inodes, too.
    """
    epoll_ctl = ctypes.CDLL(None).epoll_ctl
    for loop in filter(is_event_loop, map(int, descriptors())):
        with suppress(OSError):  # closed meanwhile
            for fd, events, data, inode in _ENTRY.findall(Path(f"/proc/self/fdinfo/{loop}").read_text()):
                if (int(fd), int(inode, 16)) in sockets and not int(events, 16) & _ONLY_CHANGES:
                    event = _Event(int(events, 16) | _ONLY_CHANGES, int(data, 16))
                    epoll_ctl(loop, _MODIFY, int(fd), ctypes.byref(event))  # fails if it was closed meanwhile


def is_event_loop(fd: int) -> bool:
    """Whether this is the descriptor of an event loop."""
    with suppress(OSError, OverflowError):  # not open
        return not stat.S_IFMT(os.fstat(fd).st_mode) and os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]"
    return False
