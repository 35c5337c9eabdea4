"""Rows 2, 20 and 42: waits for a key of a store end with their cell, and stores outlive what happens to a group."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from worlds import GUARD, Ranks, Worlds

_GROUPS = "store = dist.group.WORLD.get_group_store()"
_OWN = (
    "port = [torch.tensor(0)]\n"
    "if rank == 0:\n    store = dist.TCPStore('127.0.0.1', 0, is_master=True)\n    port = [torch.tensor(store.port)]\n"
    "dist.broadcast(port[0], 0)\n"
    "if rank: store = dist.TCPStore('127.0.0.1', port[0].item())"
)
_FILE = "store = dist.FileStore('{folder}/store', 2)"
_WAITS = [
    pytest.param(_GROUPS, "store.wait(['nobody sets it'])", id="group"),
    pytest.param("store = dist.distributed_c10d._get_default_store()", "store.get('nobody sets it')", id="default"),
    pytest.param(_OWN, "store.get('nobody sets it')", id="own"),
    pytest.param(_OWN, "store.multi_get(['nobody sets it'])", id="several"),
    pytest.param(_OWN, "store.queue_pop('nobody sets it')", id="queue"),
    pytest.param(_FILE, "store.get('nobody sets it')", id="file"),
    pytest.param("store = dist.HashStore()", "store.wait(['nobody sets it'])", id="hash"),
]
_CUT = "dist.new_group([0, 1]) if rank == 0 else inject.sleep_forever()"  # takes the store's connection along


@pytest.mark.parametrize(("make", "wait"), _WAITS)
def test_row_20_wait_for_a_key(pair: Ranks, tmp_path: Path, make: str, wait: str) -> None:
    """An interrupt ends it at once, says where it was, and leaves the store as it was."""
    pair.run(make.replace("{folder}", str(tmp_path)) + "\nstore.set(f'here {rank}', 'before')").ok()
    error = pair.interrupted(wait).failed("KeyboardInterrupt")
    assert re.search(r"ranks 0-1: interrupted in store\.\w+ at", error.evalue)
    assert pair.run("store.get(f'here {rank}')").ok().texts == ["[0-1] b'before'"]
    pair.assert_whole()


@pytest.mark.parametrize(("make", "wait"), _WAITS)
def test_row_02_wait_for_a_key(pair: Ranks, tmp_path: Path, make: str, wait: str) -> None:
    """When another rank raises, nobody waits for a key any more."""
    pair.run(make.replace("{folder}", str(tmp_path)) + "\nstore.set(f'here {rank}', 'before')").ok()
    error = pair.fail(f"if rank == 0:\n    inject.raise_error('row 2')\n{wait}", "ValueError")
    assert re.search(r"rank 1: waited in store\.\w+ at Cell", error.evalue)
    assert pair.run("store.get(f'here {rank}')").ok().texts == ["[0-1] b'before'"]
    pair.assert_whole()


_STARTS = [
    pytest.param("dist.TCPStore('127.0.0.1', port)", id="client"),
    pytest.param("dist.TCPStore('127.0.0.1', port, 2, is_master=True)", id="server"),
    pytest.param("next(dist.rendezvous(f'tcp://127.0.0.1:{port}', 0, 3))", id="rendezvous"),
]


@pytest.fixture
def ports() -> list[int]:
    """Two ports that are free."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [one.getsockname()[1], other.getsockname()[1]]


@pytest.mark.parametrize("start", _STARTS)
def test_row_20_start_of_a_store(pair: Ranks, ports: list[int], start: str) -> None:
    """An interrupt ends it at once, and its port can be taken again."""
    pair.run(f"import socket\nport = {ports}[rank]").ok()
    for _ in range(2):
        error = pair.interrupted(start).failed("KeyboardInterrupt")
        assert re.search(r"ranks 0-1: interrupted in (TCPStore|rendezvous|_tcp_\w+) at", error.evalue), error.evalue
    pair.run("socket.create_server(('127.0.0.1', port)).close()").ok()
    pair.assert_whole()


@pytest.mark.parametrize("start", _STARTS)
def test_row_02_start_of_a_store(pair: Ranks, ports: list[int], start: str) -> None:
    """When another rank raises, nobody waits for its client or server any more."""
    pair.run(f"import socket\nport = {ports}[rank]").ok()
    pair.fail(f"if rank == 0:\n    inject.raise_error('row 2')\n{start}", "ValueError")
    pair.run("socket.create_server(('127.0.0.1', port)).close()").ok()
    pair.assert_whole()


