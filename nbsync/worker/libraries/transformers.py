"""transformers inside a worker: the bars and tables of its `Trainer` are shown once.

In a terminal it shows them on the main process; in a notebook on every one, with the same numbers.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from nbsync.worker.libraries.imports import after_import

_MODULE = "transformers.utils.notebook"


def show_training_once(rank: int) -> None:
    """Leave that to rank 0, whether transformers is imported already or will be."""
    if rank:
        after_import(_MODULE, _show_nothing)


def _show_nothing(module: ModuleType) -> None:
    module.__dict__["disp"] = _Nowhere()  # `IPython.display`, as it is called there


class _Nowhere:
    """Takes what is displayed, and later changed."""

    def HTML(self, data: str) -> str:  # noqa: N802: as IPython has it
        return data

    def display(self, *shown: Any, **options: Any) -> _Nowhere:
        return self

    def update(self, shown: Any) -> None:
        return None
