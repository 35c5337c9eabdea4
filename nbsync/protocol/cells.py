"""The notebook's cells, as IPython in this process knows them. It is not imported for that."""

from __future__ import annotations

import os
import sys
from typing import Any


def ipython_shell() -> Any:
    """IPython's shell, or None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def code_name(filename: str) -> tuple[str, str] | None:
    """`("Cell", "In[3]")` for a cell's code, None for a file."""
    shell = ipython_shell()
    found: tuple[str, str] | None = shell.compile.format_code_name(filename) if shell is not None else None
    return found


def describe_file(filename: str) -> str:
    """`Cell In[3]` for a cell's code, `train.py` for a file."""
    name = code_name(filename)
    return " ".join(name) if name else os.path.basename(filename)
