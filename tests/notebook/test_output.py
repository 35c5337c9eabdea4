"""What ranks print and display, as it stands in the notebook."""

from __future__ import annotations

import re

import pytest

from nbsync.kernel.output.lines import without_rank, without_time
from notebooks import Notebook, poll, without_colours


def _lines_of(text: str, rank: int) -> list[str]:
    """What one rank said, without labels; folded lines are of all ranks."""
    found = re.findall(r"^\[([\d,-]+)\] ?(.*)$", text, re.MULTILINE)
    return [line for label, line in found if label in (str(rank), "0-1")]


# ---- lines ----


def test_labels_and_folding(live: Notebook) -> None:
    """Each line carries its rank; the same line of all ranks is shown once, under all of them."""
    assert live.run("%%distributed\nprint('same')\nprint('same two')").ok().stdout == "[0-1] same\n[0-1] same two\n"
    said = live.run("%%distributed\nprint('same')\nprint('mine', rank)").ok().stdout
    assert said.splitlines()[0] == "[0-1] same"
    assert sorted(said.splitlines()[1:]) == ["[0] mine 0", "[1] mine 1"]
    assert live.run("%%on_rank 1\nprint('a'); print('b')").ok().stdout == "[1] a\n[1] b\n"


def test_folding_after_a_difference(live: Notebook) -> None:
    """Ranks that said different things are folded again as soon as they say the same at the same time."""
    cell = "%%distributed\ndist.barrier(); print('mine', rank); print('again')"
    for _ in range(20):
        assert live.run(cell).ok().stdout.endswith("\n[0-1] again\n")


def test_repeated_lines_stay_in_order(live: Notebook) -> None:
    """Folding neither drops repetitions nor moves a line of a rank past another of it."""
    cell = "%%distributed\nfor i in range(50):\n    print('x'); print('y' if (i + rank) % 3 else 'z')"
    said = live.run(cell).ok().stdout
    for rank in (0, 1):
        expected = [line for i in range(50) for line in ("x", "y" if (i + rank) % 3 else "z")]
        assert _lines_of(said, rank) == expected


def test_blank_lines_and_indentation(live: Notebook) -> None:
    """Blank lines, leading blanks and tabs come through."""
    cell = "%%distributed\nprint('a'); print(); print('    indented'); print('\\ttab'); print('b\\n\\nc')"
    expected = "[0-1] a\n[0-1]\n[0-1]     indented\n[0-1] \ttab\n[0-1] b\n[0-1]\n[0-1] c\n"
    assert live.run(cell).ok().stdout == expected


def test_trailing_blanks(live: Notebook) -> None:
    """Blanks at a line's end are part of it."""
    assert live.run("%%distributed\nprint('end   ')").ok().stdout == "[0-1] end   \n"


def test_long_lines(live: Notebook) -> None:
    """A line of 300 kB comes whole, from Python and from the descriptor."""
    cell = "%%distributed\nimport os\nprint(str(rank) * 300_000)\nos.write(1, b'w' * 300_000 + b'\\n'); None"
    said = live.run(cell).ok().stdout
    for rank in (0, 1):
        first, second = _lines_of(said, rank)
        assert first == str(rank) * 300_000
        assert set(second) == {"w"}


def test_unicode(live: Notebook) -> None:
    """Text of any script comes through, also cut in two in the middle of a character."""
    text = "é漢字 🙂 \N{ARABIC LETTER ALEF}"
    assert live.run(f"%%distributed\nprint({text!r})").ok().stdout == f"[0-1] {text}\n"
    cell = (
        "%%distributed\nimport os, time\nb = '漢\\n'.encode()\n"
        "os.write(1, b[:2]); time.sleep(0.05); os.write(1, b[2:]); None"
    )
    assert live.run(cell).ok().stdout == "[0-1] 漢\n"


