"""DistributedDataParallel, a DataLoader with workers, a group of one's own, and object collectives."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

if not dist.is_initialized():
    dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
x = torch.linspace(-1, 1, 64).unsqueeze(1)
data = TensorDataset(x, 3 * x + 1)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=2)
model = DistributedDataParallel(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
for epoch in range(3):
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
pair = dist.new_group([0, 1])
dist.all_reduce(total := torch.tensor([rank + 1.0]), group=pair)
dist.destroy_process_group(pair)
everyone = [None] * size
dist.all_gather_object(everyone, {"rank": rank})
assert total.item() == 3.0
assert everyone == [{"rank": 0}, {"rank": 1}]
dist.barrier()
dist.destroy_process_group()
result = round(model.module.weight.item()), round(model.module.bias.item())
