"""The process group of a session stands from its start to its end, whatever the code in its cells was written for.

Programs for `torchrun` make the group in their first lines and destroy it in their last. In a cell the first is an
error that says what to write; the last does nothing, as `Accelerator.end_training` may call it far from the user's eye.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from nbsync.errors import UsageError

c10d: Any = distributed_c10d

_EXISTS = (
    "the process group exists already: nbsync made it when the workers started. Leave this line out, or write "
    "`if not dist.is_initialized(): dist.init_process_group(...)`, which is right everywhere. "
    "Another backend: `%nbsync stop`, then `%nbsync start --backend NAME`"
)
_STAYS = "the process group belongs to the session and stays: `%nbsync stop` ends it with the workers"


def keep_default_group(namespace: dict[str, Any]) -> None:
    """From now on nobody makes or destroys the default group of this process; other groups come and go as ever.

    Args:
        namespace: the user's variables, among which may be torch's functions under names of their own.
    """
    for original, replacement in (
        (c10d.init_process_group, _refuse(c10d.init_process_group)),
        (c10d.destroy_process_group, _spare(c10d.destroy_process_group)),
    ):
        setattr(c10d, original.__name__, replacement)
        setattr(dist, original.__name__, replacement)
        for name, value in list(namespace.items()):
            if value is original:
                namespace[name] = replacement


def _refuse(init_process_group: Any) -> Any:
    @functools.wraps(init_process_group)
    def init(*args: Any, **kwargs: Any) -> None:
        if dist.is_initialized():
            raise UsageError(_EXISTS)
        init_process_group(*args, **kwargs)

    return init


def _spare(destroy_process_group: Any) -> Any:
    @functools.wraps(destroy_process_group)
    def destroy(group: Any = None) -> None:
        if dist.is_initialized() and group in (None, dist.group.WORLD):
            print(_STAYS, file=sys.stderr)
        else:
            destroy_process_group(group)

    return destroy
