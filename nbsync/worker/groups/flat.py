"""FSDP1 models (`FullyShardedDataParallel`) whose pass was cut are put back to rest, on all ranks alike.

As with FSDP2 (see sharded.py), a pass that an error or an interrupt has ended leaves the model in the middle of it. But
here the ranks that are at rest may hold a graph for the lost pass, which cannot be followed any more. So when the ranks
heal together, all of them forget it: the step must be begun again.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._C._distributed_c10d import Store

from nbsync.worker.groups.names import Names
from nbsync.worker.groups.sharded import tell_it_is_lost
from nbsync.worker.libraries.imports import after_import
from nbsync.worker.replacing import replace_function

_MODULE = "torch.distributed.fsdp.fully_sharded_data_parallel"
_INSIDES = "torch.distributed.fsdp._runtime_utils"


class FlatKeeper:
    """Puts the FSDP1 models of this process back to rest.

    Attributes:
        are_uneven: a pass was cut here.
    """

    def __init__(self) -> None:
        self.are_uneven = False
        self._known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # models, with their names
        self._names = Names()
        self._lost: set[str] = set()  # models whose pass was cut here

    def install(self) -> None:
        """Take note of each model that is made from now on."""
        after_import(
            _MODULE, lambda module: replace_function(module.FullyShardedDataParallel, "__init__", self._noting)
        )

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            original(model, *args, **kwargs)
            self._known[model] = self._names.give(type(model.module).__name__)

        return __init__

    def parameters(self) -> set[int]:
        """The ids of all parameters of these models."""
        return {id(parameter) for model in list(self._known) for parameter in model.parameters()}

    def end_run(self, well: bool) -> None:
        """After each run but a heal."""
        if not well:
            self._lost |= {name for model, name in self._roots() if _is_cut(model)}
            self.are_uneven = self.are_uneven or bool(self._lost)

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks which models have lost a pass here."""
        store.set(f"flat/{rank}", json.dumps([sorted(self._lost), self._names.given]))

    def agree(self, store: Store, ranks: Iterable[int]) -> None:
        """Put the models back that have lost a pass on any of `ranks`, without gradients."""
        lost: set[str] = set()
        for rank in ranks:
            theirs, given = json.loads(store.get(f"flat/{rank}"))
            lost.update(theirs)
            self._names.catch_up(given)
        for model, name in self._roots():
            if name in lost:
                _put_back(model, name)
        self.are_uneven = False
        self._lost.clear()

    def _roots(self) -> Iterator[tuple[Any, str]]:
        """The outermost models that have been in use, with their names."""
        yield from ((model, name) for model, name in list(self._known.items()) if model._is_root)


def _is_cut(root: Any) -> bool:
    handles = [state._handle for state in root._all_fsdp_states if state._handle]
    states = [state.training_state for state in root._all_fsdp_states] + [handle._training_state for handle in handles]
    return root._post_backward_callback_queued or any(state.name != "IDLE" for state in states)


def _put_back(root: Any, name: str) -> None:
    try:
        _rest(root)
    except Exception as error:  # whatever it is, the user must know that the model is of no use any more
        tell_it_is_lost(f"the FSDP1 model {name.split()[0]}", error)


def _rest(root: Any) -> None:
    """What torch does at the end of a backward pass (`_post_backward_final_callback`), wherever the pass was."""
    insides: Any = sys.modules[_INSIDES]
    for state in root._all_fsdp_states:
        handle = state._handle
        if handle:
            _forget_hooks(handle.flat_param)
            insides._reshard(state, handle, True)
            _forget_gradients(handle.flat_param)
            handle._ran_pre_backward_hook = handle._needs_pre_backward_unshard = handle._prefetched = False
            handle._needs_pre_forward_unshard = False
            handle._post_forward_index = None
            handle._training_state = insides.HandleTrainingState.IDLE
        state.training_state = insides.TrainingState.IDLE
    root._exec_order_data.next_iter()
    root._post_backward_callback_queued = False
    for parameter in root.parameters():
        parameter.grad = None


def _forget_hooks(flat: Any) -> None:
    """They were registered for the pass that is lost, and would run in the next one as well."""
    if hasattr(flat, "_post_backward_hook_state"):
        flat._post_backward_hook_state[-1].remove()
        del flat._post_backward_hook_state


def _forget_gradients(flat: Any) -> None:
    flat.grad, flat._post_backward_called = None, False
    if hasattr(flat, "_saved_grad_shard"):  # the next pass would add to it
        del flat._saved_grad_shard
