"""What the notebook and its fork server say to each other: lengths, pickled messages, and descriptors beside them.

The server sends an `Answer` when it is ready. To a request its helper sends any number of `Arriving`, then an `Answer`;
when the helper has ended the server sends its exit status, as `waitpid` gives it.
"""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

COUNT = struct.Struct("!I")
APART = 1 << 31  # flag in the count of workers: each of them rebuilds the variables by itself


@dataclass(frozen=True)
class Answer:
    """What is told of a request: the workers' process ids, or why there are none.

    Attributes:
        pids: of the workers; with an error, of those that were forked before it and have ended again.
        errno: of the system's error, if it was one.
        spoiled: rebuilding the variables has initialised an accelerator, so no worker may be forked after it.
    """

    pids: tuple[int, ...] = ()
    problem: str = ""
    errno: int = 0
    spoiled: bool = False


def send(sock: socket.socket, what: Any) -> None:
    """Send an `Arriving`, an `Answer`, or the status with which a helper has ended."""
    data = pickle.dumps(what)
    sock.sendall(COUNT.pack(len(data)) + data)


def receive(sock: socket.socket) -> Any:
    """What `send` sent.

    Raises:
        EOFError: the other end is gone. TimeoutError: the socket's limit was reached.
    """
    (size,) = COUNT.unpack(read(sock, COUNT.size))
    return pickle.loads(read(sock, size))


def read(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes. Raises as `receive`."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("it has ended")
        data += piece
    return data
