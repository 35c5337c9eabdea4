"""Where this process stands in the world, as a launcher left it in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbsync.errors import UsageError

_LAST_PORT = 65535


@dataclass(frozen=True)
class WorldInfo:
    """What the torchrun variables say; without any of them, a world of one.

    Attributes:
        rank: this process among all processes.
        size: number of processes.
        local_rank: this process among those of its node.
        local_size: number of processes on its node.
        master_addr: host of the rendezvous, or None.
        master_port: port of the rendezvous, or None.
        elastic: whether torchrun, or a launcher that speaks like it, started this process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    master_addr: str | None = None
    master_port: int | None = None
    elastic: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, rank: int | None = None, size: int | None = None) -> WorldInfo:
        """Read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

        Args:
            environ: the variables, e.g. `os.environ`. Without the LOCAL ones, all processes are on one node.
            rank: the rank when it is known better, from a process group; RANK is then not looked at.
            size: the same for WORLD_SIZE.

        Raises:
            UsageError: a variable is missing, not a number or out of range.
        """
        size = _number(environ, "WORLD_SIZE", 1, low=1) if size is None else size
        local_size = _number(environ, "LOCAL_WORLD_SIZE", size, low=1)
        if rank is None:
            if size > 1 and not environ.get("RANK"):
                raise UsageError(f"WORLD_SIZE is {size} but RANK is not set: each process needs its own rank")
            rank = _number(environ, "RANK", 0, high=size - 1)
        local_rank = _number(environ, "LOCAL_RANK", rank % local_size, high=local_size - 1)
        port = _number(environ, "MASTER_PORT", -1, low=0, high=_LAST_PORT)
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            master_addr=environ.get("MASTER_ADDR") or None,
            master_port=None if port < 0 else port,
            elastic="TORCHELASTIC_RUN_ID" in environ,
        )

    @property
    def node(self) -> range:
        """The ranks on this process's node: consecutive, as torchrun numbers them."""
        first = max(0, self.rank - self.local_rank)
        return range(first, min(first + self.local_size, self.size))

    def require_master(self) -> None:
        """Raise a UsageError unless it is known where the processes meet."""
        if self.master_addr is None or self.master_port is None:
            raise UsageError(
                f"WORLD_SIZE is {self.size} but MASTER_ADDR and MASTER_PORT are not both set: "
                "start the processes with nbsync or torchrun, or call dist.init_process_group yourself"
            )


def _number(environ: Mapping[str, str], name: str, default: int, *, low: int = 0, high: int | None = None) -> int:
    """The variable as a number from `low` to `high`; `default`, unchecked, when it is not set or empty."""
    text = environ.get(name)
    if not text:
        return default
    expected = f"a number from {low} to {high}" if high is not None else f"a number, {low} or more"
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r} in the environment: expected {expected}") from None
    if number < low or (high is not None and number > high):
        raise UsageError(f"{name} is {number} in the environment: expected {expected}")
    return number
