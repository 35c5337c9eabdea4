"""Lightning Fabric: the loop is one's own, set-up, backward and collectives are Fabric's; a torchmetrics metric."""

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAccuracy

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
fabric.seed_everything(0, verbose=False)
x = torch.linspace(-1, 1, 64).unsqueeze(1)
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(x, (x > 0.1).float()), batch_size=8, shuffle=True))
model = torch.nn.Linear(1, 1)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
for _ in range(30):
    for inputs, targets in loader:
        optimizer.zero_grad()
        fabric.backward(torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), targets))
        optimizer.step()

metric = BinaryAccuracy()
seen = 0
for inputs, targets in loader:
    metric.update(model(inputs), targets.int())
    seen += len(inputs)
assert (fabric.world_size, seen) == (2, 32)
accuracy = metric.compute()  # over both ranks
assert fabric.all_gather(accuracy).tolist() == [accuracy.item()] * 2
assert (metric.tp + metric.fp + metric.tn + metric.fn).item() == 32  # this rank's own again
fabric.barrier()
result = accuracy.item() > 0.9
