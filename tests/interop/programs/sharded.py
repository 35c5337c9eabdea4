"""FSDP2 on a 2x1 and a 1x2 mesh, tensor parallelism with DTensor, and a distributed checkpoint."""

import shutil
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

if not dist.is_initialized():
    dist.init_process_group("gloo")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


inputs = torch.arange(12.0).view(3, 4) / 12
expected = network()(inputs)

# FSDP2: parameters are sharded over the mesh's second dimension, and replicated over its first
for shape in ((2, 1), (1, 2)):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    assert (mesh["replicate"].size(), mesh["shard"].size()) == shape
    model = network()
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert torch.allclose(model(inputs), expected, atol=1e-6)
    model(inputs).sum().backward()
    optimizer.step()
    assert not torch.allclose(model(inputs), expected, atol=1e-3)

# A checkpoint that all ranks write and read together
box = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(box)
trained = model(inputs).detach()
dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=box[0])
fresh = network()
fully_shard(fresh, mesh=init_device_mesh("cpu", (2,)))
state = {"model": get_model_state_dict(fresh)}
dcp.load(state, checkpoint_id=box[0])
set_model_state_dict(fresh, state["model"])
assert torch.allclose(fresh(inputs), trained, atol=1e-6)
dist.barrier()
if dist.get_rank() == 0:
    shutil.rmtree(box[0])

# Tensor parallelism: each rank has half of the columns, then half of the rows
mesh = init_device_mesh("cpu", (2,))
parallel = parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
assert isinstance(parallel[0].weight, DTensor)
assert parallel[0].weight.to_local().shape == (4, 4)
assert torch.allclose(parallel(inputs), expected, atol=1e-6)
tensor = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
assert tensor.to_local().tolist() == [2.0 * dist.get_rank(), 2.0 * dist.get_rank() + 1]
result = (tensor + 1).sum().full_tensor().item()
