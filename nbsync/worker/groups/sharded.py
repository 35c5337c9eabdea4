"""FSDP2 models whose forward or backward pass was cut short are put back to rest, on all ranks alike.

FSDP2 keeps in Python how far a pass has come, and believes it: after one that an error or an interrupt has ended, the
next passes would go on with unsharded copies of the parameters, which no optimizer changes any more, and which differ
from rank to rank. What was cut is put back at the end of its run, with no word to the other ranks. Those may be at
another point: they may hold unsharded parameters that are not wanted now, or gradients of the lost pass. So the groups
then count as broken, and when the ranks heal together, they put all models back.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, TypeAlias

from torch._C._distributed_c10d import Store

_FSDP = "torch.distributed.fsdp._fully_shard._fsdp_state"  # slow to import, and whoever uses it has done so
_STATES = "torch.distributed._composable_state"
Name: TypeAlias = tuple[str, int]  # what a model looks like, and the number of its first parameter
Held: TypeAlias = tuple[tuple[int, int], ...]  # which gradients, and how often each was changed


class Cut(Enum):
    """The pass of a model that has begun and not ended."""

    NONE = 0
    FORWARD = 1
    BACKWARD = 2  # some parameters have its gradients, others have not


class ShardKeeper:
    """Puts the FSDP2 models of this process back to rest.

    Attributes:
        are_uneven: a model was put back here, and perhaps not on the other ranks.
    """

    def __init__(self) -> None:
        self.are_uneven = False
        self._lost: set[Name] = set()  # models whose backward pass was cut here
        self._agreed = False
        self._unreduced: weakref.WeakKeyDictionary[Any, Held] = weakref.WeakKeyDictionary()  # when the last run ended
        self._dead: weakref.WeakSet[Any] = weakref.WeakSet()  # of these the user knows

    def end_run(self, well: bool) -> None:
        """After each run but a heal: put back what was cut short in it. Waits for nobody.

        Between a forward pass and its backward pass a model is at rest: the latter may come in the next run.
        """
        if self._agreed:  # now the heal has ended on all ranks, and is not repeated
            self._lost.clear()
            self._agreed = False
        earlier, self._unreduced = self._unreduced, weakref.WeakKeyDictionary()
        for root in _roots():
            self._unreduced[root] = _unreduced(root)
        if well:
            return
        for name, root, cut in _models():
            held, before = self._unreduced.get(root), earlier.get(root)
            if held and held != before:
                cut = Cut.BACKWARD  # of several: `zero_grad` would leave what the first ones have left
                if before:
                    _tell_of_earlier(root)
            if cut is not Cut.NONE:
                self.are_uneven = True
                if cut is Cut.BACKWARD:
                    self._lost.add(name)
                self._put_back(root, cut)

    def _put_back(self, root: Any, cut: Cut) -> None:
        try:
            _rest(root, cut)
            self._unreduced[root] = _unreduced(root)
        except Exception as error:  # whatever it is, the user must know that the model is of no use any more
            if root not in self._dead:
                self._dead.add(root)
                tell_it_is_lost(f"the FSDP2 model {_kind(root)}", error)

    def tell(self, store: Store, rank: int) -> None:
        """Tell the other ranks which models have lost a backward pass here."""
        store.set(f"sharded/{rank}", json.dumps(sorted(self._lost)))

    def agree(self, store: Store, ranks: Iterable[int]) -> None:
        """Put all models back, and drop the gradients of those that have lost a backward pass on any of `ranks`.

        A graph that was made before is not harmed: its backward pass gathers the parameters that it needs. Where ranks
        have made different models before, so that their numbers do not fit, those that look the same lose theirs.
        """
        models = list(_models())
        lost = {(look, first) for rank in ranks for look, first in json.loads(store.get(f"sharded/{rank}"))}
        unknown = {look for look, _ in lost.difference(name for name, _, _ in models)}
        for name, root, cut in models:
            self._put_back(root, Cut.BACKWARD if name in lost or name[0] in unknown else cut)
        self.are_uneven, self._agreed = False, True


def tell_it_is_lost(model: str, error: Exception) -> None:
    """Say that `model` cannot be put back, for `error`."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    print(
        f"nbsync: {model} was cut in the middle of a pass and cannot be put back ({reason}): it must be built again",
        file=sys.stderr,
    )


def _tell_of_earlier(root: Any) -> None:
    print(
        f"nbsync: gradients of the FSDP2 model {_kind(root)} from earlier cells, which the ranks had not summed up, "
        "are dropped with those of this one: begin the step again",
        file=sys.stderr,
    )


def _kind(root: Any) -> str:
    return type(root._modules[0]).__name__.removeprefix("FSDP")  # what `fully_shard` puts before it