def test_bad_bytes(live: Notebook) -> None:
    """What is no text is shown escaped: bytes that are not UTF-8, lone surrogates, NULs."""
    cell = "%%distributed\nimport os\nos.write(1, b'raw\\xff\\xfe end\\n'); print('lone \\udc80'); print('nul\\0 end')"
    first, second, third = _lines_of(live.run(cell).ok().stdout, 0)
    assert first == r"raw\xff\xfe end"
    assert second == r"lone \udc80"
    assert re.fullmatch(r"nul(\0|\\x00| )? end", third)


def test_every_way_to_print(live: Notebook) -> None:
    """print, os.write, os.system, subprocesses and C's stdio write to the same two streams, in order."""
    cell = (
        "%%distributed\n"
        "import ctypes, os, subprocess, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "print('python')\n"
        "os.write(1, b'descriptor\\n')\n"
        "print('python again', flush=True)\n"
        "os.system('echo system')\n"
        "subprocess.run(['echo', 'subprocess'])\n"
        "libc.puts(b'libc'); libc.fflush(None)\n"
        "sys.__stdout__.write('dunder\\n')\n"
        "print('last')"
    )
    expected = ["python", "descriptor", "python again", "system", "subprocess", "libc", "dunder", "last"]
    said = live.run(cell).ok().stdout
    assert said == "".join(f"[0-1] {line}\n" for line in expected)


def test_unflushed_c_output(live: Notebook) -> None:
    """What C code left in its buffer is shown with the cell that wrote it."""
    cell = "%%distributed\nimport ctypes\nctypes.CDLL(None).puts(b'never flushed'); None"
    assert live.run(cell).ok().stdout == "[0-1] never flushed\n"


def test_child_processes(live: Notebook) -> None:
    """Processes that a rank forks print under its label."""
    cell = (
        "%%distributed\n"
        "import torch.multiprocessing as mp\n"
        "def speak(who): print('child of', who)\n"
        "p = mp.get_context('fork').Process(target=speak, args=(rank,)); p.start(); p.join()\n"
        "print('joined', p.exitcode)"
    )
    said = live.run(cell).ok().stdout
    assert _lines_of(said, 0) == ["child of 0", "joined 0"]
    assert _lines_of(said, 1) == ["child of 1", "joined 0"]


def test_partial_lines(live: Notebook) -> None:
    """Pieces of a line make one line, and an unfinished last line is shown when the cell ends."""
    cell = "%%distributed\nprint('a', end=''); print('b', end=' '); print('c')\nprint('no newline', end='')"
    assert live.run(cell).ok().stdout == "[0-1] ab c\n[0-1] no newline\n"
    assert live.run("%%distributed\nprint('next')").ok().stdout == "[0-1] next\n"


def test_stdout_and_stderr_keep_their_order(live: Notebook) -> None:
    """Lines on stdout and stderr appear in the order in which the rank wrote them."""
    cell = "%%distributed\nimport sys\nfor i in range(3):\n    print('out', i); print('err', i, file=sys.stderr)"
    assert live.run(cell).ok().outputs == [
        (kind, f"[0-1] {name} {i}\n") for i in range(3) for kind, name in (("stdout", "out"), ("stderr", "err"))
    ]


def test_lines_stream_live(live: Notebook) -> None:
    """A line is shown while the cell still runs."""
    live.start("%%distributed\nimport os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)")
    live.wait_for_output("[0-1] begun", timeout=5)
    (live.folder / "work" / "go").touch()
    live.wait().ok()
    (live.folder / "work" / "go").unlink()


