"""A real Jupyter kernel, driven from outside as a front end drives it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

CELL_LIMIT = 120.0  # seconds after which a cell counts as hung


class CellFailed(Exception):
    """A cell did not end the way the benchmark needs it to."""


@dataclass
class Cell:
    """What came of a cell.

    Attributes:
        seconds: from sending the request until both the reply and the idle message were here.
        status: "ok" or "error".
        stdout: everything the cell wrote there.
        error: name and text of the exception, if it raised.
    """

    seconds: float = 0.0
    status: str = ""
    stdout: str = ""
    error: str = ""
    _pieces: list[str] = field(default_factory=list)

    def take(self, message: dict[str, Any]) -> None:
        """Take one message of the output channel."""
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            self._pieces.append(content["text"])
        elif message["msg_type"] == "error":
            self.error = f"{content['ename']}: {content['evalue']}"

    def finish(self, seconds: float, status: str) -> None:
        """The cell has ended."""
        self.seconds, self.status, self.stdout = seconds, status, "".join(self._pieces)


class Kernel:
    """A context manager: a fresh kernel of this environment, ended on exit, by force if need be.

    Args:
        setup: cells to run first, e.g. the imports that make it warm.
        limit: seconds after which a cell counts as hung.
    """

    def __init__(self, *setup: str, limit: float = CELL_LIMIT) -> None:
        self._setup, self._limit = setup, limit
        self._manager = KernelManager(kernel_name="python3")
        self._client: BlockingKernelClient | None = None

    def __enter__(self) -> Kernel:
        self._manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._client = self._manager.client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=CELL_LIMIT)
            for code in self._setup:
                self.run(code)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(self, code: str, *, expected: str = "ok") -> Cell:
        """Run a cell.

        Raises:
            CellFailed: its status is not the `expected` one, or it did not end.
        """
        assert self._client is not None, "use the kernel as a context manager"
        cell = Cell()
        begin = time.perf_counter()
        try:
            reply = self._client.execute_interactive(
                code, timeout=self._limit, output_hook=cell.take, allow_stdin=False, stop_on_error=False
            )
        except TimeoutError as error:
            raise CellFailed(f"no end after {self._limit:.0f} s of {code!r}") from error
        cell.finish(time.perf_counter() - begin, reply["content"]["status"])
        if cell.status != expected:
            raise CellFailed(f"{code!r} ended with {cell.status}, not {expected}. {cell.error}")
        return cell

    def begin(self, code: str, shown: str) -> None:
        """Ask for a cell, and return when it has shown this."""
        assert self._client is not None, "use the kernel as a context manager"
        self._client.execute(code)
        while shown not in str(self._client.get_iopub_msg(timeout=self._limit)["content"].get("text")):
            pass

    @property
    def pid(self) -> int:
        """The kernel's process."""
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]

    def seconds(self, code: str) -> float:
        """Run a cell and return how long it took."""
        return self.run(code).seconds

    def _close(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
        self.shut_down()

    def shut_down(self) -> None:
        """The kernel's graceful end, as Jupyter asks for it; nothing where it has ended."""
        if self._manager.has_kernel:
            self._manager.shutdown_kernel()