def _models() -> Iterator[tuple[Name, Any, Cut]]:
    """Each model that has been in use: a name that it has on all its ranks, the state of its outermost module, its cut.

    None where torch is another one, with other insides.
    """
    for root in _roots():
        try:
            name, cut = _name(root), _cut_pass(root)
        except AttributeError:
            continue
        yield name, root, cut


def _roots() -> Iterator[Any]:
    """The states of the outermost modules."""
    fsdp = sys.modules.get(_FSDP)
    if fsdp is None or not hasattr(fsdp.FSDPState, "_reset_iter_state"):
        return
    states = {ref(): None for ref in list(sys.modules[_STATES]._module_state_mapping.values())}
    yield from (state for state in states if isinstance(state, fsdp.FSDPState) and state._is_root)


def _unreduced(root: Any) -> Held:
    """The gradients that the ranks have not summed up yet, as after `set_requires_gradient_sync(False)`.

    They are where no optimizer finds them to set them to zero.
    """
    found = [getattr(group, "_partial_reduce_output", None) for group in _groups(root)]
    for parameter in (parameter for group in _groups(root) for parameter in group.fsdp_params):
        found.append(getattr(parameter, "unsharded_accumulated_grad", None))
        found.append(getattr(getattr(parameter, "_unsharded_param", None), "grad", None))
    return tuple((id(gradient), gradient._version) for gradient in found if gradient is not None)


def _name(root: Any) -> Name:
    """What a model is recognised by. torch numbers all parameters as they are sharded."""
    groups = list(_groups(root))
    ranks = sorted({rank for group in groups for rank in group.mesh_info.mesh.mesh.flatten().tolist()})
    parameters = [parameter for group in groups for parameter in group.fsdp_params]
    sizes = [tuple(parameter._orig_size) for parameter in parameters]
    first = min((parameter._orig_param_uid for parameter in parameters), default=0)
    return f"{type(root._modules[0]).__name__} {ranks} {sizes}", first


def _tree(root: Any) -> list[Any]:
    """The states of a model, also where it was cut while it listed them itself."""
    states = (root._get_state_for_module(module) for module in root._modules[0].modules())
    return list({state: None for state in states if state is not None})


def _groups(root: Any) -> Iterator[Any]:
    for state in _tree(root):
        yield from state._fsdp_param_groups


def _cut_pass(root: Any) -> Cut:
    """The pass that an exception has gone through."""
    context = root._state_ctx
    training = {each._training_state.name for each in (*_tree(root), *_groups(root))}
    if context.post_backward_final_callback_queued or training & {"PRE_BACKWARD", "POST_BACKWARD"}:
        return Cut.BACKWARD
    if context.iter_forward_root is not None or "FORWARD" in training or any(map(_is_mixed, _groups(root))):
        return Cut.FORWARD
    return Cut.NONE


def _is_mixed(group: Any) -> bool:
    """Whether it was cut while it went from one parameter to the next."""
    return any(parameter.sharded_state is not group._sharded_state for parameter in group.fsdp_params)


def _rest(root: Any, cut: Cut) -> None:
    """Let the model have its sharded parameters, and know of no pass that has begun."""
    partial = {group: group._partial_reduce_output for group in _groups(root)}
    for group in partial:
        if group._all_gather_result is not None:  # torch would wait for it, and so for the other ranks
            group._all_gather_result = group._all_gather_result._replace(all_gather_work=None)
    if _is_half_made(root):
        _make_again(root)
    else:
        root._reset_iter_state()
    for group, output in partial.items():
        if cut is not Cut.NONE:
            _shard(group)
        if cut is Cut.BACKWARD:
            _drop_gradients(group)
        else:
            group._partial_reduce_output = output
    if cut is Cut.BACKWARD:
        for parameter in root._modules[0].parameters():
            parameter.grad = None


def _is_half_made(root: Any) -> bool:
    """Whether it was cut in the preparations for its first forward pass."""
    return root._training_state.name == "FORWARD" and root._state_ctx.iter_forward_root is None


def _make_again(root: Any) -> None:
    """Let the next forward pass prepare all."""
    idle = type(root._training_state).IDLE
    for state in _tree(root):
        state._is_root, state._training_state = None, idle
        state._state_ctx, state._comm_ctx = type(state._state_ctx)(), type(state._comm_ctx)()


def _shard(group: Any) -> None:
    """Each parameter by itself: the group only looks at what it believes of all."""
    for parameter in group.fsdp_params:
        parameter.to_sharded()
        group._sharded_state = parameter.sharded_state


def _drop_gradients(group: Any) -> None:
    """Those of the unsharded parameters, which would be added to the next ones."""
    for parameter in group.fsdp_params:
        parameter.unsharded_accumulated_grad = parameter.grad_offload_event = None
        if hasattr(parameter, "_unsharded_param"):
            parameter._unsharded_param.grad = None
