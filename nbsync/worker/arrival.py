"""How a fresh process becomes like the notebook: a worker that was not forked from it unpacks what it was sent."""

from __future__ import annotations

import linecache
import os
import socket
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nbsync.protocol import side
from nbsync.protocol.channel import piece_of
from nbsync.protocol.luggage import CALL, Settings, Variables, read_luggage, spoken
from nbsync.protocol.messages import Arriving
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call, WorkerSpec
from nbsync.worker.shell import make_shell

_missing: dict[str, str] = {}  # variables of the notebook that are not here, and why


@dataclass
class Arrived:
    """What a fresh process was sent.

    Attributes:
        inherited: the function that a launch carries along.
        common: what it now has in common with the notebook.
        complaints: lines for the user on what could not be rebuilt.
    """

    settings: Settings
    specs: tuple[WorkerSpec, ...]
    inherited: Call | None = None
    common: Common = field(default_factory=Common)
    complaints: list[str] = field(default_factory=list)


def make_main_module() -> Any:
    """An empty `__main__` in the place of this program's own, and an IPython shell on it."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    dill: Any = import_module("dill._dill")
    dill._main_module = main  # looked up when dill was imported
    return make_shell(main)


def look_up(fd: int) -> tuple[Settings, tuple[WorkerSpec, ...], Variables]:
    """Read the luggage, and take over the notebook's environment, which importing and unpickling may depend on."""
    settings, specs, variables = read_luggage(fd)
    os.environ.clear()
    os.environ.update(settings.environ)
    os.chdir(settings.folder)
    sys.path[:] = settings.path
    sys.argv[:] = settings.argv
    side.become_worker()
    return settings, specs, variables


def unpack_all(
    shell: Any, settings: Settings, specs: tuple[WorkerSpec, ...], variables: Variables, tell: Callable[[str], None]
) -> Arrived:
    """Rebuild the notebook's variables in this process.

    Args:
        tell: is told each step as it begins: the user's code may take long in it, or for ever.
    """
    arrived = Arrived(settings, specs)
    _missing.update({name: f"{kind} that cannot be sent between processes" for name, kind in settings.missing.items()})
    _configure(shell, settings, arrived, tell)
    for name, value, error in variables.unpack(lambda name: tell(f"rebuilding {spoken(name)}")):
        if error is not None:
            why = f"{type(error).__name__}: {error}"
            _missing[name] = f"value that could not be rebuilt on the rank ({why})"
            arrived.complaints.append(f"{spoken(name)} could not be rebuilt on the ranks: {why}")
        elif name == CALL:
            arrived.inherited = value
        else:
            shell.user_ns[name] = value
    objects = {name: shell.user_ns[name] for name in settings.known if name in shell.user_ns}
    arrived.common = Common(objects)
    tell("setting up")
    return arrived


def tell_on(sock: socket.socket) -> Callable[[str], None]:
    """Tells the steps to who waits for this worker, on its channel's socket before there is the channel.

    It may block, until the notebook reads it.
    """
    return lambda step: sock.sendall(piece_of(Arriving(step)))


def explain_missing(error: BaseException) -> None:
    """Have a NameError say so where the name is the notebook's and could not come along."""
    if not isinstance(error, NameError) or error.name not in _missing:
        return
    error.args = (
        f"name {error.name!r} is not on this rank: in the notebook it is a {_missing[error.name]}. "
        "Make it in a distributed cell",
    )


def _configure(shell: Any, settings: Settings, arrived: Arrived, tell: Callable[[str], None]) -> None:
    """The shell's traits, its extensions, and the sources of the notebook's cells."""
    for trait, value in settings.shell.items():
        setattr(shell, trait, value)
    _know_cells(shell, settings.cells)
    for extension in settings.extensions:
        tell(f"repeating %load_ext {extension}")
        try:
            shell.extension_manager.load_extension(extension)
        except Exception as error:  # an extension may raise anything, and a cell may do without it
            arrived.complaints.append(f"%load_ext {extension} failed on the ranks: {type(error).__name__}: {error}")


def _know_cells(shell: Any, cells: Mapping[str, tuple[int, Any]]) -> None:
    for filename, (number, lines) in cells.items():
        shell.compile._filename_map[filename] = number
        linecache.cache[filename] = (sum(map(len, lines)), None, list(lines), filename)
