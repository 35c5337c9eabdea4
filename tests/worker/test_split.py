"""Shares of inputs: no processes are needed, as nothing is communicated."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from nbsync.errors import UsageError
from nbsync.worker.control.split import split

SIZES = [2, 3, 4]
LENGTHS = [0, 1, 2, 3, 5, 8]


class Lines(Sequence[str]):
    """A sequence of our own: slices, but no `+`."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        return Lines(*self._lines[index]) if isinstance(index, slice) else self._lines[index]


class FakeDataset:
    """What of `datasets.Dataset` counts: rows are taken with `select`, a slice gives columns."""

    features = ("x",)

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return {"x": self.rows[index]}

    def select(self, indices: list[int]) -> FakeDataset:
        return FakeDataset([self.rows[index] for index in indices])


class Columns:
    """A table whose `select` takes columns, as Polars' and PyArrow's do."""

    def __len__(self) -> int:
        return 3

    def select(self, names: list[str]) -> Columns:
        raise AssertionError("a table is not split by columns")


def shares(inputs: Any, size: int, apply_padding: bool = False) -> list[Any]:
    return [split(inputs, rank, size, apply_padding) for rank in range(size)]


def accelerates(inputs: Any, rank: int, size: int, apply_padding: bool = False) -> Any:
    place = SimpleNamespace(process_index=rank, num_processes=size)
    with PartialState.split_between_processes(place, inputs, apply_padding) as share:
        return share


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_shares_are_those_of_accelerate(size: int, length: int) -> None:
    """Lists, tuples and tensors are cut where Accelerate cuts them, with and without padding."""
    items = list(range(length))
    for rank in range(size):
        assert split(items, rank, size, False) == accelerates(items, rank, size)
        assert split(tuple(items), rank, size, False) == accelerates(tuple(items), rank, size)
        assert split(torch.tensor(items), rank, size, False).equal(accelerates(torch.tensor(items), rank, size))
        if items:
            assert split(items, rank, size, True) == accelerates(items, rank, size, True)


