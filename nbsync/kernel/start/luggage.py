"""Packs the notebook for workers that are not forked from it."""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from nbsync.kernel.output.sink import make_sink, tell
from nbsync.protocol.cells import ipython_shell
from nbsync.protocol.luggage import CALL, Settings, Variables, write_luggage
from nbsync.protocol.serial import Common, pack_call
from nbsync.protocol.spec import Call, WorkerSpec

_TRAITS = ("colors", "ast_node_interactivity", "autoawait")
_NOT_USERS = re.compile(r"__\w+__|_+|_\d+|_i+|_i\d+|_[dio]h|In|Out|exit|quit|get_ipython")
_told: set[tuple[str, str]] = set()


def pack_notebook(file: BinaryIO, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common) -> None:
    """Put everything the workers need to become like this notebook into a file.

    What cannot be sent is told to the user, each variable once.

    Args:
        file: an empty one.
        inherited: a function for the workers, with its arguments.
        common: of what is in it, the workers know by name what could be sent; the rest is taken out.

    Raises:
        TransferError: the function or its arguments cannot be sent.
    """
    users = notebook_variables()
    values = {CALL: inherited} | users if inherited else users
    variables = Variables.pack(values)
    if inherited is not None and CALL in variables.missing:
        pack_call(*inherited, Common())  # raises, and names the part
        raise AssertionError("packed alone, and not with the others")
    common.forget(variables.missing)
    _tell_missing(variables.missing)
    settings = Settings(
        kernel_pid=os.getpid(),
        path=list(sys.path),
        folder=os.getcwd(),
        environ=dict(os.environ),
        argv=list(sys.argv),
        known=common.names,
        missing=variables.missing,
        **_of_shell(),
    )
    write_luggage(file, settings, specs, variables)


def notebook_variables() -> dict[str, Any]:
    """What the user has defined in the notebook, or in the script's main module."""
    hidden = getattr(ipython_shell(), "user_ns_hidden", {})
    return {
        name: value
        for name, value in dict(vars(sys.modules["__main__"])).items()  # a copy: the user's threads go on
        if not _NOT_USERS.fullmatch(name) and not (name in hidden and hidden[name] is value)
    }


def _of_shell() -> dict[str, Any]:
    """What the workers' shells have like the notebook's; nothing in a plain script."""
    shell = ipython_shell()
    if shell is None:
        return {}
    numbers: Mapping[str, int] = getattr(shell.compile, "_filename_map", {})
    cells = {name: (number, linecache.getlines(name)) for name, number in numbers.items()}
    return {
        "extensions": [name for name in shell.extension_manager.loaded if name != "storemagic"],
        "shell": {trait: getattr(shell, trait) for trait in _TRAITS if hasattr(shell, trait)},
        "cells": cells,
    }


def _tell_missing(missing: Mapping[str, str]) -> None:
    new = {pair for pair in missing.items() if pair not in _told and not pair[1].startswith("nbsync.")}
    if new:
        _told.update(new)
        what = ", ".join(f"{name} ({kind})" for name, kind in sorted(new))
        tell(make_sink(), f"not on the workers, since it cannot be sent between processes: {what}")
