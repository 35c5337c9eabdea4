"""tqdm in a worker: what the kernel is told of its bars, and what stays text.

Each case runs in a process of its own, since tqdm's classes are changed for good: a fork of one that has all loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_HEAD = """
import json, sys, time
from nbsync.protocol.reports import Bar
from nbsync.worker.libraries.bars import show_bars
from nbsync.worker.feed import Feed
class Ours:
    encoding = "utf-8"
    def __init__(self): self.pieces = []
    def write(self, text): self.pieces.append(text)
    def flush(self): pass
class Sent:
    def __init__(self): self.messages = []
    def send(self, message): self.messages.append(message)
real = sys.stdout
out, err = sys.stdout, sys.stderr = Ours(), Ours()
feed, channel = Feed(0.0), Sent()
show_bars(feed, lambda file: file is out or file is err)
feed.begin(True)
now = 0.0
known = {}
def send():
    global now
    now += 1
    feed.send(channel, now)
def last():
    for message in channel.messages:
        for bar in message.bars: known[bar.number] = bar
        for number in message.gone: known.pop(number, None)
    channel.messages.clear()
    return [vars(bar) for _, bar in sorted(known.items())]
"""
_TAIL = """
send()
text = "".join(out.pieces), "".join(err.pieces)
print(json.dumps({"bars": last(), "count": feed._count, "out": text[0], "err": text[1], "note": globals().get("note")}),
      file=real)
