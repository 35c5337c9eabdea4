"""Optimizers of sharded parameters, of which not all ranks made the same steps: that is told.

The shards of a model differ from rank to rank, so nothing shows that they are of different steps. But an error or an
interrupt may find one rank before an optimizer step and another after it, or a rank in the middle of one. The copies of
a DDP model can be compared by themselves (see replicas.py).
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch._C._distributed_c10d import Store
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nbsync.protocol.words import ranks_do
from nbsync.worker.groups.names import Names
from nbsync.worker.replacing import replace_function

_DTENSOR = "torch.distributed.tensor"  # slow to import, and whoever uses it has done so


@dataclass
class Steps:
    """Of one optimizer.

    Attributes:
        name: by which all ranks know it.
        made: how many steps, since its ranks were last found to differ.
        within: for each step that has begun and not ended, whether it changes the parameters at once.
        is_torn: one was cut short.
    """

    name: str
    made: int = 0
    within: list[bool] = field(default_factory=list)
    is_torn: bool = False


class StepKeeper:
    """Counts the steps of this process's optimizers of sharded parameters.

    Args:
        flat: gives the ids of the parameters of FSDP1 models, which do not look like shards.

    Attributes:
        are_torn: a step was cut short here.
    """

    def __init__(self, flat: Callable[[], set[int]]) -> None:
        self.are_torn, self._flat = False, flat
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
            look = self._look(optimizer)
            if look is not None:
                self._known[optimizer] = Steps(self._names.give(look))

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

    def _look(self, optimizer: Any) -> str | None:
        """What is the same on all ranks; None of an optimizer whose parameters are not sharded."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        tensor = sys.modules.get(_DTENSOR)
        sharded = [each for each in parameters if tensor is not None and isinstance(each, tensor.DTensor)]
        if not sharded and self._flat().isdisjoint(map(id, parameters)):
            return None
        places = [(tuple(each.shape), each.device_mesh.mesh.flatten().tolist()) for each in sharded]
        return f"{type(optimizer).__name__} of {len(parameters)} parameters {zlib.crc32(repr(places).encode()):x}"

    def end_run(self, well: bool) -> None:
        """After each run but a heal."""
        for steps in self._known.values():
            steps.is_torn = steps.is_torn or (not well and any(steps.within))
            self.are_torn = self.are_torn or steps.is_torn
            steps.within.clear()

    def made(self) -> Iterator[tuple[str, int]]:
        """For each optimizer, a number that is the same on all ranks while all make the same steps."""
        return ((f"steps of {steps.name}", steps.made) for steps in self._known.values())

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks of the optimizers here."""
        steps = {each.name: (each.made, each.is_torn) for each in self._known.values()}
        store.set(f"steps/{rank}", json.dumps([steps, self._names.given]))

    def agree(self, store: Store, ranks: Iterable[int], mine: int) -> None:
        """Tell once of each optimizer that is not at the end of the same step on all that have it; the first tells."""
        told = {rank: json.loads(store.get(f"steps/{rank}")) for rank in ranks}
        for _, given in told.values():
            self._names.catch_up(given)
        for steps in self._known.values():
            found = {rank: tuple(others[steps.name]) for rank, (others, _) in told.items() if steps.name in others}
            if len({made for made, _ in found.values()}) > 1 or any(is_torn for _, is_torn in found.values()):
                steps.made, steps.is_torn = 0, False
                if mine == min(found):
                    _tell_of_difference(steps.name, found)
        self.are_torn = False


def _tell_of_difference(name: str, found: Mapping[int, tuple[int, bool]]) -> None:
    """Say which ranks are ahead, or within a step, and what to do."""
    least = min(made for made, _ in found.values())
    together: dict[str, list[int]] = {}
    for rank, (made, is_torn) in sorted(found.items()):
        ahead = f"is {made - least} ahead" if made > least else ""
        within = "was in the middle of one" if is_torn else ""
        together.setdefault(" and ".join(filter(None, (ahead, within))), []).append(rank)
    together.pop("", None)
    words = ", ".join(ranks_do(ranks, what) for what, ranks in together.items())
    print(
        f"nbsync: the sharded model of an optimizer ({' '.join(name.split()[:4])}) was stopped where its ranks had not "
        f"made the same optimizer steps: {words}. Its shards do not belong together any more: load a checkpoint",
        file=sys.stderr,
    )
