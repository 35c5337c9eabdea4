"""Row 50: no decision of nbsync hangs on the wall clock, which jumps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nbsync

PACKAGE = Path(nbsync.__file__).parent
WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "now", "utcnow", "today"}
# The age of a file, which only the wall clock gives: a jump of the clock leaves a folder for the next sweep.
ALLOWED = {"kernel/scratch.py": 1}


def _uses(path: Path) -> list[str]:
    """Every use of a wall clock in the source: `time.time`, `datetime.now`, `from time import time`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in WALL and isinstance(node.value, ast.Name):
            if node.value.id in ("time", "datetime", "date"):
                found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in WALL]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_monotonic_clocks(path: Path) -> None:
    """Waits, limits and ages are measured by clocks that never jump."""
    uses = _uses(path)
    assert len(uses) == ALLOWED.get(path.relative_to(PACKAGE).as_posix(), 0), uses
