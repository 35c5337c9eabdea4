"""What is unpickled without a trial, and what is not: the common values must cost nothing."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import pathlib
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nbsync.kernel.trial import unpack_safely
from nbsync.protocol.familiar import FamiliarUnpickler, find_path
from nbsync.protocol.serial import Common, Unfamiliar, pack, unpack
from nbsync.testing.inject import Crashing


@dataclasses.dataclass
class Point:
    """A plain class."""

    x: int = 1


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1


class PlainError(ValueError):
    """An exception without code of its own."""


class FullError(ValueError):
    """An exception with an `__init__`, which unpickling calls."""

    def __init__(self, text: str) -> None:
        super().__init__(text)


class Hooked:
    """A class whose instances rebuild themselves."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, "text", None, {"a": (1, 2)}, {3}, b"bytes", 1j, range(3)],
        torch.ones(3, dtype=torch.bfloat16),
        torch.nn.Linear(2, 2),
        torch.nn.Linear(2, 2).state_dict(),
        torch.optim.SGD([torch.ones(1)], lr=0.1),
        torch.device("cpu"),
        np.ones(3),
        np.float64(3),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        Point(),
        Colour.RED,
        Pair(1, 2),
        PlainError("text"),
        OSError(2, "text"),
        datetime.datetime(2020, 1, 1),
        pathlib.Path("/"),
        collections.Counter("aab"),
        Point,
        int,
    ],
    ids=lambda value: type(value).__name__,
)
def test_familiar(value: Any) -> None:
    """Data, tensors, arrays and instances of plain classes need no trial."""
    common = Common.of(globals())
    assert type(unpack(pack(value, common), common, FamiliarUnpickler)) is type(value)


@pytest.mark.parametrize(
    "value",
    [Hooked(), FullError("text"), Crashing("never", ""), re.compile("a"), lambda: 1],
    ids=lambda value: type(value).__name__,
)
def test_unfamiliar(value: Any) -> None:
    """What runs code of somebody's own is tried first; then it arrives all the same."""
    payload = pack([value])
    with pytest.raises(Unfamiliar):
        unpack(payload, None, FamiliarUnpickler)
    (arrived,) = unpack_safely(payload, Common(), pytest.fail)
    assert type(arrived) is type(value)


def test_notebook_classes_with_hooks() -> None:
    """A class that both sides know by name is no more familiar than any other when it rebuilds its instances itself."""
    common = Common({"Hooked": Hooked, "Point": Point})
    assert unpack(pack(Point(2), common), common, FamiliarUnpickler) == Point(2)
    with pytest.raises(Unfamiliar):
        unpack(pack(Hooked(), common), common, FamiliarUnpickler)


def test_path() -> None:
    """The object that was begun last is found by its number, in whatever holds it."""
    point = Point()
    point.x = {"deep": (0, Crashing("unpickle", "raise_error"))}  # type: ignore[assignment]
    payload = pack([Crashing("never", ""), point])
    name = "nbsync.testing.objects._rebuild_crashing"
    assert find_path(payload, Common(), name, 1) == "the value[0]"
    assert find_path(payload, Common(), name, 2) == "the value[1].x['deep'][1]"
    assert find_path(payload, Common(), name, 3) is None
