"""The requests for a worker's main thread, which waits for them between the cells."""

from __future__ import annotations

import queue
import sys
import traceback
from typing import Any

from nbsync.protocol.userlines import keep_users_lines


class Inbox:
    """Gives the requests in order. What a handler of the user's raises meanwhile is shown, and goes no further."""

    def __init__(self) -> None:
        self._arriving: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._arrived: list[Any] = []

    def put(self, request: Any) -> None:
        self._arriving.put(request)

    def get(self) -> Any:
        """The next request, as soon as there is one."""
        while not self._arrived:
            try:  # one call of C: a handler that raised between a `get` and the line's end would lose the request
                self._arrived.extend(map(self._arriving.get, (True,)))
            except BaseException as error:  # whatever the user's code raises
                keep_users_lines(error)
                print("nbsync: between two cells, the handler of a signal raised", file=sys.stderr)
                traceback.print_exception(error)
        request = self._arrived[0]
        del self._arrived[0]
        return request
