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

#: Classes that are not sent like others.
SORTS = """
import enum, typing
class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"
    __str__ = lambda self: self.value
class Planet(enum.Enum):
    EARTH = (1.0, 2.0)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius
    def ratio(self):
        return self.mass / self.radius
class Access(enum.IntFlag):
    R = 1
    W = 2
class Pair(typing.NamedTuple):
    a: int
    b: int = 2
    def total(self):
        return self.a + self.b
class Options(typing.TypedDict, total=False):
    a: int
UserId = typing.NewType("UserId", int)
Params = typing.ParamSpec("Params")
def look_up(user: UserId, then: typing.Callable[Params, None] = None):
    return user
mode, planet, both, pair, options = Mode.FAST, Planet.EARTH, Access.R | Access.W, Pair(1), Options
"""

#: Variables of which some cannot be rebuilt, or hold what cannot.
BROKEN = """
import enum, torch
class Broken:
    def __init__(self):
        self.x = 1
    def __setstate__(self, state):
        raise ValueError("not here")
class Colour(enum.Enum):
    RED = 1
x = 5
def f():
    return x
t = torch.ones(2)
net = torch.nn.Linear(2, 1)
broken = Broken()
first = [f, t, net, Colour.RED, broken]
del broken, f, t, net
ring = []
ring.append([ring, first[4]])
_, t, net, _, broken = first
f, tail, colour = first[0], t[1:], Colour.RED
optimizer = torch.optim.SGD(net.parameters(), 0.1)
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
