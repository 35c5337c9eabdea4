"""DDP models whose steps were cut off where that spoils them get a new reducer, on all ranks alike.

After its first backward pass a DDP model orders its gradients into new buckets. A cut in that time leaves ranks that
did so, or are about to, and ranks that do not: their reductions would never fit again. And a backward pass that Python
code in it ends (a hook, a checkpointed part, an interrupt in either) leaves a reducer that refuses the next forward
pass. Other models need nothing; so whether one does is found out by all ranks together, when they heal. Then they also
find out whether their copies of a model are still the same (see replicas.py).
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch._C import _distributed_c10d
from torch._C._distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from nbsync.worker.groups.replicas import (
    changes,
    differs_by_design,
    fingerprint,
    places,
    replicated,
    sides,
    tell_difference,
)
from nbsync.worker.replacing import replace_function

c10d: Any = _distributed_c10d  # what is used here has no types
_PARTS = ("module", "reducer", "process_group", "_comm_hooks")  # a model of which one is missing is of no use
#: For each model: what it looks like, whether it can go on, and the fingerprint of its parameters.
Standing: TypeAlias = list[tuple[str, bool, int | None]]


class ModelKeeper:
    """Knows the DDP models of this process, in the order in which they were made."""

    def __init__(self) -> None:
        self._models: list[weakref.ref[Any]] = []
        self._places: weakref.WeakKeyDictionary[Any, dict[int, str]] = weakref.WeakKeyDictionary()
        self._uneven: weakref.WeakSet[Any] = weakref.WeakSet()  # of these the user knows
        self._told: dict[str, list[Any]] = {}  # of what the others were told, by group: none may go until they agree

    def install(self) -> None:
        """Take note of each model from now on; also those that are unpickled or copied pass here."""
        replace_function(DistributedDataParallel, "_ddp_init_helper", self._noting)

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _ddp_init_helper(model: Any, *args: Any, **kwargs: Any) -> None:
            original(model, *args, **kwargs)
            self._places[model] = places(model)  # once: a model may have as many optimizers as parameters
            if not any(known() is model for known in self._models):
                self._models.append(weakref.ref(model))

        return _ddp_init_helper

    def places(self) -> dict[int, str]:
        """For the id of each parameter of which all ranks make the same steps: what is the same there."""
        return {
            each: place
            for model in self._in_use()
            if not differs_by_design(model)
            for each, place in self._places.get(model, {}).items()
        }

    def has_unfinished(self) -> bool:
        """Whether the last backward pass of some model was cut short."""
        return any(map(_is_unfinished, self._in_use()))

    def _in_use(self) -> Iterator[Any]:
        """The models that are held, but for those half made, or that the user has taken apart to free their memory."""
        models = (known() for known in self._models)
        return (model for model in models if all(getattr(model, part, None) is not None for part in _PARTS))

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks of the models here.

        Before, what nobody holds any more is collected: the ranks would do so at other times, and count other models.
        """
        if self._models:
            gc.collect()
        self._models = [known for known in self._models if known() is not None]
        self._told = {}
        for model in self._in_use():
            self._told.setdefault(model.process_group.group_name, []).append(model)
        standing = {name: [_standing(model) for model in models] for name, models in self._told.items()}
        store.set(f"models/{rank}", json.dumps(standing))

    def agree(self, store: Store, groups: Mapping[str, Iterable[int]]) -> None:
        """Find the models that are not in the same state on all ranks; they are renewed at their next forward pass.

        Not now: a backward pass through a graph that was made before still needs the reducer that it knows.

        Args:
            groups: the names of the groups that all their members know, with those.
        """
        for name, ranks in groups.items():
            if name in self._told:
                others = [json.loads(store.get(f"models/{rank}")).get(name, []) for rank in ranks]
                for model, goes_on in zip(self._told[name], _go_on(others), strict=False):
                    model.require_forward_param_sync = True  # a rank that was within `no_sync` would not sync buffers
                    if not goes_on and _renew_first not in model._forward_pre_hooks.values():
                        model.register_forward_pre_hook(_renew_first, prepend=True)
                if _look_alike(others):
                    self._compare(name, list(ranks), others)
        self._told = {}

    def _compare(self, group: str, ranks: Sequence[int], standings: Sequence[Standing]) -> None:
        """Tell once of each model that the ranks have different copies of; the first of them tells.

        Models of which the same is to be said share a line.
        """
        told: dict[str, None] = {}
        for model, *each in zip(self._told[group], *standings, strict=False):
            differing = sides(ranks, [found for _, _, found in each])
            if len(differing) < 2:
                self._uneven.discard(model)
            elif model not in self._uneven:
                self._uneven.add(model)
                if model.process_group.rank() == 0:
                    told[tell_difference(model, differing)] = None
        for line in told:
            print(line, file=sys.stderr)

    def changes(self) -> Iterator[tuple[str, int]]:
        """For each model, a number that is the same on all ranks while all take the same steps."""
        numbers: Counter[str] = Counter()
        for model in self._in_use():
            group = model.process_group.group_name
            numbers[group] += 1
            yield f"changes of model {numbers[group]} in {group}", changes(model)


def _standing(model: Any) -> tuple[str, bool, int | None]:
    shapes = ",".join(str(tuple(p.shape)) for p in replicated(model))
    goes_on = model._has_rebuilt_buckets and not _is_unfinished(model)
    return shapes, goes_on, fingerprint(model)


def _is_unfinished(model: Any) -> bool:
    """Whether the model's reducer has begun a backward pass, and not ended it."""
    try:
        model.reducer._check_reducer_finalized()
    except RuntimeError:
        return True
    return False


def _go_on(standings: Sequence[Standing]) -> list[bool]:
    """For each model of a group, whether it can go on everywhere; none can where the ranks' models differ."""
    if not _look_alike(standings):
        return [False] * max(map(len, standings))
    return [all(goes_on for _, goes_on, _ in model) for model in zip(*standings, strict=True)]


def _look_alike(standings: Sequence[Standing]) -> bool:
    """Whether the ranks have models of the same shapes, in the same order."""
    looks = [[look for look, _, _ in standing] for standing in standings]
    return all(other == looks[0] for other in looks)


def _renew_first(model: Any, inputs: Any) -> None:
    """A forward pre-hook that runs once. A function of a module, so that the model can be saved with it."""
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _renew_first]:
        del model._forward_pre_hooks[key]
    model._has_rebuilt_buckets = model._static_graph_delay_allreduce_enqueued = False
    if _is_simple(model):
        _renew(model)
    else:
        model.reducer._reset_state()


def _is_simple(model: Any) -> bool:
    """Whether all that the old reducer knows is known to the model as well."""
    hook = model._get_ddp_logging_data().get("comm_hook")
    return not (
        (hook and not model._comm_hooks)
        or model._use_python_reducer
        or model.mixed_precision is not None
        or model._delay_all_reduce_all_params
        or any(hasattr(parameter, "_in_backward_optimizers") for parameter in model.parameters())
    )


def _renew(model: Any) -> None:
    """Give the model a new reducer, as it gets one when it is unpickled (`DistributedDataParallel.__setstate__`)."""
    model.reducer._remove_autograd_hooks()
    parameters, expect_sparse = model._build_params_for_reducer()
    names = model._build_debug_param_to_name_mapping(parameters)
    model._ddp_init_helper(parameters, expect_sparse, names, model.static_graph)
    if model.static_graph:
        model.reducer._set_static_graph()
        model.logger._set_static_graph()
    for hook, state in model._comm_hooks:
        model.logger._set_comm_hook_name(hook.__qualname__)
        c10d._register_comm_hook(model.reducer, state, hook)
