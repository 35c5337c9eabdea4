"""Optimizers of which not all ranks made the same steps: that is told.

An error or an interrupt may find one rank before an optimizer step and another after it, or a rank in the middle of
one. The shards of a model differ from rank to rank, so nothing shows that they are of different steps. The copies of a
DDP model can be compared by themselves (see replicas.py), but they may be equal, and what the optimizer knows of the
steps before not: it may have been stopped when it had changed its moments, and not yet the parameters.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch._C._distributed_c10d import Store
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nbsync.protocol.words import describe_ranks, ranks_do
from nbsync.worker.groups.checksums import fingerprint
from nbsync.worker.groups.names import Names
from nbsync.worker.groups.replicas import sides
from nbsync.worker.replacing import replace_function

Found: TypeAlias = Mapping[int, tuple[int, bool, int | None]]  # what each rank has told of an optimizer
_DTENSOR = "torch.distributed.tensor"  # slow to import, and whoever uses it has done so


@dataclass
class Steps:
    """Of one optimizer.

    Attributes:
        name: by which all ranks know it; "" while its parameters belong to no model that is sharded or replicated.
        is_sharded: each rank has a part of the model, and of the optimizer's state.
        made: how many steps, since its ranks were last found to differ.
        within: for each step that has begun and not ended, whether it changes the parameters at once.
        is_torn: one was cut short.
    """

    name: str = ""
    is_sharded: bool = False
    made: int = 0
    within: list[bool] = field(default_factory=list)
    is_torn: bool = False


class StepKeeper:
    """Counts the steps of this process's optimizers.

    Args:
        flat: gives the ids of the parameters of FSDP1 models, which do not look like shards.
        replicated: gives those of DDP models, with what is the same of each on all its ranks.

    Attributes:
        are_torn: a step of a model that the ranks share was cut short here.
    """

    def __init__(self, flat: Callable[[], set[int]], replicated: Callable[[], Mapping[int, str]]) -> None:
        self.are_torn, self._flat, self._replicated = False, flat, replicated
        self._known: WeakKeyDictionary[Optimizer, Steps] = WeakKeyDictionary()
        self._names = Names()

    def install(self) -> None:
        """Take note of each optimizer that is made from now on, and of its steps."""
        replace_function(Optimizer, "__init__", self._noting)
        register_optimizer_step_pre_hook(self._begin)
        register_optimizer_step_post_hook(self._end)

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            steps = self._known[optimizer] = Steps()
            self._name(optimizer, steps)

        return __init__

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        steps = self._known.get(optimizer)
        if steps is not None:  # a closure runs the model first: what it raises finds the parameters as they were
            closure = (*args[1:], kwargs.get("closure"))[0]
            steps.within.append(closure is None)

    def _end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        steps = self._known.get(optimizer)
        if steps is not None:
            steps.made += 1
            del steps.within[-1:]

    def _name(self, optimizer: Any, steps: Steps) -> bool:
        """Give it a name if it has none: the model may have been wrapped later. Whether it has one then."""
        if not steps.name:
            parameters = _parameters(optimizer)
            places = self._shards(parameters)
            steps.is_sharded = places is not None
            if places is None:
                places = self._copies(parameters)
            if places is not None:
                look = f"{type(optimizer).__name__} of {len(parameters)} parameters"
                steps.name = self._names.give(f"{look} {zlib.crc32(repr(places).encode()):x}")
        return bool(steps.name)

    def _shards(self, parameters: Sequence[Any]) -> list[Any] | None:
        """What is the same on all ranks; None of parameters that are not sharded."""
        tensor = sys.modules.get(_DTENSOR)
        sharded = [each for each in parameters if tensor is not None and isinstance(each, tensor.DTensor)]
        if not sharded and self._flat().isdisjoint(map(id, parameters)):
            return None
        return [(tuple(each.shape), each.device_mesh.mesh.flatten().tolist()) for each in sharded]

    def _copies(self, parameters: Sequence[Any]) -> list[Any] | None:
        """The same for those of DDP models. An optimizer of other ones of them on each rank has other names there."""
        replicated = self._replicated()
        found = [replicated.get(id(each)) for each in parameters]
        return found if any(found) else None

    def end_run(self, well: bool) -> None:
        """After each run but a heal."""
        for optimizer, steps in list(self._known.items()):
            if not well and any(steps.within):
                steps.is_torn = self._name(optimizer, steps)
            self.are_torn = self.are_torn or steps.is_torn
            steps.within.clear()

    def made(self) -> Iterator[tuple[str, int]]:
        """For each optimizer of shards, a number that is the same on all ranks while all make the same steps."""
        return ((f"steps of {steps.name}", steps.made) for steps in self._known.values() if steps.is_sharded)

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks of the optimizers here."""
        known = [(optimizer, steps) for optimizer, steps in list(self._known.items()) if self._name(optimizer, steps)]
        told = {
            steps.name: (steps.made, steps.is_torn, None if steps.is_sharded else _state(optimizer))
            for optimizer, steps in known
        }
        store.set(f"steps/{rank}", json.dumps([told, self._names.given]))

    def agree(self, store: Store, ranks: Iterable[int], mine: int) -> None:
        """Tell once of each optimizer that is not at the end of the same step on all that have it; the first tells."""
        told = {rank: json.loads(store.get(f"steps/{rank}")) for rank in ranks}
        for _, given in told.values():
            self._names.catch_up(given)
        for steps in self._known.values():
            found = {rank: tuple(others[steps.name]) for rank, (others, _) in told.items() if steps.name in others}
            if len({made for made, _, _ in found.values()}) > 1 or any(is_torn for _, is_torn, _ in found.values()):
                steps.made, steps.is_torn = 0, False
                if mine == min(found):
                    tell = _tell_of_shards if steps.is_sharded else _tell_of_states
                    tell(" ".join(steps.name.split()[:4]), found)
        self.are_torn = False


