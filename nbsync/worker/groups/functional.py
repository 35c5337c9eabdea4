"""Functional collectives, which DTensor and compiled functions use, pass here on their way to a process group.

C++ makes them, so no method of `ProcessGroup` in Python sees them. But torch's dispatcher has a kernel for each, and
these take its place for tensors of the CPU. The Python functions before it are left alone: torch.compile knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nbsync.worker.groups.operations import COLLECTIVES, Intent, python_name, root, tensors_in, unseen

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_NAMESPACE = "_c10d_functional"
_ORIGINAL = torch.DispatchKey.CompositeExplicitAutograd  # the key under which torch has the kernels of all devices
#: The operators, each with the method of `ProcessGroup` that it calls.
_METHODS = {
    "all_reduce": "allreduce",
    "all_reduce_": "allreduce",
    "all_reduce_coalesced": "allreduce_coalesced",
    "all_reduce_coalesced_": "allreduce_coalesced",
    "all_gather_into_tensor": "all_gather_single",
    "all_gather_into_tensor_out": "all_gather_single",
    "all_gather_into_tensor_coalesced": "all_gather_single_coalesced",
    "reduce_scatter_tensor": "reduce_scatter_single",
    "reduce_scatter_tensor_out": "reduce_scatter_single",
    "reduce_scatter_tensor_coalesced": "reduce_scatter_single_coalesced",
    "all_to_all_single": "all_to_all_single",
    "broadcast": "broadcast",
    "broadcast_": "broadcast",
}
#: What must be there to watch them, as names in torch.
NEEDS = (
    *(f"ops.{_NAMESPACE}.{name}.default._op_dk" for name in (*_METHODS, "wait_tensor")),
    "distributed.distributed_c10d._resolve_process_group",
)


def watch_functional(begin: Callable[..., Any], wait: Callable[..., Any], is_watched: Callable[[Any], bool]) -> Any:
    """Have each functional collective pass through `begin`, and the wait for its data through `wait`.

    Args:
        begin: as `CollectiveWatch.begin`.
        wait: as `CollectiveWatch.wait`.
        is_watched: as `CollectiveWatch.is_watched`.

    Returns:
        What must be kept: without it, torch's own kernels are in place again.
    """
    library: Any = torch.library.Library(_NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]
    for name, method in _METHODS.items():
        library.impl(name, _beginning(_operator(name), method, begin, is_watched), "CPU")
    library.impl("wait_tensor", _waiting(_operator("wait_tensor"), wait), "CPU")
    return library


def _operator(name: str) -> Any:
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def _beginning(
    operator: Any, method: str, begin: Callable[..., Any], is_watched: Callable[[Any], bool]
) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False), **kwargs)

        def do() -> Any:
            return operator._op_dk(_ORIGINAL, *args, **kwargs)

        group = given["group_name"]
        if not isinstance(group, dist.ProcessGroup):
            group = c10d._resolve_process_group(group)
        return begin(method, group, lambda: _intent(method, given), do) if is_watched(group) else do()

    return kernel


def _waiting(operator: Any, wait: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(tensor: torch.Tensor) -> Any:
        with unseen():
            storage = tensor.untyped_storage()
        return wait(storage, lambda: operator._op_dk(_ORIGINAL, tensor))

    return kernel


def _intent(method: str, given: Mapping[str, Any]) -> Intent:
    details = []
    if "reduce_op" in given:
        details.append(given["reduce_op"])
    if "src" in given:
        details.append(root(given["src"]))
    tensors = [] if COLLECTIVES[method] is None else tensors_in(given.get("input", given.get("inputs")))
    return Intent(python_name(method), tensors, details)
