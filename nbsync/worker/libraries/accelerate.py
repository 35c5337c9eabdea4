"""Accelerate inside a worker without a GPU: its `PartialState()` finds the world by itself.

Accelerate takes a world on CPU for one only when it is asked with `cpu=True`; `Accelerator()` reads ACCELERATE_USE_CPU
for that, but a bare `PartialState()` does not, and would see one process on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbsync.worker.libraries.imports import after_import
from nbsync.worker.replacing import replace_function

_MODULE = "accelerate.state"


def see_cpu_worlds() -> None:
    """Let `PartialState()` default to the CPU, whether Accelerate is imported already or will be."""
    after_import(_MODULE, lambda module: replace_function(module.PartialState, "__init__", _on_cpu))


def _on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, cpu: bool = False, **kwargs: Any) -> None:
        original(self, True, **kwargs)

    return __init__
