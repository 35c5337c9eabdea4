"""Requests that bring the user's objects to the ranks. What is packed belongs to the request, and goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nbsync.kernel.sigint import interrupted_while
from nbsync.kernel.sources import sources_of
from nbsync.protocol.messages import Push, RunCall
from nbsync.protocol.serial import Common, pack_call, pack_variables


def make_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], common: Common
) -> Callable[[int], RunCall]:
    """What makes the request for a call from its number.

    Raises:
        TransferError: the function or an argument cannot be sent.
        Interrupted: packing it took long, and the user gave it up.
    """
    with interrupted_while("packing the function and its arguments for the ranks"):
        call = pack_call(function, args, kwargs, common)
    return partial(RunCall, call=call, sources=sources_of([function, *args, *kwargs.values()]))


def make_push(variables: Mapping[str, Any], common: Common) -> Callable[[int], Push]:
    """What makes the request to set `variables` from its number.

    Raises:
        TransferError: a value cannot be sent.
        Interrupted: packing it took long, and the user gave it up.
    """
    with interrupted_while(f"packing {', '.join(variables)} for the ranks"):
        values = pack_variables(variables, common)
    return partial(Push, values=values, sources=sources_of(variables.values()))


def name_of(function: Callable[..., Any]) -> str:
    """What the user calls it."""
    return getattr(function, "__name__", type(function).__name__)
