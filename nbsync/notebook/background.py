"""A cell that goes on while the notebook is used: its output still goes to the cell that started it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nbsync.errors import NbsyncError
from nbsync.kernel.output.sink import Sink
from nbsync.notebook.outlet import NotebookSink


def run_in_background(shell: Any, job: Callable[[Sink], None]) -> threading.Thread:
    """Run `job` in a thread whose output belongs to the current cell. Its error is printed there."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else None

    def run() -> None:
        if parent is not None and hasattr(shell, "set_thread_parent"):
            shell.set_thread_parent(parent)
        sink = NotebookSink()
        try:
            job(sink)
        except (NbsyncError, KeyboardInterrupt) as error:
            render = getattr(error, "_render_traceback_", None)
            lines = render() if render else [f"{type(error).__name__}: {error}"]
            sink.text("stderr", "\n".join(lines) + "\n")

    thread = threading.Thread(target=run, name="nbsync-background", daemon=True)
    thread.start()
    return thread