def _state(optimizer: Any) -> int | None:
    """A fingerprint of what the optimizer knows of the steps before."""
    state = getattr(optimizer, "state", None) or {}
    return fingerprint([state.get(each) for each in _parameters(optimizer)])


def _parameters(optimizer: Any) -> list[Any]:
    """None of one that was taken apart to free its memory."""
    return [each for group in getattr(optimizer, "param_groups", None) or () for each in group.get("params", ())]


def _tell_of_shards(name: str, found: Found) -> None:
    """Say which ranks are ahead, or within a step, and what to do."""
    print(
        f"nbsync: the sharded model of an optimizer ({name}) was stopped where its ranks had not made the same "
        f"optimizer steps: {_differences(found)}. Its shards do not belong together any more: load a checkpoint",
        file=sys.stderr,
    )


def _tell_of_states(name: str, found: Found) -> None:
    """The same, if the copies of the optimizer's state differ: the models will, also where they do not yet."""
    differing = sides(list(found), [state for _, _, state in found.values()])
    if len(differing) > 1:
        who = " and ".join(describe_ranks(same) for same in differing)
        print(
            f"nbsync: the optimizer of a DDP model ({name}) has another state on {who}: it was stopped where they had "
            f"not made the same optimizer steps: {_differences(found)}. Load a checkpoint, or make the states equal: "
            "`optimizer.load_state_dict(world.broadcast_object_list([optimizer.state_dict()])[0])`",
            file=sys.stderr,
        )


def _differences(found: Found) -> str:
    """Which ranks are ahead, or within a step."""
    least = min(made for made, _, _ in found.values())
    together: dict[str, list[int]] = {}
    for rank, (made, is_torn, _) in sorted(found.items()):
        ahead = f"is {made - least} ahead" if made > least else ""
        within = "was in the middle of one" if is_torn else ""
        together.setdefault(" and ".join(filter(None, (ahead, within))), []).append(rank)
    together.pop("", None)
    return ", ".join(ranks_do(ranks, what) for what, ranks in together.items())