@pytest.mark.parametrize(
    "make",
    [list, tuple, torch.tensor, np.array, range, "abcdefgh".__getitem__, FakeDataset, bytes],
    ids=["list", "tuple", "tensor", "array", "range", "str", "dataset", "bytes"],
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_kind_is_split(make: Any, size: int, length: int) -> None:
    """The shares make up the inputs; padded, each has ceil(length / size) items."""
    items = list(range(length))
    inputs = make(slice(length)) if make == "abcdefgh".__getitem__ else make(length if make is range else items)
    everything = list(getattr(inputs, "rows", inputs))

    found = shares(inputs, size)
    assert [item for share in found for item in getattr(share, "rows", share)] == everything

    padded = [list(getattr(share, "rows", share)) for share in shares(inputs, size, apply_padding=True)]
    for share, plain in zip(padded, found, strict=True):
        assert len(share) == math.ceil(length / size)
        assert share[: len(plain)] == list(getattr(plain, "rows", plain))
        assert share[len(plain) :] == everything[-1:] * (len(share) - len(plain))


@pytest.mark.parametrize("padding", [False, True])
def test_a_share_has_the_type_of_the_inputs(padding: bool) -> None:
    """Tuples stay tuples, strings strings, arrays arrays, with their dtype and other dimensions."""
    assert shares((1, 2, 3), 2, padding)[1] == ((3, 3) if padding else (3,))
    assert shares("abc", 2, padding)[1] == ("cc" if padding else "c")
    assert isinstance(split([1, 2, 3], 1, 2, padding), list)
    assert isinstance(split(FakeDataset([1, 2, 3]), 1, 2, padding), FakeDataset)
    array = split(np.zeros((3, 4), np.float16), 1, 2, padding)
    assert (type(array), array.dtype, array.shape) == (np.ndarray, np.float16, (1 + padding, 4))
    tensor = split(torch.zeros(3, 4, dtype=torch.bfloat16), 1, 2, padding)
    assert (tensor.dtype, tensor.shape) == (torch.bfloat16, (1 + padding, 4))


def test_a_range_padded_is_a_list() -> None:
    """A range cannot repeat its last item, so a padded share is a list; without padding it stays a range."""
    assert shares(range(3), 2) == [range(0, 2), range(2, 3)]
    assert shares(range(3), 2, apply_padding=True) == [range(0, 2), [2, 2]]


def test_a_sequence_of_the_users_own_is_split() -> None:
    """Any Sequence with slices will do; one that cannot be added to is padded as a list."""
    assert [list(share) for share in shares(Lines("a", "b", "c"), 2)] == [["a", "b"], ["c"]]
    assert shares(Lines("a", "b", "c"), 2, apply_padding=True)[1] == ["c", "c"]


def test_a_dict_is_split_value_by_value_and_left_alone() -> None:
    """Each value is cut at the same places; the caller's dict, unlike with Accelerate, is not changed."""
    inputs: dict[str, Any] = {"x": [1, 2, 3], "y": torch.arange(3)}
    share = split(inputs, 0, 2, False)
    assert share["x"] == [1, 2]
    assert share["y"].tolist() == [0, 1]
    assert inputs["x"] == [1, 2, 3]
    assert len(inputs["y"]) == 3


def test_nested_dicts_are_split_by_the_length_of_their_leaves() -> None:
    """How many keys an inner dict has does not matter, and it is not changed either."""
    inputs = {"a": [1, 2, 3], "more": {"b": "xyz", "none": {}}}
    assert shares(inputs, 2, apply_padding=True) == [
        {"a": [1, 2], "more": {"b": "xy", "none": {}}},
        {"a": [3, 3], "more": {"b": "zz", "none": {}}},
    ]
    assert inputs == {"a": [1, 2, 3], "more": {"b": "xyz", "none": {}}}


@pytest.mark.parametrize("padding", [False, True])
def test_an_empty_dict_stays_empty(padding: bool) -> None:
    """`{}`, an IndexError in Accelerate, is a share like any other."""
    assert shares({}, 2, padding) == [{}, {}]


@pytest.mark.parametrize(
    "mapping", [OrderedDict(x=[1, 2]), defaultdict(list, x=[1, 2])], ids=lambda m: type(m).__name__
)
def test_a_mapping_keeps_its_type(mapping: Any) -> None:
    """An OrderedDict stays one, and a defaultdict keeps its factory."""
    share = split(mapping, 1, 2, False)
    assert type(share) is type(mapping)
    assert share == {"x": [2]}
    assert getattr(share, "default_factory", None) is getattr(mapping, "default_factory", None)


def test_a_read_only_mapping_becomes_a_dict() -> None:
    """A mapping that cannot be written to is split as well."""
    assert split(MappingProxyType({"x": [1, 2]}), 0, 2, False) == {"x": [1]}


@pytest.mark.parametrize("inputs", [{"x": [1], "y": [1, 2]}, {"x": [1], "in": {"y": [1, 2]}}])
def test_values_of_different_length_are_an_error(inputs: Any) -> None:
    """The words are Accelerate's, and it is a ValueError; the lengths are named."""
    with pytest.raises(ValueError, match=r"All values in the dictionary must have the same length.*1, 2") as info:
        split(inputs, 0, 2, False)
    assert isinstance(info.value, UsageError)


@pytest.mark.parametrize(
    "inputs",
    [
        {1, 2},
        (n for n in range(2)),
        iter([1]),
        7,
        None,
        deque([1, 2]),
        torch.tensor(1),
        np.array(1),
        Columns(),
        {"x": {1, 2}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_split_is_an_error(inputs: Any) -> None:
    """Inputs that Accelerate hands whole to every rank raise, with what is expected instead."""
    with pytest.raises(UsageError, match=r"cannot split a .*expected a list, tuple, str"):
        split(inputs, 0, 2, False)


@pytest.mark.parametrize("inputs", [[1, 2], {1, 2}, {"x": [1], "y": [1, 2]}, (n for n in range(2))])
def test_a_world_of_one_gets_the_inputs_themselves(inputs: Any) -> None:
    """One process gets the very object, whatever it is."""
    assert split(inputs, 0, 1, True) is inputs
