"""The live view in a terminal: some lines below the output, redrawn in their place."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbsync.kernel.state import Snapshot


class TerminalView:
    """Draws on stderr, as tqdm does. Where that is no terminal, only the last state is written."""

    def __init__(self) -> None:
        self._height = 0

    def draw(self, snapshot: Snapshot, final: bool) -> None:
        """Replace what is drawn; the `final` lines stay."""
        is_terminal = sys.stderr.isatty()
        if not (final or is_terminal):
            return
        from nbsync.kernel.view.barlines import MOST_LINES, lines_of  # imports tqdm

        self.erase()
        size = shutil.get_terminal_size((100, 24))
        # What has scrolled out at the top cannot be redrawn.
        lines = lines_of(snapshot, size.columns - 1, MOST_LINES if final else max(1, min(MOST_LINES, size.lines - 1)))
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._height = len(lines) if is_terminal and not final else 0

    def erase(self) -> None:
        """Make room for output."""
        if self._height:
            sys.stderr.write(f"\x1b[{self._height}A\x1b[J")
            sys.stderr.flush()
            self._height = 0
