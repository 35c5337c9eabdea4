"""tqdm in a worker: its bars are told to the kernel, which shows those of all ranks in one view.

tqdm's own class is changed, since the user's code and libraries hold references to it: whatever is or derives from
`tqdm.tqdm`, `tqdm.auto.tqdm` or `tqdm.notebook.tqdm` is covered. How often a bar moves, and when, stays tqdm's affair,
so a loop costs what it costs anyway.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable
from string import Formatter
from typing import Any
from weakref import WeakSet

import tqdm.notebook  # in the kernel already, where the fork copies it from

from nbsync.protocol.reports import Bar
from nbsync.worker.feed import Feed

_FILE = 4  # the place of `file` among the arguments of tqdm, after iterable, desc, total and leave
_LONGEST = 200  # characters of a name or postfix: a view has room for fewer
_WIDGET_METHODS = ("__init__", "__iter__", "update", "close", "clear", "reset", "display", "status_printer", "colour")

_TEXT_FIELDS = {None, "desc", "postfix"}  # None: text after the last field

_numbers = itertools.count()


class _Nowhere(io.StringIO):
    """What a shown bar writes to: nothing of it is kept."""

    encoding = "utf-8"  # else tqdm draws in ASCII

    def write(self, text: str) -> int:
        return len(text)


def show_bars(feed: Feed, is_ours: Callable[[Any], bool]) -> None:
    """Tell the kernel of every bar that would be written to this rank's stdout or stderr.

    Args:
        is_ours: whether a file is one of these two.
    """
    _use_plain_class()
    bar = tqdm.std.tqdm
    _forget_inherited(bar)
    init, display = bar.__init__, bar.display

    @functools.wraps(init)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        file = args[_FILE] if len(args) > _FILE else kwargs.get("file")
        if feed.shows_bars and feed.is_mine and is_ours(sys.stderr if file is None else file):
            if len(args) > _FILE:
                args = (*args[:_FILE], _Nowhere(), *args[_FILE + 1 :])
            else:
                kwargs["file"] = _Nowhere()
            self.nbsync_number = None  # it is not known yet whether it is disabled
        init(self, *args, **kwargs)

    @functools.wraps(display)
    def show(self: Any, msg: str | None = None, pos: int | None = None, **options: Any) -> Any:
        if not hasattr(self, "nbsync_number"):
            return display(self, msg, pos)
        if self.nbsync_number is None:
            _check_format(self.bar_format)
            self.nbsync_number = next(_numbers)
            feed.add_bar(self.nbsync_number)
        if not self.disable:
            if msg != "":  # that only makes room for text, which goes its own way here
                later = functools.partial(_look_later, self, self.nbsync_number)
                feed.bar(self.nbsync_number, later if _counts_plainly(self) else look_at(self, self.nbsync_number))
        elif msg == "":
            feed.remove_bar(self.nbsync_number)
        else:
            feed.bar(self.nbsync_number, look_at(self, self.nbsync_number))
        return True

    bar.__init__, bar.display = make, show
    # Bars that are written as text would move the cursor up and down; here they take turns on one line.
    bar.moveto = lambda self, n: None


def _forget_inherited(bar: Any) -> None:
    """The notebook's monitor, whose thread the fork did not copy, its bars, and its lock.

    All copies of the notebook would share that: a rank that ends while it holds the lock would stop them all.
    """
    for kind in [bar, *_subclasses(bar)]:  # it is noted at the class that was used first
        kind.monitor = None
    bar._instances = WeakSet()
    bar.set_lock(threading.RLock())


def _subclasses(cls: Any) -> list[Any]:
    direct: list[Any] = cls.__subclasses__()
    return [*direct, *(each for one in direct for each in _subclasses(one))]


def look_at(bar: Any, number: int) -> Bar:
    """The state of a bar of tqdm, in plain numbers and text, whatever the user's code counts with."""
    scale = _number(bar.unit_scale)
    factor = scale or 1
    steps, seconds = _number(bar._ema_dn()) or 0, _number(bar._ema_dt())
    started = getattr(bar, "start_t", None)  # tqdm sets it last, after the bar was shown for the first time
    total = _number(bar.total)
    return Bar(
        number,
        _text(bar.desc).removesuffix(": "),
        (_number(bar.n) or 0) * factor,
        None if total is None else total * factor,
        0.0 if started is None else bar._time() - started,
        steps * factor / seconds if seconds else None,
        time.monotonic(),
        _text(bar.unit),
        scale == 1,
        _number(bar.unit_divisor) or 1000,
        _text(bar.postfix),
        closed=bool(bar.disable),
        text=_text_alone(bar),
    )


def _look_later(bar: Any, number: int) -> Bar | None:
    """As `look_at`, in the helper thread, where nothing of the user's may be called.

    Returns:
        None for a bar that counts with other things than numbers: a tensor on a GPU would be waited for there, or set
        up CUDA. The user's thread looks at such a bar when tqdm would draw it next.
    """
    return look_at(bar, number) if _counts_plainly(bar) else None


def _counts_plainly(bar: Any) -> bool:
    averages = (getattr(average, "last", None) for average in (bar._ema_dn, bar._ema_dt))
    return all(map(_is_plain, (bar.n, bar.total, bar.unit_scale, bar.unit_divisor, *averages)))


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return value is None or kind in (int, float, bool) or (kind.__module__ == "numpy" and hasattr(kind, "item"))


def _check_format(form: Any) -> None:
    """Raise what tqdm raises for a format that is malformed."""
    if isinstance(form, str):
        list(Formatter().parse(form))


def _text_alone(bar: Any) -> str | None:
    """The text of a bar that its format makes a line of text."""
    form = bar.bar_format
    if not isinstance(form, str):
        return None
    try:
        fields = {field for _, field, _, _ in Formatter().parse(form)}
    except ValueError:  # malformed, and set only after the bar was made
        return None
    if not fields <= _TEXT_FIELDS:
        return None
    return form.replace("{desc}", _text(bar.desc)).replace("{postfix}", _text(bar.postfix))[:_LONGEST]


def _number(value: Any) -> float | None:
    try:
        number = value if type(value) is int else float(value)
        return number if math.isfinite(number) else None
    except Exception:  # tqdm takes anything that can be added up, and what converts it is the user's: all may be raised
        return None


def _text(value: Any) -> str:
    return str(value)[:_LONGEST] if isinstance(value, str | int | float) else ""


def _use_plain_class() -> None:
    """Make the notebook flavour of tqdm, as `tqdm.auto` chose it in the kernel, behave like the plain one."""
    flavour = tqdm.notebook.tqdm_notebook
    for name in _WIDGET_METHODS:
        if name in vars(flavour):
            delattr(flavour, name)
