"""Where the user's code is: frames and tracebacks in the user's terms."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from types import CodeType, FrameType, TracebackType

from nbsync.protocol.cells import describe_file
from nbsync.protocol.reports import ASYNCHRONOUS, STORE_START, STORE_WAITS
from nbsync.protocol.userlines import is_users
from nbsync.worker.stacks import running_threads, stack_of, variable_in

_SPOKEN = {
    "wait_at_barrier": "wait_for_everyone",
    **dict.fromkeys(("_pre_forward", "_distributed_broadcast_coalesced"), "DDP's forward"),
    "_verify_param_shape_across_processes": "the construction of a model",
    "_sync_params_and_buffers": "the broadcast of a model's parameters",  # by Join's end and FSDP too
    # What functional collectives return waits in these when it is used: for which of them, only C++ knows.
    **dict.fromkeys(("wait_tensor", "trigger_wait", "__torch_dispatch__", "__repr__"), ASYNCHRONOUS),
}
_COLLECTIVE_FOLDERS = (
    os.path.join("torch", "distributed", ""),
    os.path.join("torch", "nn", "parallel", "distributed.py"),
)
_CHECKPOINTS = os.path.join("torch", "distributed", "checkpoint", "")
_ENGINE, _BACKWARD = "_engine_run_backward", "backward"
_COLLECTIVE_FILES = (
    os.path.join("torch", "distributed", "distributed_c10d.py"),
    os.path.join("torch", "distributed", "_functional_collectives.py"),
    os.path.join("torch", "distributed", "rendezvous.py"),
    os.path.join("nbsync", "worker", "control", "barrier.py"),
)

_OURS = os.path.join("nbsync", "worker", "groups", "")
_INTERRUPTS = os.path.join("nbsync", "worker", "interrupts.py")
_STORE, _STARTS, _REDUCER = f"{_OURS}storewaits.py", f"{_OURS}storestarts.py", f"{_OURS}reducer.py"
_WATCH = (f"{_OURS}watch.py", _REDUCER)


def describe_line(filename: str, lineno: int) -> str:
    """`Cell In[3], line 7` for a cell's code, `train.py, line 7` for a file."""
    return f"{describe_file(filename)}, line {lineno}"


def first_line(code: CodeType) -> int:
    """The line at which this code begins; a module's own number for that is always 1."""
    return next((line for _, _, line in code.co_lines() if line), code.co_firstlineno)


def users_line(frames: Iterable[tuple[CodeType, int]]) -> str:
    """The innermost line of the user's code, or "" when there is none. Frames come outermost first."""
    mine = [(code, line) for code, line in frames if is_users(code)]
    return describe_line(mine[-1][0].co_filename, mine[-1][1]) if mine else ""


def line_of(frame: FrameType | None) -> str:
    """The line of the user's code that led to this frame, or "". Made for what happens often."""
    while frame is not None and not is_users(frame.f_code):
        frame = frame.f_back
    return describe_line(frame.f_code.co_filename, frame.f_lineno) if frame is not None else ""


def collective_in(frames: Iterable[tuple[CodeType, int]]) -> str | None:
    """The torch.distributed operation these frames are in, e.g. "all_reduce", or None.

    Where an operation calls the user's code (a hook, an object that is pickled), or a backward pass any Python that is
    not torch.distributed's (the compiler), it does not wait.
    """
    found = last = asked = None
    waits = False
    for code in _below_users(frames):
        name = code.co_name
        if _OURS in code.co_filename or code.co_filename.endswith(_INTERRUPTS):  # whatever is asked for, or cut
            waits = waits or (name == "wait" and code.co_filename.endswith(_WATCH))
            if code.co_filename.endswith(_STORE) and name in STORE_WAITS:
                asked = asked or f"store.{name}"
            if code.co_filename.endswith(_STARTS) and name == STORE_START:
                asked = asked or name
            continue
        if not name.startswith("<"):
            last = code
        if code.co_filename.endswith(_COLLECTIVE_FILES):
            if found is None and name not in ("wrapper", "__call__", "_wrapped_func"):
                found = _SPOKEN.get(name, name)
        elif name == _ENGINE:
            found = found or _BACKWARD
    ends_in_torch = last is not None and _is_distributed(last.co_filename)
    if found == _BACKWARD and last is not None and last.co_name != _ENGINE and not ends_in_torch:
        return None
    if found is None and last is not None and ends_in_torch:
        return _SPOKEN.get(last.co_name, last.co_name)  # below it there is C++ only, as in the first steps of DDP
    return found or asked or (ASYNCHRONOUS if waits else None)


def _below_users(frames: Iterable[tuple[CodeType, int]]) -> list[CodeType]:
    """What the innermost of the user's frames has called; all of it if there is none."""
    called: list[CodeType] = []
    for code, _ in frames:
        if is_users(code):
            called.clear()
        else:
            called.append(code)
    return called


def _is_distributed(filename: str) -> bool:
    """Whether this is a file of torch.distributed, but for those that read and write checkpoints."""
    return any(part in filename for part in _COLLECTIVE_FOLDERS) and _CHECKPOINTS not in filename


def waited_in(trace: TracebackType | None) -> str | None:
    """The torch.distributed operation that has raised, or None: with its own name also where it was begun earlier."""
    name = collective_in(walk_traceback(trace))
    if name != ASYNCHRONOUS:
        return name
    frames = (frame for frame, _ in traceback.walk_tb(trace) if frame.f_code.co_filename.endswith(_WATCH))
    begun = [frame.f_locals["begun"] for frame in frames if "begun" in frame.f_locals]
    return begun[-1].what.name if begun and begun[-1].what is not None else name


def ends_backward_pass(frames: Iterable[tuple[CodeType, int]]) -> bool:
    """Whether a backward pass is at its end, where DDP waits for what its reducer has begun."""
    return any(code.co_name == "_end" and code.co_filename.endswith(_REDUCER) for code, _ in frames)


def peer_in(thread: int | None, frames: Sequence[tuple[CodeType, int]]) -> int | None:
    """The rank that `dist.send` or `dist.recv`, if this thread is in one, sends to or receives from."""
    for depth, (code, _) in enumerate(reversed(frames)):
        if code.co_name in ("send", "recv") and code.co_filename.endswith(_COLLECTIVE_FILES):
            peer = variable_in(thread, depth, "dst" if code.co_name == "send" else "src")
            return peer if isinstance(peer, int) else None
    return None


def is_alone(*threads: int | None) -> bool:
    """Whether no other thread runs the user's code or is in torch.distributed, and no timer runs."""
    others = [stack_of(thread) for thread in running_threads() if thread not in threads]
    is_busy = any(users_line(frames) or collective_in(frames) for frames in others)
    return not is_busy and not any(map(isinstance, threading.enumerate(), repeat(threading.Timer)))


def walk_stack(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    """The frames of the thread that asks, outermost first."""
    found = []
    while frame is not None:
        found.append((frame.f_code, frame.f_lineno or 0))
        frame = frame.f_back
    return found[::-1]


def walk_traceback(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    """An exception's frames, outermost first."""
    for frame, line in traceback.walk_tb(trace):
        yield frame.f_code, line
