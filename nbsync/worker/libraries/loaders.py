"""DataLoaders that an interrupt cuts off, or that go while others wait for this rank: their processes end at once.

torch asks them to end and waits up to five seconds for each, since a batch may be under way. Nobody wants that batch.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.utils.data import _utils
from torch.utils.data import dataloader as torch_dataloader


def end_cut_loaders_at_once(is_cut: Callable[[], bool]) -> None:
    """Have the processes of a DataLoader killed when it goes while `is_cut()`; otherwise torch's way stays."""
    kind: Any = torch_dataloader._MultiProcessingDataLoaderIter
    _end_half_made(kind)
    original = kind._shutdown_workers

    def _shutdown_workers(loader: Any) -> None:
        if not hasattr(loader, "_shutdown"):  # cut off before it had anything, which torch does not expect
            return
        if not is_cut() or loader._shutdown or _utils.python_exit_status is not False:
            original(loader)
            return
        loader._shutdown = True
        _kill(loader)

    kind._shutdown_workers = _shutdown_workers


def _end_half_made(kind: Any) -> None:
    """A process that was started, but not noted yet when the interrupt came, would live as long as the rank."""
    original = kind.__init__

    def __init__(loader: Any, *args: Any, **kwargs: Any) -> None:
        before = set(multiprocessing.active_children())
        try:
            original(loader, *args, **kwargs)
        except KeyboardInterrupt:
            known = getattr(loader, "_workers", ())  # these go with it
            for process in set(multiprocessing.active_children()).difference(before, known):
                process.kill()
            raise

    kind.__init__ = __init__


def _kill(loader: Any) -> None:
    """Take no lock that a killed process may hold, as torch's events and queues do."""
    if loader._worker_pids_set:  # else torch raises that a worker was killed
        _utils.signal_handling._remove_worker_pids(id(loader))  # type: ignore[attr-defined]
        loader._worker_pids_set = False
    if hasattr(loader, "_pin_memory_thread"):
        loader._pin_memory_thread_done_event.set()  # it looks every few seconds, and holds nothing
    processes = getattr(loader, "_workers", [])
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
        for left in glob.glob(f"/dev/shm/torch_{process.pid}_*"):  # one that it had made, and not yet unlinked
            with suppress(FileNotFoundError):
                os.unlink(left)
    for queue in [*getattr(loader, "_index_queues", []), loader._worker_result_queue]:
        queue.cancel_join_thread()
        queue.close()