"""


_SERVER = """
import json, os, sys
import numpy, torch, tqdm.auto, tqdm.contrib.concurrent, tqdm.notebook, nbsync.worker.libraries.bars, nbsync.worker.feed
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            exec(compile(json.loads(line), "case", "exec"), {})
            sys.__stdout__.flush()
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), file=sys.__stdout__, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""

Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(code)`: the last state of the bars that the code leaves, and what it wrote as text."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def one(code: str) -> dict[str, Any]:
            print(json.dumps(_HEAD + code + _TAIL), file=server.stdin)
            found: dict[str, Any] = json.loads(server.stdout.readline())
            assert "error" not in found, found
            return found

        try:
            yield one
        finally:
            server.kill()


@pytest.fixture
def only_bar(run: Run) -> Run:
    """`only_bar(code)`: the one bar that the code leaves; it must have written nothing as text."""

    def one(code: str) -> dict[str, Any]:
        found = run(code)
        assert (found["out"], found["err"]) == ("", "")
        (bar,) = found["bars"]
        assert found["count"] == 1
        return dict(bar)

    return one


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.std"])
@pytest.mark.parametrize("call", ["tqdm(range(5), desc='d')", "trange(5, desc='d')"])
def test_every_flavour(only_bar: Run, module: str, call: str) -> None:
    """The bar ends closed and full, and nothing is written."""
    bar = only_bar(f"from {module} import tqdm, trange\nfor _ in {call}: pass")
    assert (bar["name"], bar["n"], bar["total"], bar["closed"]) == ("d", 5, 5, True)


def test_classes_that_were_imported_before(only_bar: Run) -> None:
    """Libraries hold references to tqdm's classes, and derive their own."""
    bar = only_bar("""
import tqdm.auto
class Mine(tqdm.auto.tqdm): pass
for _ in Mine(range(3), desc='mine'): pass
""")
    assert (bar["name"], bar["n"]) == ("mine", 3)


@pytest.mark.parametrize("file", ["file=sys.stdout", "file=sys.stderr", "file=None"])
def test_files_that_are_the_ranks(only_bar: Run, file: str) -> None:
    """A bar for stdout or stderr is shown, also when it is named."""
    assert only_bar(f"from tqdm import tqdm\nfor _ in tqdm(range(3), {file}): pass")["n"] == 3


def test_file_by_its_place(only_bar: Run) -> None:
    """`file` is the fifth argument of tqdm."""
    assert (
        only_bar("""
from tqdm import tqdm
for _ in tqdm(range(3), 'd', None, True, sys.stdout): pass
""")["n"]
        == 3
    )


def test_a_bar_for_a_real_file_stays_there(run: Run) -> None:
    """Somebody wants that text: it is no bar of the view."""
    found = run("""
import io
from tqdm import tqdm
file = io.StringIO()
for _ in tqdm(range(3), file=file): pass
note = file.getvalue()
""")
    assert (found["bars"], found["count"]) == ([], 0)
    assert "3/3" in found["note"]


@pytest.mark.parametrize("disable", ["True", "None"])
def test_disabled_bars(run: Run, disable: str) -> None:
    """No bar is shown; None disables it where there is no terminal, as in any notebook."""
    found = run(f"from tqdm.auto import tqdm\nfor _ in tqdm(range(3), disable={disable}): pass")
    assert (found["bars"], found["count"], found["out"] + found["err"]) == ([], 0, "")


@pytest.mark.parametrize("leave", ["False", "None"])
def test_nested_bars(run: Run, leave: str) -> None:
    """Those that are not to stay go when they end; `leave=None` keeps only the outermost."""
    found = run(
        f"from tqdm.auto import tqdm\nseen = 0\nfor _ in tqdm(range(3), desc='outer', leave={leave} is None):\n"
        f"    for _ in tqdm(range(2), desc='inner', leave={leave}):\n        send(); seen = max(seen, len(last()))\n"
        "note = seen"
    )
    assert found["note"] == 2
    assert [bar["name"] for bar in found["bars"]] == (["outer"] if leave == "None" else [])
    assert found["count"] == len(found["bars"])


def test_a_postfix_at_every_step(run: Run) -> None:
    """set_postfix costs no message each: the last one is told."""
    found = run("""
from tqdm import tqdm
bar = tqdm(range(1000))
for i in bar: bar.set_postfix(loss=i)
""")
    assert found["bars"][0]["postfix"] == "loss=999"


def test_a_bar_that_is_reset(only_bar: Run) -> None:
    """It begins again, also with another total."""
    bar = only_bar("""
from tqdm import tqdm
bar = tqdm(total=5)
bar.update(5)
bar.reset(total=8)
bar.update(2)
bar.refresh()
""")
    assert (bar["n"], bar["total"], bar["closed"]) == (2, 8, False)


def test_an_unknown_total(only_bar: Run) -> None:
    """A generator has no end to tell."""
    bar = only_bar("""
from tqdm import tqdm
for _ in tqdm(i for i in range(7)): pass
""")
    assert (bar["n"], bar["total"]) == (7, None)


def test_units(only_bar: Run) -> None:
    """Bytes are scaled by whoever draws; a factor is applied here."""
    bar = only_bar(
        """
from tqdm import tqdm
b = tqdm(total=4096, unit='B', unit_scale=True, unit_divisor=1024)
b.update(2048)
b.close()
"""
    )
    assert (bar["n"], bar["unit"], bar["unit_scale"], bar["unit_divisor"]) == (2048, "B", True, 1024)
    bar = only_bar("""
from tqdm import tqdm
b = tqdm(total=10, unit_scale=2.5)
b.update(4)
b.close()
""")
    assert (bar["n"], bar["total"], bar["unit_scale"]) == (10, 25, False)


def test_a_bar_that_is_a_line_of_text(only_bar: Run) -> None:
    """A format without numbers is text; one with numbers is drawn as any bar."""
    code = """
from tqdm import tqdm
b = tqdm(total=0, bar_format={!r}, desc='stage 2')
b.refresh()
"""
    assert only_bar(code.format("{desc}"))["text"] == "stage 2"
    assert only_bar(code.format("{l_bar}{bar}"))["text"] is None


def test_write_goes_its_own_way(run: Run) -> None:
    """tqdm.write writes whole lines, and tears no bar."""
    found = run("""
from tqdm.auto import tqdm
for i in tqdm(range(3)): tqdm.write(f'step {i}')
""")
    assert found["out"] == "step 0\nstep 1\nstep 2\n"
    assert found["err"] == ""
    assert [bar["n"] for bar in found["bars"]] == [3]


def test_bars_of_threads(run: Run, only_bar: Run) -> None:
    """tqdm.contrib.concurrent updates its bar from the thread that waits; several threads have bars of their own."""
    bar = only_bar("""
from tqdm.contrib.concurrent import thread_map
thread_map(abs, range(20), max_workers=4)
""")
    assert (bar["n"], bar["closed"]) == (20, True)
    found = run("""
from threading import Thread
from tqdm import tqdm
def work(k):
    for _ in tqdm(range(50), desc=str(k)): pass
threads = [Thread(target=work, args=(k,)) for k in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
""")
    assert sorted(bar["name"] for bar in found["bars"]) == list("0123")
    assert found["count"] == 4


def test_bars_in_a_child(run: Run) -> None:
    """A process that the worker forks must not speak in its place: there, a bar is text."""
    found = run("""
import os
from tqdm import tqdm
pid = os.fork()
if not pid:
    for _ in tqdm(range(3)): pass
    os._exit(0 if '3/3' in ''.join(err.pieces) and not feed._bars else 1)
note = os.waitpid(pid, 0)[1]
""")
    assert (found["note"], found["bars"], found["count"]) == (0, [], 0)


def test_a_bar_ended_by_an_exception(only_bar: Run) -> None:
    """It stays where it was, and is closed."""
    bar = only_bar("""
from tqdm import tqdm
try:
    with tqdm(range(10)) as b:
        for i in b:
            if i == 4: 1 / 0
except ZeroDivisionError: pass
""")
    assert (bar["n"], bar["closed"]) == (4, True)


def test_a_bar_lives_on(run: Run) -> None:
    """A bar made in one request and moved in the next is told there, but counted as none of its own."""
    found = run("""
from tqdm import tqdm
b = tqdm(total=9, desc='old', leave=False)
b.update(1)
send()
known.clear()
channel.messages.clear()
feed.begin(True)
c = tqdm(total=3, desc='new')
b.update(1)
b.refresh()
send()
note = [bar['name'] for bar in last()]
b.close()
""")
    assert found["note"] == ["old", "new"]
    assert [bar["name"] for bar in found["bars"]] == ["new"]
    assert found["count"] == 1


def test_while_the_view_is_off(run: Run) -> None:
    """Then bars are the rank's text, as ever; each on a line of its own, without codes that move the cursor."""
    found = run("""
feed.begin(False)
from tqdm.auto import tqdm
for _ in tqdm(range(3), desc='a'):
    pass
""")
    assert (found["bars"], found["count"]) == ([], 0)
    assert "a: 100%" in found["err"]
    assert "\x1b" not in found["err"]


def test_many_bars_take_little_memory(run: Run) -> None:
    """A loop that makes a bar each time keeps none of them, whether or not somebody takes what is told."""
    found = run("""
import gc, tracemalloc
from tqdm import tqdm
def make(count):
    for i in range(count):
        b = tqdm(total=1, leave=False); b.update(1); b.close()
        if i % 100 == 0: send(); channel.messages.clear()
make(500)
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
make(5000)
gc.collect()
note = tracemalloc.get_traced_memory()[0] - before
""")
    assert found["note"] < 100_000
    assert found["count"] == 0
    assert found["bars"] == []


def test_numbers_that_are_none(run: Run) -> None:
    """What the user's code counts with may be anything that adds up; it is never an error of the helper thread."""
    code = """
from tqdm import tqdm
import numpy as np, torch
class Odd(float):
    pass
for value in (float('nan'), float('inf'), np.float32(3), torch.tensor(2.0), Odd(4), 10**400, True):
    b = tqdm(total=10, leave=True)
    b.n = value
    b.refresh()
    send()
"""
    assert [bar["n"] for bar in run(code)["bars"]] == [0, 0, 3.0, 2.0, 4.0, 0, 1]


def test_a_total_that_cannot_be_a_number(run: Run) -> None:
    """Whatever converting the user's object raises, the bar has no total, and the thread that looks at it lives on."""
    code = """
from tqdm import tqdm
class Broken:
    def __float__(self): raise KeyError('broken')
b = tqdm(total=10)
b.total = Broken()
b.refresh()
"""
    assert [bar["total"] for bar in run(code)["bars"]] == [None]


def test_a_bar_that_counts_with_tensors(run: Run) -> None:
    """The helper thread never converts or sends a tensor: the user's thread does, when tqdm draws the bar."""
    code = """
import pickle, threading
from tqdm import tqdm
import torch
class Watched(torch.Tensor):
    used = set()
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        cls.used.add(threading.current_thread().name)
        return super().__torch_function__(*args, **kwargs)
def step(): return torch.tensor(3).as_subclass(Watched)
def helper():
    thread = threading.Thread(target=send, name='helper')
    thread.start()
    thread.join()
b = tqdm(total=torch.tensor(9).as_subclass(Watched), mininterval=0)
b.update(step())
helper()
b.mininterval = 1000
b.update(step())
feed.bar(b.nbsync_number, lambda: nbsync.worker.libraries.bars._look_later(b, b.nbsync_number))
helper()
b.update(step())
b.refresh()
helper()
note = [sorted(Watched.used), [bar.n for m in channel.messages for bar in m.bars],
        b'torch' in pickle.dumps(channel.messages)]
"""
    found = run("import nbsync.worker.libraries.bars\n" + code)
    assert found["note"] == [["MainThread"], [3, 9], False]
    assert found["bars"][0]["total"] == 9


def test_a_malformed_format(run: Run) -> None:
    """The user's thread gets tqdm's own error; a format that goes wrong later costs nothing."""
    code = """
from tqdm import tqdm
note = []
for make in (lambda: tqdm(range(3), bar_format='{l_bar'), lambda: tqdm(range(3), bar_format='{l_bar', file=sys.stdin)):
    try: make()
    except ValueError as error: note.append(str(error))
b = tqdm(total=3, desc='late')
b.bar_format = '{l_bar'
b.update(2)
b.refresh()
"""
    found = run("import io; sys.stdin = io.StringIO()\n" + code)
    assert len(found["note"]) == 2
    assert found["note"][0] == found["note"][1]
    assert [(bar["name"], bar["n"]) for bar in found["bars"]] == [("late", 2)]
