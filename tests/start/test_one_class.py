"""A class that was defined after the start goes by value, and is one class to the notebook and all ranks."""

from __future__ import annotations

import pytest
from started import GUARD, METHODS, Started

from notebooks import Notebook

_DEFINED = """
import dataclasses, datetime, enum, typing
@dataclasses.dataclass
class Result:
    loss: float = 1.0
class Trained(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
class TooLarge(ValueError):
    pass
class Span(typing.NamedTuple):
    a: int
class LongSpan(Span):
    def double(self):
        return 2 * self.a
class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 1
result, trained, span, day = Result(2.0), Trained(), LongSpan(3), Day.FIRST
"""


def test_there_and_back(started: Started) -> None:
    """What comes back is of the notebook's own class; on the ranks what comes again is of the same one as before."""
    notebook = started.notebook
    notebook.run(_DEFINED).ok()
    assert not notebook.run("%nbsync push Result\n%nbsync push result trained span day TooLarge").ok().stderr
    cell = "isinstance(result, Result), result == Result(2.0), span.double(), day.year"
    assert started.run(cell).ok().texts == ["[0-1] (True, True, 6, 2020)"]
    started.run("result.loss = Result(float(rank)).loss").ok()
    notebook.run("back = nbsync.session().pull('result', 'trained', 'span', 'day')").ok()
    cell = (
        "[type(r) is Result for r, *_ in back], back[1][0] == Result(1.0), "
        "[(isinstance(t, Trained), isinstance(s, LongSpan), d is day) for _, t, s, d in back]"
    )
    assert notebook.run(cell).ok().texts == ["([True, True], True, [(True, True, True), (True, True, True)])"]
    assert notebook.run("nbsync.session().call(lambda r: r, result, ranks=1) == [result]").ok().texts == ["True"]


def test_error_is_caught(started: Started) -> None:
    """`except` in the notebook catches what a rank raises of a class that was pushed."""
    notebook = started.notebook
    notebook.run("class Late(ValueError):\n    pass\n%nbsync push Late").ok()
    cell = "try:\n    nbsync.session().run_cell('raise Late')\nexcept Late:\n    print('caught')"
    assert notebook.run(cell).ok().stdout == "caught\n"


def test_redefined(started: Started) -> None:
    """A cell that is run again makes another class, on the ranks too; instances of the old one keep theirs."""
    notebook = started.notebook
    cell = "class Thing:\n    pass\nthing = Thing()"
    notebook.run(cell).ok()
    notebook.run("old = thing\n%nbsync push old").ok()
    notebook.run(cell).ok()
    notebook.run("%nbsync push thing Thing\n%nbsync push old").ok()
    assert started.run("isinstance(thing, Thing), isinstance(old, Thing)").ok().texts == ["[0-1] (True, False)"]
    notebook.run("%nbsync pull old --ranks 1").ok()
    assert notebook.run("isinstance(old, Thing)").ok().texts == ["False"]


@pytest.mark.parametrize("is_new", [True, False], ids=["after", "before"])
def test_patched(started: Started, is_new: bool) -> None:
    """A class that is pushed by name becomes as it is in the notebook; what a rank does to its own stays there."""
    notebook = started.notebook
    code = "class Config:\n    rate = 1\nconfig = Config()"
    notebook.run(code if is_new else f"{code}\n%nbsync restart", GUARD).ok()
    notebook.run("%nbsync push config").ok()
    notebook.run("Config.rate, Config.text = 2, lambda self: str(self.rate)").ok()
    notebook.run("%nbsync push config").ok()
    assert started.run("config.rate, hasattr(config, 'text')").ok().texts == ["[0-1] (1, False)"]
    notebook.run("%nbsync push Config").ok()
    assert started.run("config.rate, config.text()").ok().texts == ["[0-1] (2, '2')"]
    started.run("Config.rate = 10 + rank").ok()
    notebook.run("fetched = nbsync.session().pull('Config', 'Config.rate')").ok()
    cell = "[cls is Config for cls, _ in fetched], [rate for _, rate in fetched], Config.rate"
    assert notebook.run(cell).ok().texts == ["([True, True], [10, 11], 2)"]


def test_defined_on_the_ranks(started: Started) -> None:
    """What each rank has defined by one cell is one class to the notebook, and back on a rank it is the rank's own."""
    notebook = started.notebook
    cell = "import dataclasses\n@dataclasses.dataclass\nclass Mine:\n    x: int = 1\nmine = Mine(5)"
    started.run(cell).ok()
    notebook.run("both = nbsync.session().pull('mine')\nfirst = both[0]\n%nbsync push first").ok()
    assert notebook.run("type(both[0]) is type(both[1]), both[0] == both[1]").ok().texts == ["(True, True)"]
    assert started.run("isinstance(first, Mine), first == mine").ok().texts == ["[0-1] (True, True)"]
    started.run(cell).ok()
    notebook.run("%nbsync pull mine --ranks 0").ok()
    assert notebook.run("type(mine) is type(first)").ok().texts == ["False"]
    started.run("@dataclasses.dataclass\nclass Mine:\n    x: int = rank\nmine = Mine()").ok()
    notebook.run("%nbsync pull mine").ok()
    assert notebook.run("type(mine[0]) is type(mine[1])").ok().texts == ["False"]


