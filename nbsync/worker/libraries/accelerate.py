"""Accelerate inside a worker without a GPU: its `PartialState()` finds the world by itself.

Accelerate takes a world on CPU for one only when it is asked with `cpu=True`; `Accelerator()` reads ACCELERATE_USE_CPU
for that, but a bare `PartialState()` does not, and would see one process on every rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_MODULE = "accelerate.state"


def see_cpu_worlds() -> None:
    """Let `PartialState()` default to the CPU, whether Accelerate is imported already or will be."""
    loaded = sys.modules.get(_MODULE)
    if loaded is not None:
        _default_to_cpu(loaded)
    else:
        sys.meta_path.insert(0, _AfterImport())


def _default_to_cpu(module: ModuleType) -> None:
    original = module.PartialState.__init__

    def __init__(self: Any, cpu: bool = False, **kwargs: Any) -> None:
        original(self, True, **kwargs)

    __init__.__doc__ = original.__doc__
    module.PartialState.__init__ = __init__


class _AfterImport(MetaPathFinder):
    """Waits for the import of the module, and steps aside when it comes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _default_to_cpu(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
