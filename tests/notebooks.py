"""`Notebook`: a real ipykernel driven as a front end drives it, and what /proc says about the processes it started."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

LIMIT = 60.0  # seconds that a cell may take
START_LIMIT = 60.0
GONE_LIMIT = 10.0  # seconds, to allow for a busy machine, after the kernel's end until everything of it is gone
MARK = "NBSYNC_TEST_MARK"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LISTEN = "0A"  # TCP state in /proc/net/tcp


def without_colours(text: str) -> str:
    """The text without the terminal's control sequences."""
    return _ANSI.sub("", text)


class Hung(AssertionError):
    """A cell did not end in time. The kernel was killed."""


# ---- what a cell gave ----


@dataclass(frozen=True)
class CellError:
    """What the front end was told of the exception that ended a cell."""

    ename: str
    evalue: str
    traceback: str


@dataclass
class Outcome:
    """What a front end shows of one cell.

    Attributes:
        number: the cell's execution count, N in `In [N]`.
        outputs: ("stdout" | "stderr", text) and ("display", bundle), in order, as they stand at the end.
        history: the bundles of all displays and updates, as they came.
        messages: how many messages it took.
        comms: the contents of the messages to widgets, those that opened them among them.
    """

    status: str = "running"
    number: int = 0
    outputs: list[tuple[str, Any]] = field(default_factory=list)
    comms: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    error: CellError | None = None
    seconds: float = 0.0
    messages: int = 0

    @property
    def stdout(self) -> str:
        return "".join(what for kind, what in self.outputs if kind == "stdout")

    @property
    def stderr(self) -> str:
        return "".join(what for kind, what in self.outputs if kind == "stderr")

    @property
    def displays(self) -> list[dict[str, Any]]:
        return [what for kind, what in self.outputs if kind == "display"]

    @property
    def of_ranks(self) -> list[dict[str, Any]]:
        """The displays without the view of all ranks, which a slow cell shows, and may have emptied at its end."""
        return [bundle for bundle in self.displays if any(bundle.values()) and not is_view(bundle)]

    @property
    def texts(self) -> list[str]:
        """The plain text of every display; the live area, empty at the end, and the view are left out."""
        return [text for bundle in self.of_ranks if (text := bundle.get("text/plain", ""))]

    @property
    def views(self) -> list[dict[str, Any]]:
        """The live views of the cell, as they are at its end."""
        return [bundle for bundle in self.displays if is_view(bundle)]

    def ok(self) -> Outcome:
        """This outcome, which must not be an error."""
        assert self.status == "ok", f"{self.error}\n{self.stderr}"
        return self

    def failed(self, ename: str = "") -> CellError:
        """The cell's error, which there must be; its name must hold `ename`."""
        assert self.status == "error", f"the cell ended well:\n{self.stdout}{self.stderr}"
        assert self.error is not None
        assert ename in self.error.ename, self.error
        return self.error


def is_view(bundle: dict[str, Any]) -> bool:
    """Whether this is the live view of all ranks."""
    return 'class="nbsync"' in bundle.get("text/html", "")


