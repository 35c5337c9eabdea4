"""Who initialised the accelerator in this kernel, so that no forked worker can use it: noted when it happens.

torch calls whoever asked for it (`torch.cuda._lazy_call`) at the moment at which it initialises the runtime: the
stack then names the cell and line, or the import. Nothing is patched, and torch is not imported for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any

from nbsync.protocol.cells import code_name, describe_file

RUNTIMES = {"torch.cuda": "CUDA", "torch.xpu": "XPU"}

_places: dict[str, str] = {}  # by runtime: where it was initialised
_watched: set[str] = set()
_pid = 0


def watch() -> None:
    """From now on note who initialises CUDA or XPU. Idempotent; light, and torch is not imported."""
    global _pid
    _pid = os.getpid()
    for name in RUNTIMES:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "_lazy_call"):
            _watch(module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def initialised() -> dict[str, str]:
    """The runtimes that are initialised in this kernel, and by whom: "in Cell In[3], line 2"."""
    found = {}
    for name, runtime in RUNTIMES.items():
        module = sys.modules.get(name)
        if module is not None and module.is_initialized():
            found[runtime] = _places.setdefault(runtime, _noticed())
    return found


def _watch(module: Any) -> None:
    runtime = RUNTIMES[module.__name__]
    if module.__name__ in _watched:
        return
    _watched.add(module.__name__)
    if module.is_initialized():
        _places[runtime] = _noticed()
    else:
        module._lazy_call(partial(_note, runtime))


def _note(runtime: str) -> None:
    """Called by torch in the thread that initialises the runtime."""
    if os.getpid() == _pid:  # not a worker, which may do so
        _places[runtime] = _describe(_stack())


def _noticed() -> str:
    place = _describe(_stack())
    return f"earlier than nbsync looked; it was noticed {place}" if place else "earlier than nbsync looked"


def _describe(stack: Sequence[tuple[str, int, str, str]]) -> str:
    """The user's line, and the import that it made, if it was one: "by the import of x in Cell In[3], line 2"."""
    stack = [frame for frame in stack if not frame[2].startswith("nbsync.")]
    mine = [index for index, (filename, *_) in enumerate(stack) if _spoken(filename)]
    if not mine:
        modules = [module for _, _, module, function in stack if function == "<module>" and not _is_no_import(module)]
        return f"by the import of {modules[-1]}" if modules else ""
    filename, line, _, _ = stack[mine[-1]]
    imported = [module for _, _, module, function in stack[mine[-1] + 1 :] if function == "<module>"]
    by = f"by the import of {imported[0]} " if imported and not _is_no_import(imported[0]) else ""
    return f"{by}in {_spoken(filename)}, line {line}"


def _stack() -> list[tuple[str, int, str, str]]:
    """File name, line, module and function of this thread's frames, outermost first."""
    return list(_frames(sys._getframe(1)))[::-1]


def _frames(frame: FrameType | None) -> Iterator[tuple[str, int, str, str]]:
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        yield frame.f_code.co_filename, frame.f_lineno or 0, str(module), frame.f_code.co_name
        frame = frame.f_back


def _spoken(filename: str) -> str:
    """The file as the user knows it, when it is the notebook's or the user's own; "" for a library's."""
    folder = os.path.join(os.getcwd(), "")
    is_mine = code_name(filename) or (filename.startswith(folder) and "site-packages" not in filename)
    return describe_file(filename) if is_mine else ""


def _is_no_import(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "__main__", "runpy", "ipykernel_launcher")


class _Finder:
    """Waits for torch's modules to be imported; everybody else's import goes past it.

    It is no subclass of the abstract one, which takes longer to import than `%load_ext nbsync` may.
    """

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname not in RUNTIMES or fullname in _watched:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


class _Loader:
    """Loads a module as `inner` does, then has it watched."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _watch(module)
