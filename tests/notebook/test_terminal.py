"""The view where there is no notebook: redrawn lines in a terminal, the last state in a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

LIMIT = 60
CELL = (
    "import time\\nfrom tqdm import tqdm\\nfor i in tqdm(range(8), desc='b'):\\n    time.sleep(0.1)\\n"
    "    if i == 4: print('between')"
)
SCRIPT = """
import time
import nbsync
from tqdm import tqdm

def work():
    for i in tqdm(range(6), desc="b"):
        time.sleep(0.1)

if __name__ == "__main__":
    nbsync.notebook_launcher(work, num_processes=2)
    print("after")
"""


def screen(text: str) -> list[str]:
    """What a terminal shows of it: it moves up and clears what is below where it is told to, and knows no more."""
    lines, row = [""], 0
    for piece in re.split(r"(\r\n|\n|\x1b\[\d+A|\x1b\[J)", text):
        if piece in ("\r\n", "\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[J":
            lines = lines[: row + 1]
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", piece):
            row -= int(up[1])
            assert row >= 0
        else:
            assert "\x1b" not in piece, piece
            lines[row] += piece
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[pexpect.spawn[str]]:
    """IPython in a terminal of 24 lines and 100 columns, with two ranks."""
    environ = {**os.environ, "TERM": "xterm", "IPYTHONDIR": str(tmp_path)}
    options = ["-m", "IPython", "--simple-prompt", "--colors=NoColor", "--no-banner"]
    child = pexpect.spawn(
        sys.executable, options, dimensions=(24, 100), encoding="utf-8", timeout=LIMIT, env=environ, echo=False
    )
    try:
        child.expect(r"In \[1\]: ")
        child.sendline("%load_ext nbsync")
        child.expect(r"In \[2\]: ")
        child.sendline("%nbsync start -n 2")
        child.expect(r"In \[3\]: ")
        yield child
        child.sendline("exit")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)


def run(terminal: pexpect.spawn[str], code: str) -> str:
    """What the terminal was sent until the next prompt."""
    terminal.sendline(f"get_ipython().run_cell_magic('distributed', '', {code})")
    terminal.expect(r"In \[\d+\]: ")
    sent: str = terminal.before
    return sent


def test_terminal_ipython(terminal: pexpect.spawn[str]) -> None:
    """Bars are redrawn in their place below the output, and stay at the end."""
    sent = run(terminal, f'"{CELL}"')
    assert sent.count("\x1b[2A") > 3
    shown = screen(sent)
    assert shown[0] == "[0-1] between"
    assert [line.split("|")[0] for line in shown[1:]] == ["[0] b: 100%", "[1] b: 100%"]
    many = "from tqdm import tqdm\\nimport time\\nbars = [tqdm(total=9, desc=f'b{i}') for i in range(16)]"
    sent = run(terminal, f'"{many}\\ntime.sleep(0.8)\\nfor b in bars: b.close()"')
    assert max(int(up) for up in re.findall(r"\x1b\[(\d+)A", sent)) == 23, "what has scrolled out cannot be redrawn"
    assert sum("b15:" in line for line in screen(sent)) == 2, "each once, whatever was drawn in between"


def test_a_script_whose_output_goes_to_a_file(tmp_path: Path) -> None:
    """Only the last state is written, without codes."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "after\n"
    assert [line.split("|")[0] for line in done.stderr.splitlines()] == ["[0] b: 100%", "[1] b: 100%"]
    assert "\x1b" not in done.stderr