def test_row_20_a_store_that_starts(pair: Ranks, ports: list[int]) -> None:
    """Server and client find each other, whoever comes first; what nobody answers ends with torch's error."""
    pair.run(f"import time\nfrom datetime import timedelta\nport = {ports[0]}").ok()
    for late in (0, 1):
        cell = f"if rank == {late}: time.sleep(0.3)\nstore = dist.TCPStore('127.0.0.1', port, 2, rank == 0)\n"
        shown = pair.run(cell + "store.set(str(rank), 'here')\nstore.get(str(1 - rank))")
        assert shown.ok().texts == ["[0-1] b'here'"]
        pair.run("del store\ndist.barrier()").ok()
    alone = "dist.TCPStore('127.0.0.1', port, 2, rank == 0, timedelta(seconds=1))"
    error = pair.fail(f"if rank == 1: {alone}", "DistNetworkError")
    assert "The client socket has timed out after 1000ms while trying to connect to (127.0.0.1, " in error.evalue
    assert "1/2 clients joined" in pair.fail(f"if rank == 0: {alone}", "DistStoreError").evalue
    assert "incompatible" in pair.fail("dist.TCPStore('127.0.0.1')", "TypeError").evalue
    pair.assert_whole()


def test_row_20_another_service_at_a_store_s_port(pair: Ranks) -> None:
    """What accepts connections and says nothing holds no rank up: neither against an interrupt nor past the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pair.run(f"from datetime import timedelta\nport = {silent.getsockname()[1]}").ok()
        error = pair.interrupted("dist.TCPStore('127.0.0.1', port)").failed("KeyboardInterrupt")
        assert "ranks 0-1: interrupted in TCPStore at" in error.evalue
        error = pair.fail("dist.TCPStore('127.0.0.1', port, timeout=timedelta(seconds=1))", "DistNetworkError")
        assert "The client socket has timed out after 1000ms" in error.evalue
        pair.assert_whole()


def test_row_20_a_key_that_comes(pair: Ranks) -> None:
    """What the others set is there, for each way to wait for it, also in a thread."""
    pair.run("import threading, time\n" + _GROUPS).ok()
    cell = """
    def late():
        time.sleep(0.2)
        for key in "abcd": store.set(f"come {key}", key)
        store.queue_push("come", "e")
    if rank == 0: threading.Thread(target=late).start()
    found = []
    store.wait(["come a"])
    other = threading.Thread(target=lambda: found.append(store.get("come b")))
    other.start(); other.join()
    found.append(store.get("come c"))
    found += store.multi_get(["come a", "come d"])
    if rank == 1: found.append(store.queue_pop("come"))
    found
    """
    texts = pair.run("if True:\n" + cell.rsplit("found\n", 1)[0] + "\nfound").ok().texts
    assert texts == ["[0] [b'b', b'c', b'a', b'd']", "[1] [b'b', b'c', b'a', b'd', b'e']"]


def test_row_20_time_is_up(pair: Ranks) -> None:
    """A store's limit holds, with torch's error; until then somebody may set the key: it is no deadlock."""
    pair.run("from datetime import timedelta\n" + _GROUPS).ok()
    error = pair.fail("if rank == 1: store.wait(['nobody sets it'], timedelta(seconds=4))", "DistStoreError")
    assert "rank 1: DistStoreError: wait timeout after 4000ms, keys: nobody sets it" in error.evalue
    empty = pair.run("try: store.queue_pop('empty', block=False)\nexcept dist.QueueEmptyError: print('empty')")
    assert empty.ok().stdout == "[0-1] empty\n"
    for wrong in ("get(5)", "wait('key')", "multi_get([5])", "queue_pop(5)"):
        assert "incompatible function arguments" in pair.fail(f"store.{wrong}", "TypeError").evalue
    pair.assert_whole()


def test_row_42_whoever_holds_a_store_keeps_it(pair: Ranks) -> None:
    """A cut may take the connection to the store along: the objects that the user holds work again, with their keys."""
    pair.run(f"{_GROUPS}\nstore.set('before', 'kept')\nclone = store.clone()").ok()
    for life in range(3):
        pair.interrupted(_CUT).failed("KeyboardInterrupt")
        pair.assert_whole()
        cell = f"for each in (store, clone): each.set(f'{life} {{rank}}', 'set')\n"
        shown = pair.run(cell + f"[each.get(f'{life} {{1 - rank}}') + each.get('before') for each in (store, clone)]")
        assert shown.ok().texts == ["[0-1] [b'setkept', b'setkept']"]
    assert "store" not in pair.run("dist.new_group([0, 1]); 'made'").ok().stderr


def test_row_42_a_rank_that_joins_has_the_same_store(world_of: Worlds) -> None:
    """What the others set before it was started, and since."""
    ranks = world_of(2)
    ranks.run(f"{_GROUPS}\nstore.set('before', 'kept')").ok()
    ranks.fail("if rank == 1: inject.kill()\ndist.barrier()", "WorkerDied")
    ranks.bring_back(1)
    shown = ranks.run(
        f"{_GROUPS}\nstore.set(f'joined {{rank}}', str(rank))\nstore.multi_get(['before', 'joined 0', 'joined 1'])"
    )
    assert shown.ok().texts == ["[0-1] [b'kept', b'0', b'1']"]
    ranks.fail("if rank == 0: inject.raise_error('row 42')\ndist.barrier()", "ValueError")
    assert ranks.run("dist.group.WORLD.get_group_store().get('before')", GUARD).ok().texts == ["[0-1] b'kept'"]