class _Cell:
    """A cell that runs: builds its outcome from the kernel's messages."""

    def __init__(self, request: str) -> None:
        self.request = request
        self.outcome = Outcome()
        self.replied = self.idle = False
        self._by_id: dict[str, list[int]] = {}
        self._clear_at_next = False
        self._started = time.perf_counter()

    @property
    def ended(self) -> bool:
        return self.replied and self.idle

    def take(self, message: dict[str, Any]) -> None:
        if message["parent_header"].get("msg_id") != self.request:
            return
        kind, content = message["msg_type"], message["content"]
        self.outcome.messages += 1
        if kind == "execute_reply":
            self.replied = True
            self.outcome.status, self.outcome.number = content["status"], content["execution_count"]
            if content["status"] == "error":
                trace = without_colours("\n".join(content["traceback"]))
                self.outcome.error = CellError(content["ename"], without_colours(content["evalue"]), trace)
        elif kind == "status":
            self.idle = content["execution_state"] == "idle"
        elif kind == "stream":
            self._show(content["name"], content["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            self._display(kind, content)
        elif kind in ("comm_open", "comm_msg"):
            self.outcome.comms.append(content)
        elif kind == "clear_output":
            self._clear_at_next = True
            if not content["wait"]:
                self._clear()
        if self.ended:
            self.outcome.seconds = time.perf_counter() - self._started

    def _show(self, kind: str, what: Any) -> None:
        self._clear()
        outputs = self.outcome.outputs
        if kind != "display" and outputs and outputs[-1][0] == kind:
            outputs[-1] = (kind, outputs[-1][1] + what)
        else:
            outputs.append((kind, what))

    def _display(self, kind: str, content: dict[str, Any]) -> None:
        data, display_id = content["data"], content.get("transient", {}).get("display_id")
        self.outcome.history.append(data)
        places = self._by_id.setdefault(display_id, []) if display_id is not None else []
        if kind == "update_display_data":
            for place in places:
                self.outcome.outputs[place] = ("display", data)
            return
        self._show("display", data)
        places.append(len(self.outcome.outputs) - 1)

    def _clear(self) -> None:
        if self._clear_at_next:
            self.outcome.outputs.clear()
            self._by_id.clear()
            self._clear_at_next = False


# ---- processes, as /proc shows them ----


@dataclass(frozen=True)
class Proc:
    """A process; it is the same one, whatever its state, if its number and its start time are."""

    pid: int
    ppid: int = field(compare=False)
    pgid: int = field(compare=False)
    started: int
    name: str = field(compare=False)
    state: str = field(compare=False)


def processes() -> Iterator[Proc]:
    """All processes of this machine, zombies too."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := find_process(int(entry))):
            yield process


def find_process(pid: int) -> Proc | None:
    """The process with this number, if there is one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(") ")
    fields = rest.split()
    return Proc(pid, int(fields[1]), int(fields[2]), int(fields[19]), name, fields[0])


def family(pid: int, mark: str | None = None) -> set[Proc]:
    """The process's descendants, whoever is in a process group of theirs, and whoever carries `mark`."""
    everyone = list(processes())
    mine = {pid}
    groups: set[int] = set()
    grew = True
    while grew:
        more = {p.pid for p in everyone if p.ppid in mine or p.pgid in groups} - mine
        mine |= more
        groups |= {p.pgid for p in everyone if p.pid in more and p.pgid == p.pid}
        grew = bool(more)
    return {p for p in everyone if p.pid != pid and (p.pid in mine or (mark and _carries(p.pid, mark)))}


def _carries(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def alive(some: Iterable[Proc]) -> list[Proc]:
    """Those that still run; a zombie, which only its parent can remove, does not."""
    found = [(p, find_process(p.pid)) for p in some]
    return [p for p, now in found if now and now.started == p.started and now.state not in "ZX"]


def listeners(pids: Iterable[int]) -> set[str]:
    """The listening TCP sockets that these processes hold, by inode."""
    held = set()
    for pid in pids:
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target.startswith("socket:["):
                        held.add(target[8:-1])
    return held & set(listening())


def listening() -> dict[str, tuple[str, int]]:
    """All listening TCP sockets: inode to (address in hex, port)."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTEN:
                address, port = local.split(":")
                found[rest[5]] = (address, int(port, 16))
    return found


def poll(condition: Callable[[], Any], limit: float, interval: float = 0.01) -> Any:
    """The condition's value as soon as it is true, or its last one when the time is up."""
    deadline = time.monotonic() + limit
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(interval)
    return value


@dataclass(frozen=True)
class Belongings:
    """What a kernel has on this machine at one moment: it must all be gone soon after the kernel."""

    processes: frozenset[Proc]
    listeners: frozenset[str]

    def left(self) -> list[str]:
        """What of it is still there."""
        running = [f"process {p.pid} ({p.name}), child of {p.ppid}" for p in alive(self.processes)]
        sockets = {inode: place for inode, place in listening().items() if inode in self.listeners}
        return running + [f"listening socket at port {port}" for _, port in sockets.values()]

    def assert_gone(self, limit: float = GONE_LIMIT) -> None:
        """Fail unless everything is gone within `limit` seconds."""
        poll(lambda: not self.left(), limit)
        assert not (left := self.left()), f"left after {limit} s: {left}"


# ---- the kernel ----


class Notebook:
    """A kernel of its own, in folders of its own under `folder`."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        # Short, since sockets lie in it; and with no digits, which could be taken for a process's number.
        letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(12))
        self.tmp = Path(tempfile.gettempdir(), f"kernel-{letters}")
        self.tmp.mkdir(mode=0o700)
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self.is_usable = True
        self._is_shut_down = False
        self._cell: _Cell | None = None
        for name in ("ipython", "runtime", "config", "data", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._shm_before = set(os.listdir("/dev/shm"))
        self._tmp_before = set(os.listdir("/tmp"))
        self._manager = KernelManager(connection_file=str(folder / "runtime" / "kernel.json"))
        self._manager.start_kernel(cwd=str(folder / "work"), env=self._environ(env or {}))
        self._client: BlockingKernelClient = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=START_LIMIT)

    def _environ(self, env: dict[str, str]) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        mine = {
            name: value,
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "TMPDIR": str(self.tmp),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return os.environ.copy() | mine | env

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]

    @property
    def is_alive(self) -> bool:
        return bool(self._manager.is_alive())

    # ---- cells ----

    def run(self, code: str, timeout: float = LIMIT) -> Outcome:
        """Run a cell to its end."""
        self.start(code)
        return self.wait(timeout)

    def start(self, code: str) -> None:
        """Begin a cell; `wait` gives its outcome."""
        assert self._cell is None, "the cell before was not waited for"
        self._cell = _Cell(self._client.execute(code, store_history=True, stop_on_error=False))

    def wait(self, timeout: float = LIMIT) -> Outcome:
        """The outcome of the cell that runs.

        Raises:
            Hung: it did not end in time.
        """
        self._read_until(lambda cell: cell.ended, timeout)
        assert self._cell is not None
        outcome, self._cell = self._cell.outcome, None
        return outcome

    def wait_for_output(self, text: str, timeout: float = LIMIT) -> None:
        """Return when the cell that runs has shown `text`.

        Raises:
            Hung: it did not in time.
        """
        self.wait_for(lambda shown: text in str(shown.outputs), timeout)

    def wait_for(self, condition: Callable[[Outcome], bool], timeout: float = LIMIT) -> None:
        """Return when what the cell that runs has shown so far meets the condition.

        Raises:
            Hung: it did not in time.
        """
        self._read_until(lambda cell: condition(cell.outcome), timeout)

    def _read_until(self, condition: Callable[[_Cell], bool], timeout: float) -> None:
        assert self._cell is not None, "no cell runs"
        deadline = time.monotonic() + timeout
        while not condition(self._cell):
            if time.monotonic() > deadline or self._cell.ended or not self.is_alive:
                what = f"not within {timeout} s" if self.is_alive else "the kernel has ended"
                outcome = self._cell.outcome
                self.kill()
                raise Hung(f"{what}; so far: {outcome}")
            with suppress(Empty):
                self._cell.take(self._client.get_iopub_msg(timeout=0.1))
            with suppress(Empty):
                self._cell.take(self._client.get_shell_msg(timeout=0 if not self._cell.idle else 0.1))

    @property
    def so_far(self) -> Outcome:
        """What the cell that runs has shown."""
        assert self._cell is not None, "no cell runs"
        return self._cell.outcome

    def send(self, kind: str, content: Any, subshell: str | None = None) -> None:
        """Send a message as a front end does, whatever is in it."""
        message = self._client.session.msg(kind, content)
        message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)

    @contextmanager
    def subshell(self) -> Iterator[str]:
        """A shell that answers while a cell runs, as JupyterLab has one for its widgets."""
        made = self._control("create_subshell_request", {})["subshell_id"]
        try:
            yield made
        finally:
            self._control("delete_subshell_request", {"subshell_id": made})

    def _control(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        request = self._client.session.msg(kind, content)
        self._client.control_channel.send(request)
        reply: dict[str, Any] = self._client.get_control_msg(timeout=LIMIT)["content"]
        return reply

    def reload(self) -> None:
        """Reload the page: the front end goes with all that it has not read, and another one comes.

        Of the cell that runs it sees what is shown from now on; the reply has nobody to go to.
        """
        self._client.stop_channels()
        self._client = self._manager.client()
        self._client.start_channels()
        if self._cell is not None:
            self._cell = _Cell(self._cell.request)
            self._cell.replied = True

    def interrupt(self) -> None:
        """Jupyter's own interrupt."""
        self._manager.interrupt_kernel()

    def restart(self, now: bool = True) -> None:
        """Jupyter's restart, of a kernel that runs or was killed; with `now` it is not asked to end by itself."""
        self._manager.restart_kernel(now=now)
        self._client.wait_for_ready(timeout=START_LIMIT)
        self._cell = None
        self.is_usable = True

    @property
    def ports(self) -> list[int]:
        """The ports on which the kernel listens to its front end."""
        return [getattr(self._manager, f"{name}_port") for name in ("shell", "iopub", "stdin", "control", "hb")]

    # ---- the end ----

    def belongings(self) -> Belongings:
        """The kernel's process and descendants, and the ports they listen on."""
        kernel = find_process(self.pid)
        mine = family(self.pid, self.mark) | ({kernel} if kernel else set())
        return Belongings(frozenset(mine), frozenset(listeners(p.pid for p in mine)))

    def shutdown(self) -> None:
        """End the kernel as Jupyter does, and check that nothing of it is left. A second call does nothing."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        mine = self.belongings()
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=not self.is_usable)
        mine.assert_gone()
        self._assert_nothing_left({p.pid for p in mine.processes})

    def kill(self) -> None:
        """SIGKILL the kernel's process, and nothing else. `shutdown` is still due."""
        self.is_usable = False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _assert_nothing_left(self, pids: set[int]) -> None:
        marked = [p for p in processes() if _carries(p.pid, self.mark)]
        assert not marked, f"left: {marked}"
        left = [name for name in os.listdir(self.tmp) if not name.startswith("torchinductor_")]  # torch keeps its cache
        assert not left, f"left in TMPDIR: {left}"
        in_tmp = {name for name in set(os.listdir("/tmp")) - self._tmp_before if _is_ours(name, pids)}
        in_tmp = {name for name in in_tmp if not name.startswith("nbsync-")}  # of a session with another TMPDIR
        in_shm = {name for name in set(os.listdir("/dev/shm")) - self._shm_before if _is_ours(name, pids)}
        assert not in_tmp | in_shm, f"left in /tmp and /dev/shm: {in_tmp | in_shm}"
        shutil.rmtree(self.tmp)


def _is_ours(name: str, pids: set[int]) -> bool:
    """Whether a file may be of these processes: it bears nobody's number, one of theirs, or our name."""
    numbers = {int(number) for number in re.findall(r"\d+", name)}
    return "nbsync" in name or bool(numbers & pids)
