"""Where the ranks meet: the kernel's store, under a prefix that only this session's ranks are told.

The store listens on loopback and cannot tell who speaks. A random prefix of 128 bits keeps what other processes write
there, by mistake or by guessing torch's own keys, away from the ranks. It is no lock: a process that speaks the store's
protocol can ask it for the keys it holds.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from nbsync.worker.groups.sockets import Socket, connected_sockets, open_sockets, put_in_place


class MeetingPoint:
    """The way to the kernel's store.

    Args:
        host, port: its address. Not read from the environment later: user code may set MASTER_PORT.
        size: the number of ranks.
        secret: the prefix of all keys of this session.
    """

    def __init__(self, host: str, port: int, size: int, secret: str) -> None:
        self.host, self.port, self._size, self._secret = host, port, size, secret

    def connect(self) -> Store:
        """A new connection."""
        return self._hidden(self._connection())

    def renew(self, connection: Socket) -> None:
        """Put a new connection in the place of one that was shut down, under the stores that use it.

        A store is no more than its connection: it goes on with another one that has greeted the server.
        """
        before = open_sockets()
        greeted = self._connection()
        (fresh,) = connected_sockets(besides=before, peer_port=self.port)
        put_in_place(connection, fresh)
        del greeted  # closes its own descriptor only

    def install(self) -> None:
        """Give the prefix also to groups that user code makes: `dist.init_process_group()`, Accelerate, Lightning.

        Code that is written for `mp.spawn` sets an address of its own. Nobody listens there, and all ranks of the world
        look for each other: they meet in the store that they have, apart from what else is in it.
        """
        module: Any = import_module("torch.distributed.rendezvous")  # the name in the package is a function's
        original = module._create_c10d_store

        def create(hostname: str, port: int, rank: int, size: int, timeout: timedelta, *args: Any) -> Store:
            is_hosted = module._torchelastic_use_agent_store()
            is_ours = (hostname, port) == (self.host, self.port)
            if is_hosted and not is_ours and size == self._size:
                apart = PrefixStore(f"{hostname}:{port}", self.connect())
                apart.set_timeout(timeout)
                return apart
            store: Store = original(hostname, port, rank, size, timeout, *args)
            return self._hidden(store) if is_hosted and is_ours else store

        module._create_c10d_store = create

    def _connection(self) -> TCPStore:
        return TCPStore(self.host, self.port, self._size, is_master=False)

    def _hidden(self, store: Store) -> Store:
        return PrefixStore(self._secret, store)
