"""Lightning inside a worker: `strategy="ddp"` works as under torchrun, although the notebook is interactive.

A worker is started from outside and has nobody at its prompt. But it inherits `sys.ps1`, by which Lightning knows a
prompt, and where it finds one it refuses every strategy that needs several processes, also those that are there.
"""

from __future__ import annotations

import sys
from contextlib import suppress

_PACKAGES = ("lightning", "lightning_fabric", "pytorch_lightning")
_FLAG = "_IS_INTERACTIVE"


def leave_the_prompt() -> None:
    """Let Lightning see a process without a prompt, whether it is imported already or will be."""
    for name in ("ps1", "ps2", "ps3"):
        with suppress(AttributeError):
            delattr(sys, name)
    if sys.modules.keys().isdisjoint(_PACKAGES):  # the loop touches, and so copies, the memory of all modules
        return
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and _FLAG in getattr(module, "__dict__", ()):
            setattr(module, _FLAG, False)
