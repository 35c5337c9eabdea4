"""DataLoaders that an interrupt cuts off: their processes end at once.

torch asks them to end and waits up to five seconds for each, since a batch may be under way. Nobody wants that batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import _utils
from torch.utils.data import dataloader as torch_dataloader


def end_cut_loaders_at_once(is_cut: Callable[[], bool]) -> None:
    """Have the processes of a DataLoader killed when it goes while `is_cut()`; otherwise torch's way stays."""
    kind: Any = torch_dataloader._MultiProcessingDataLoaderIter
    original = kind._shutdown_workers

    def _shutdown_workers(loader: Any) -> None:
        if not is_cut() or getattr(loader, "_shutdown", True) or _utils.python_exit_status is not False:
            original(loader)
            return
        loader._shutdown = True
        _kill(loader)

    kind._shutdown_workers = _shutdown_workers


def _kill(loader: Any) -> None:
    """Take no lock that a killed process may hold, as torch's events and queues do."""
    if loader._worker_pids_set:  # else torch raises that a worker was killed
        _utils.signal_handling._remove_worker_pids(id(loader))  # type: ignore[attr-defined]
        loader._worker_pids_set = False
    if hasattr(loader, "_pin_memory_thread"):
        loader._pin_memory_thread_done_event.set()  # it looks every few seconds, and holds nothing
    for process in loader._workers:
        process.kill()
    for process in loader._workers:
        process.join()
    for queue in [*loader._index_queues, loader._worker_result_queue]:
        queue.cancel_join_thread()
        queue.close()
