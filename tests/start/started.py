"""`Started`: a kernel with two ranks, and what it had before they were started."""

from __future__ import annotations

from dataclasses import dataclass

from notebooks import Notebook, Outcome

GUARD = 40.0  # seconds: only to tell a hang from a slow machine
METHODS = ("fork", "forkserver", "spawn")

#: What the notebook has before the workers start.
NOTEBOOK = """
import collections, math, os, sqlite3, threading, nbsync, torch
import helper_module
from dataclasses import dataclass
big = torch.arange(300_000, dtype=torch.float64)
tail = big[-3:]
counts = collections.Counter("abca")
database = sqlite3.connect(":memory:")
def numbers():
    yield 1
generator = numbers()
class NotNegative(Exception):
    pass
@dataclass
class Point:
    x: float
    y: float = 0.0
    def length(self):
        return math.hypot(self.x, self.y) * scale
scale = 2
point = Point(3.0, 4.0)
def check(value):
    if value < 0:
        raise NotNegative(f"{value} is negative")
    return value * scale
_private = "mine"
net = torch.nn.Linear(3, 1)
optimizer = torch.optim.Adam(net.parameters())
"""


@dataclass
class Started:
    """A kernel with two ranks that were started by `method`."""

    notebook: Notebook
    method: str
    said: str

    @property
    def is_copy(self) -> bool:
        """Whether the workers have everything of the notebook, also what cannot be sent."""
        return self.method == "fork"

    def run(self, code: str, timeout: float = GUARD) -> Outcome:
        """A cell on all ranks."""
        return self.notebook.run(f"%%distributed\n{code}", timeout)
