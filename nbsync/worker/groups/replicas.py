"""Whether the ranks' copies of a DDP model are still the same.

DDP makes them equal once, and then trusts that all ranks take the same steps. An error or interrupt may find one rank
before an optimizer step and another after it; from then on they would train different models, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import post_localSGD_hook
from torch.distributed.distributed_c10d import _world

from nbsync.protocol.words import describe_ranks
from nbsync.worker.groups import checksums


def replicated(model: Any) -> list[Any]:
    """The parameters that DDP keeps equal: not those it was told to ignore, such as a rank's shard of an embedding."""
    ignored = model.parameters_to_ignore
    return [parameter for name, parameter in model.module.named_parameters() if name not in ignored]


def changes(model: Any) -> int:
    """How often the parameters were changed in place: found at once, and as often on all ranks while all is well."""
    return sum(parameter._version for parameter in replicated(model) if not parameter.is_inference())


def differs_by_design(model: Any) -> bool:
    """Whether each rank makes steps of its own, and the ranks only find a mean of their parameters now and then."""
    return any(hook is post_localSGD_hook for hook, _ in model._comm_hooks)


def fingerprint(model: Any) -> int | None:
    """Equal where the parameters are; None if they cannot be looked at by one rank, or differ as they should."""
    return None if differs_by_design(model) else checksums.fingerprint(replicated(model))


def places(model: Any) -> dict[int, str]:
    """For the id of each parameter that DDP keeps equal: which one it is, and on which ranks."""
    ranks = sorted(_world.pg_group_ranks.get(model.process_group, ()))
    return {id(each): f"{number} {tuple(each.shape)} {ranks}" for number, each in enumerate(replicated(model))}


def sides(ranks: Sequence[int], prints: Sequence[int | None]) -> list[list[int]]:
    """The ranks, by which of them have the same parameters."""
    together: dict[int, list[int]] = {}
    for rank, found in zip(ranks, prints, strict=True):
        if found is not None:
            together.setdefault(found, []).append(rank)
    return list(together.values())


def tell_difference(model: Any, differing: Sequence[Sequence[int]]) -> str:
    """That these sides have other parameters, and what to do."""
    who = " and ".join(describe_ranks(same) for same in differing)
    what = f"nbsync: the DDP model {type(model.module).__name__} has other parameters on {who}"
    if _has_others_than_wrapped(model):
        return f"{what}: parameters were replaced after it was wrapped: wrap the model again"
    equal = ", or make them equal: `for p in model.parameters(): dist.broadcast(p.data, 0)`"
    return (
        f"{what}, perhaps because it was stopped where some were past an optimizer step and others were not. "
        f"Load a checkpoint{'' if model.parameters_to_ignore else equal}"
    )


def _has_others_than_wrapped(model: Any) -> bool:
    """Whether DDP made other parameters equal, and would reduce the gradients of others, than the module has now."""
    return [*map(id, replicated(model))] != [*map(id, model._module_parameters)]
