"""Where the ranks meet: a TCPStore in the kernel, on a loopback port that is bound before anybody is told of it."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nbsync.errors import StartError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

LOOPBACK = "127.0.0.1"


class Rendezvous:
    """A store that the kernel hosts, in two steps: its port is bound before the workers are forked, served after.

    A fork while the store's thread is at work could copy a lock that this thread holds, and hang the new worker.

    Attributes:
        secret: what all keys of its ranks begin with, so that no other process meets them by mistake.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.host, self.port = sock.getsockname()[:2]
        self.secret = secrets.token_hex(16)
        self._socket: socket.socket | None = sock
        self._store: TCPStore | None = None

    @classmethod
    def bind(cls, host: str = LOOPBACK, port: int = 0) -> Rendezvous:
        """Bind the address. With port 0 the system chooses a free one, without a race.

        Raises:
            StartError: the address cannot be bound.
        """
        sock = socket.socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(1024)
        except OSError as error:
            sock.close()
            what = f"the rendezvous address {host}:{port} cannot be used: {error.strerror or error}"
            raise StartError(f"{what}. {_advice(error)}") from error
        return cls(sock)

    def serve(self, world_size: int) -> None:
        """Serve the store, if it is not served already."""
        from torch._C._distributed_c10d import TCPStore

        if self._socket is not None:
            fd, self._socket = self._socket.detach(), None
            try:
                self._store = TCPStore(
                    self.host, self.port, world_size, is_master=True, wait_for_workers=False, master_listen_fd=fd
                )
            except RuntimeError as error:  # no memory for its thread, or no thread
                raise StartError(f"the store in which the ranks meet could not be opened: {error}") from error

    def close(self) -> None:
        """Free the port. Idempotent."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._store = None


def _advice(error: OSError) -> str:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return "Leave out the port, and a free one is taken"
    return f"The host must be a name or an address of this machine; left out, it is {LOOPBACK}"


def torchrun_environment(
    rank: int,
    world_size: int,
    rendezvous: Rendezvous,
    *,
    run_id: str = "none",
    restart_count: int = 0,
    max_restarts: int = 0,
) -> dict[str, str]:
    """The variables that torchrun sets for one of `world_size` ranks on one node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": rendezvous.host,
        "MASTER_PORT": str(rendezvous.port),
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": str(restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }


def quiet_defaults(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Keep a one-machine world off the network, and tokenizers from warning of forks, unless the user chose otherwise.

    Hugging Face's tokenizers would start a pool of threads in each worker, as wide as the machine.
    """
    defaults = {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_RAS_ENABLE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {name: value for name, value in defaults.items() if name not in environ}
