"""The sockets of this process, and how one is shut down under the library that uses it."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import stat
import struct
import sys
import termios
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from typing import NamedTuple

_INFO_SIZE, _ACKNOWLEDGED_AND_RECEIVED = 136, 120  # bytes of what Linux tells of a connection, and where these are

Socket = tuple[int, int]  # descriptor and inode: a descriptor alone may come to mean another socket


def open_sockets() -> set[Socket]:
    """All sockets of this process."""
    found = set()
    for name in descriptors():
        try:
            status = os.fstat(int(name))
        except OSError:  # closed meanwhile, as the descriptor of this very listing is
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.add((int(name), status.st_ino))
    return found


def descriptors() -> Iterable[str]:
    """Of this process, or at least all that there may be."""
    try:
        return os.listdir("/proc/self/fd")
    except OSError:  # no descriptor is left to read it with
        return map(str, range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def connected_sockets(besides: Set[Socket] = frozenset(), peer_port: int | None = None) -> set[Socket]:
    """The connected TCP sockets `besides` these, or only those whose other end has the given port."""
    return {sock for sock in open_sockets() - besides if _is_connected(sock, peer_port)}


def shut_down(sock: Socket, how: int = socket.SHUT_RDWR) -> None:
    """End the connection, or one direction of it, unless the descriptor has come to mean something else."""
    fd, inode = sock
    try:
        if os.fstat(fd).st_ino == inode:
            with _borrowed(fd) as borrowed:
                borrowed.shutdown(how)
    except OSError:  # closed, or the peer went first
        return


def put_in_place(old: Socket, new: Socket) -> None:
    """Let the descriptor of `old` mean what that of `new` does, unless it has come to mean something else."""
    with suppress(OSError):  # closed
        if os.fstat(old[0]).st_ino == old[1]:
            os.dup2(new[0], old[0], inheritable=False)


class Flow(NamedTuple):
    """How many bytes have come and gone through each of the open connections, and how many in all are on their way."""

    moved: Mapping[Socket, int]
    underway: int

    def since(self, before: Flow) -> int:
        """How many bytes have come and gone since then through those that are open still."""
        return sum(bytes_now - before.moved.get(sock, bytes_now) for sock, bytes_now in self.moved.items())


def flow(sockets: Set[Socket]) -> Flow:
    """What flows through those of the connections that are open."""
    moved, underway = {}, 0
    for fd, inode in sockets:
        with suppress(OSError):  # closed
            if os.fstat(fd).st_ino == inode:
                with _borrowed(fd) as borrowed:
                    info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
                moved[fd, inode] = sum(struct.unpack_from("QQ", info, _ACKNOWLEDGED_AND_RECEIVED))
                underway += sum(_queued(fd, which) for which in (termios.FIONREAD, termios.TIOCOUTQ))
    return Flow(moved, underway)


def _queued(fd: int, which: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, which, bytes(4)), sys.byteorder)


def _is_connected(sock: Socket, peer_port: int | None) -> bool:
    try:
        with _borrowed(sock[0]) as borrowed:
            peer = borrowed.getpeername()
    except OSError:
        return False
    return isinstance(peer, tuple) and (peer_port is None or peer[1] == peer_port)


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object on a descriptor that stays its owner's."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()
