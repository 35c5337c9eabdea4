"""What a rank writes among its output."""

from __future__ import annotations

import os
import threading

from nbsync.worker.streams import _insist


def test_a_pipe_that_does_not_block() -> None:
    """asyncio makes stdout such a one: who must write waits until somebody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    full = 0
    try:
        while True:
            full += os.write(write, b"x" * 4096)
    except BlockingIOError:
        pass
    writer = threading.Thread(target=_insist, args=(write, lambda: os.write(write, b"mark")))
    writer.start()
    seen = b""
    while len(seen) < full + 4:
        seen += os.read(read, 4096)
    writer.join(10)
    assert seen.endswith(b"mark")
    os.close(read)
    os.close(write)
