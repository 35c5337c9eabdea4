"""Something to do as soon as a module is imported, or around its import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def after_import(name: str, do: Callable[[ModuleType], None]) -> None:
    """Call `do` with the module, now if it is imported already, else right after its import."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        do(loaded)
    else:
        sys.meta_path.insert(0, _AfterImport(name, do))


def import_whole(name: str, put_off: Callable[[], AbstractContextManager[None]]) -> None:
    """When the module is imported, put interrupts off: what is left of one that is cut off may never be mended."""
    if name not in sys.modules:
        sys.meta_path.insert(0, _AfterImport(name, lambda module: None, put_off))


class _AfterImport(MetaPathFinder):
    """Waits for the import of the module, and steps aside when it comes."""

    def __init__(
        self,
        name: str,
        do: Callable[[ModuleType], None],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._name, self._do, self._around = name, do, around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with self._around():
                    execute(module)
                    self._do(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