@pytest.mark.parametrize("method", METHODS[:2])
def test_defined_before_the_start(fresh_notebook: Notebook, method: str) -> None:
    """So are classes inside of classes, and an old one that only an instance still has; and on a rank that is new."""
    fresh_notebook.run("import nbsync, torch\n%load_ext nbsync").ok()
    fresh_notebook.run("class Outer:\n    class Inner:\n        pass\nold = Outer()").ok()
    fresh_notebook.run("class Outer:\n    class Inner:\n        pass\ninner = Outer.Inner()").ok()
    fresh_notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
    fetch = "fetched = nbsync.session().pull('inner', 'old')"
    check = "{(isinstance(i, Outer.Inner), type(o) is type(old), isinstance(o, Outer)) for i, o in fetched}"
    assert fresh_notebook.run(f"{fetch}\n{check}").ok().texts == ["{(True, True, False)}"]
    fresh_notebook.run("class Late: pass\nlate = Late()\n%nbsync push late Late --ranks 0").ok()
    fresh_notebook.run("%nbsync restart --ranks 1", GUARD).ok()
    assert fresh_notebook.run(f"{fetch}\n{check}").ok().texts == ["{(True, True, False)}"]
    fresh_notebook.run("%nbsync push late\n%nbsync pull late").ok()
    assert fresh_notebook.run("[isinstance(each, Late) for each in late]").ok().texts == ["[True, True]"]
    assert fresh_notebook.run("%%distributed\nisinstance(late, Late)").ok().texts == ["[0-1] True"]


@pytest.mark.parametrize("method", METHODS[:2])
def test_redefined_before_a_rank_is_replaced(fresh_notebook: Notebook, method: str) -> None:
    """Older ranks have the class that was, a new one has what is; the notebook tells them apart."""
    fresh_notebook.run("import nbsync, torch\n%load_ext nbsync\nclass Model: pass\nold = Model").ok()
    fresh_notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
    fresh_notebook.run("class Model: pass\n%nbsync restart --ranks 1", GUARD).ok()
    fresh_notebook.run("fetched = nbsync.session().pull('Model()', 'old()')").ok()
    cell = "type(fetched[0][0]) is old, type(fetched[1][0]) is Model, {type(o) is old for _, o in fetched}"
    assert fresh_notebook.run(cell).ok().texts == ["(True, True, {True})"]
    fresh_notebook.run("sent = [Model(), old()]\n%nbsync push sent").ok()
    cell = "%%distributed\ntype(sent[0]) is Model, type(sent[1]) is old, old is Model"
    assert fresh_notebook.run(cell).ok().texts == ["[0] (False, True, True)", "[1] (True, True, False)"]


def test_nothing_is_kept(started: Started) -> None:
    """Redefinitions that travel leave nothing behind, in the notebook and on the ranks."""
    notebook = started.notebook
    count = (
        "import gc, nbsync.protocol.idents as idents\ngc.collect()\nsum(1 for cls in object.__subclasses__() if "
        "cls.__name__ == 'Passing') + sum(getattr(idents.find(i), '__name__', '') == 'Passing' "
        "for i in list(idents._by_ident))"
    )
    loop = (
        "for n in range({}):\n    class Passing:\n        def f(self): return Passing\n    passing = Passing()\n"
        "    nbsync.session().push(dict(passing=passing))\n    passing = nbsync.session().pull('passing', ranks=0)\n"
    )
    notebook.run(loop.format(30), GUARD).ok()
    assert notebook.run(count).ok().texts == ["2"]
    assert started.run(count).ok().texts == ["[0-1] 2"]


def test_attrs(started: Started) -> None:
    """The methods that attrs makes have a copy of the notebook's namespace as their globals."""
    pytest.importorskip("attrs")
    notebook = started.notebook
    cell = (
        "import attrs\n@attrs.frozen\nclass Config:\n    x: int = attrs.field(default=1, converter=int)\n"
        "    y: list = attrs.field(factory=list, eq=False)\nConfig.FIRST = Config(7)\n"
    )
    notebook.run(f"{cell}config = Config(5)\n%nbsync push config Config").ok()
    check = "config == Config('5'), Config.FIRST, hash(config) == hash(Config(5))"
    assert started.run(check).ok().texts == ["[0-1] (True, Config(x=7, y=[]), True)"]
    assert notebook.run("nbsync.session().pull('config') == [config, config]").ok().texts == ["True"]
    started.run(f"{cell}config = Config(rank)").ok()
    assert notebook.run("nbsync.session().pull('config')").ok().texts == ["[Config(x=0, y=[]), Config(x=1, y=[])]"]
    assert notebook.run("type(nbsync.session().pull('config')[1]).FIRST.x").ok().texts == ["7"]