def test_dots_stream_live(live: Notebook) -> None:
    """A line that grows without newline or flush, as `print('.', end='')`, is seen to grow."""
    live.start(
        "%%on_rank 0\nimport os, time\nprint('dots', end='')\nprint('..', end='')\n"
        "while not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    )
    try:
        live.wait_for_output("[0] dots..", timeout=5)
    finally:
        if live.is_usable:
            (live.folder / "work" / "go").touch()
    assert live.wait().ok().stdout == "[0] dots..done\n"
    (live.folder / "work" / "go").unlink()


def test_many_lines(live: Notebook) -> None:
    """Of 20,000 lines from each of two ranks none is lost, and each rank's are in order."""
    said = live.run("%%distributed\nfor i in range(20_000): print(f'line {i} of {rank}')").ok().stdout
    for rank in (0, 1):
        assert _lines_of(said, rank) == [f"line {i} of {rank}" for i in range(20_000)]


def test_many_lines_on_both_streams(live: Notebook) -> None:
    """Lines that alternate between the streams come complete and in order on each."""
    outcome = live.run(
        "%%distributed\nimport sys\nfor i in range(2_000): print(rank, i, file=sys.stderr if i % 2 else sys.stdout)"
    ).ok()
    for rank in (0, 1):
        assert _lines_of(outcome.stdout, rank) == [f"{rank} {i}" for i in range(0, 2_000, 2)]
        assert _lines_of(outcome.stderr, rank) == [f"{rank} {i}" for i in range(1, 2_000, 2)]


def test_output_after_the_cell(live: Notebook) -> None:
    """What a rank prints when no cell runs is shown in the next one."""
    live.run("%%on_rank 0\nimport threading\nt = threading.Timer(0.1, print, ['late']); t.start()").ok()
    said = live.run("%%on_rank 0\nt.join()").ok().stdout
    assert poll(lambda: said == "[0] late\n" or "[0] late\n" in live.run("%%on_rank 0\nNone").stdout, 5)


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_last_words(live: Notebook, end: str) -> None:
    """What a rank printed just before its process ended is shown, even without a newline."""
    cell = f"%%distributed\nimport os\nif rank == 1:\n    print('whole line'); print('last words', end=''); {end}"
    outcome = live.run(cell)
    outcome.failed("WorkerDied")
    assert outcome.stdout == "[1] whole line\n[1] last words\n"


def test_closed_streams(live: Notebook) -> None:
    """A cell that closes sys.stdout or sys.stderr, takes them apart, or redirects them does not break the worker."""
    cell = (
        "%%distributed\nimport contextlib, io, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()) as f: print('held')\nf.getvalue()"
    )
    assert live.run(cell).ok().texts == ["[0-1] 'held\\n'"]
    live.run("%%on_rank 0\nsys.stdout.close(); sys.stderr.close()").ok()
    said = live.run("%%distributed\nprint('out'); print('err', file=sys.stderr); rank").ok()
    assert (said.texts, said.stdout, said.stderr) == (["[0] 0", "[1] 1"], "[0-1] out\n", "[0-1] err\n")
    live.run("%%distributed\nio.TextIOWrapper(sys.stdout.detach())").failed("UnsupportedOperation")
    assert live.run("%%distributed\nprint('out')").ok().stdout == "[0-1] out\n"


def test_pages(live: Notebook) -> None:
    """What IPython would show in the front end's pager is printed."""
    said = without_colours(live.run("%%distributed\nimport os\nos.path.basename?").ok().stdout)
    assert "[0-1] Docstring: Returns the final component of a pathname" in said


# ---- lines that are overwritten ----


def test_carriage_return(live: Notebook) -> None:
    """Of a line that is overwritten by hand, the last state stays."""
    cell = "%%distributed\nfor i in range(101): print(f'\\r{i} %', end='')\nprint()"
    assert live.run(cell).ok().stdout == "[0-1] 100 %\n"


# ---- rich displays ----


def test_displays_between_prints(live: Notebook) -> None:
    """Displays stand where the rank made them, between its prints on both streams."""
    cell = (
        "%%distributed\nimport sys\nfrom IPython.display import HTML, display\n"
        "print('one'); display(HTML('<b>two</b>')); print('three', file=sys.stderr); display('four')\n"
        "print('five')\n'six'"
    )
    outputs = live.run(cell).ok().outputs
    assert [kind for kind, _ in outputs] == ["stdout", "display", "stderr", "display", "stdout", "display"]
    assert [what for kind, what in outputs if kind != "display"] == [
        "[0-1] one\n",
        "[0-1] three\n",
        "[0-1] five\n",
    ]
    shown = [what for kind, what in outputs if kind == "display"]
    assert "<b>two</b>" in shown[0]["text/html"]
    assert "[0-1]" in shown[0]["text/html"]
    assert [bundle["text/plain"] for bundle in shown[1:]] == ["[0-1] 'four'", "[0-1] 'six'"]


def test_figure(live: Notebook) -> None:
    """A matplotlib figure of a rank appears as an image under the rank's label."""
    live.run("import matplotlib.pyplot as plt").ok()
    live.run("%nbsync restart").ok()
    outcome = live.run("%%on_rank 1\nplt.plot([1, 2]); plt.title('t'); plt.show(); print('shown')").ok()
    assert outcome.stdout == "[1]\n[1] shown\n"
    (bundle,) = outcome.of_ranks
    assert bundle["image/png"].startswith("iVBOR")
    by_itself = live.run("%%distributed\nfig, ax = plt.subplots(); ax.plot([rank, 2]);").ok()  # no show(): at the end
    assert [bundle["image/png"][:5] for bundle in by_itself.of_ranks] == ["iVBOR", "iVBOR"]
    assert sorted(by_itself.stdout.splitlines()) == ["[0]", "[1]"]


def test_pandas(live: Notebook) -> None:
    """A data frame is shown as a table under its label, equal ones once."""
    live.run("%%distributed\nimport pandas as pd\ndist.barrier()").ok()
    cell = "%%distributed\ndisplay(pd.DataFrame({'a': [1]}))\npd.DataFrame({'b': [rank]})"
    both, first, second = live.run(cell).ok().of_ranks
    assert "<table" in both["text/html"]
    assert "[0-1]" in both["text/html"]
    assert both["text/plain"].startswith("[0-1]\n")
    assert "[0]" in first["text/html"]
    assert "[1]" in second["text/html"]


def test_other_kinds(live: Notebook) -> None:
    """Markdown, LaTeX, JSON, SVG and images arrive in their own kind, labelled."""
    cell = (
        "%%on_rank 0\nfrom IPython.display import SVG, Image, JSON, Latex, Markdown, display\nimport base64\n"
        "png = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhg'\n"
        "                       'GAWjR9awAAAABJRU5ErkJggg==')\n"
        "display(Markdown('**bold**')); display(Latex('$x$')); display(JSON({'a': 1}))\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>')); display(Image(png))"
    )
    outcome = live.run(cell).ok()
    kinds = ["text/markdown", "text/latex", "application/json", "image/svg+xml", "image/png"]
    assert len(outcome.of_ranks) == len(kinds)
    assert all(kind in bundle for kind, bundle in zip(kinds, outcome.of_ranks, strict=True))
    assert outcome.of_ranks[0]["text/markdown"] == "**bold**"
    assert outcome.stdout == "[0]\n" * len(kinds)


def test_update_display(live: Notebook) -> None:
    """A display with an id is updated in place on each rank, also by a later cell."""
    cell = (
        "%%distributed\nfrom IPython.display import display, update_display\n"
        "display(f'first {rank}', display_id='place')\nprint('between')\n"
        "update_display(f'second {rank}', display_id='place')"
    )
    outcome = live.run(cell).ok()
    assert sorted(outcome.texts) == ["[0] 'second 0'", "[1] 'second 1'"]
    cell = "%%on_rank 0\nhandle = display('h1', display_id=True)\nhandle.update('h2'); handle.update('h3')"
    assert live.run(cell).ok().texts == ["[0] 'h3'"]
    later = live.run("%%on_rank 0\nhandle.update('h4')").ok()
    assert later.displays == []
    assert [bundle["text/plain"] for bundle in later.history] == ["[0] 'h4'"]


def test_clear_output(live: Notebook) -> None:
    """clear_output wipes what the cell has shown; all ranks together clear once."""
    cell = (
        "%%on_rank 0\nfrom IPython.display import clear_output\n"
        "for i in range(4):\n    clear_output(wait=True); print(i)"
    )
    assert live.run(cell).ok().stdout == "[0] 3\n"
    cell = (
        "%%distributed\nfrom IPython.display import clear_output\n"
        "for i in range(4):\n    dist.barrier(); clear_output(wait=True); dist.barrier(); print(i)"
    )
    assert live.run(cell).ok().stdout == "[0-1] 3\n"


def test_an_unfinished_line_after_clear_output(live: Notebook) -> None:
    """What was cleared away does not keep the next unfinished line, or the same one, from being shown."""
    outcome = live.run(
        "%%on_rank 0\nimport sys, time\nfrom IPython.display import clear_output\n"
        "print('before', end='', flush=True); time.sleep(1.5); clear_output(); print()\n"
        "print('after', end='', flush=True); time.sleep(1.5); print('.')"
    ).ok()
    assert any("after" in bundle.get("text/plain", "") for bundle in outcome.history), outcome.history
    assert {"text/plain": ""} in outcome.displays, "the cell has no place for it: it was an update of what is gone"


# ---- warnings and logging ----


def test_warnings(live: Notebook) -> None:
    """A warning of a rank is on stderr, with its category and source line, once for equal ones."""
    said = live.run("%%distributed\nimport warnings\nwarnings.warn('careful', RuntimeWarning)").ok()
    assert said.stdout == ""
    assert re.search(r"^\[0-1\] .*:3: RuntimeWarning: careful$", said.stderr, re.MULTILINE)
    assert "[0-1]   warnings.warn('careful', RuntimeWarning)" in said.stderr


_UNUSED = """%%distributed
from torch.nn.parallel import DistributedDataParallel as DDP
model = DDP(torch.nn.Linear(2, 2), find_unused_parameters=True)
model(torch.ones(1, 2)).sum().backward()
"""


def test_warnings_of_torch(live: Notebook) -> None:
    """Its C++ tells rank and time with each. The label has the ranks, and equal ones show once, with one time."""
    said = live.run(_UNUSED).ok().stderr
    assert re.fullmatch(r"\[0-1\] \[W\d{4} [\d:.]+ reducer.cpp:\d+\] Warning: find_unused.*\n\s*", said), said


@pytest.mark.parametrize(
    "line",
    [
        "[E0007 0.250 loss] step done",
        "[W1128 05:45:01.98 mine] done",
        "  [W1128 05:45:01.98 reducer.cpp:1529] Warning: deeper in",
        "[rank1]: loss 0.25",
        "epoch 1 [W1128 05:45:01.98 reducer.cpp:1529] Warning",
    ],
)
def test_lines_of_the_users_that_are_like_torchs(line: str) -> None:
    """No number of theirs is taken for a time: ranks that differ in it are shown apart."""
    assert without_time(without_rank(line)) == line


def test_logging_set_up_in_the_notebook(notebook: Notebook) -> None:
    """Handlers made in the notebook before the start write to the rank's stream, at once and in order."""
    notebook.run("%nbsync stop").ok()
    notebook.run(
        "import logging, sys\nlog = logging.getLogger('mine'); log.setLevel('INFO'); log.propagate = False\n"
        "log.addHandler(logging.StreamHandler(sys.stdout)); log.addHandler(logging.StreamHandler())"
    ).ok()
    said = notebook.run("%%distributed -n 2\nprint('before'); log.info('from %d', rank); print('after')").ok()
    for rank in (0, 1):
        assert _lines_of(said.stdout, rank) == ["before", f"from {rank}", "after"]
        assert _lines_of(said.stderr, rank) == [f"from {rank}"]
    assert notebook.run("log.info('notebook itself')").ok().stdout == "notebook itself\n"
