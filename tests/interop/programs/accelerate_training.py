"""Accelerate: prepare, accumulate, gather_for_metrics on uneven data, save_state and load_state."""

import shutil
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(gradient_accumulation_steps=2)
set_seed(0)
x = torch.linspace(-1, 1, 26).unsqueeze(1)
loader = DataLoader(TensorDataset(x, 3 * x + 1), batch_size=4)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
for _ in range(60):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

# 26 items in batches of 4 on two ranks: Accelerate repeats items in the last batch, and drops them again here.
seen = torch.cat([accelerator.gather_for_metrics(inputs) for inputs, _ in loader])
assert sorted(seen.flatten().tolist()) == sorted(x.flatten().tolist())

(folder,) = broadcast_object_list([tempfile.mkdtemp() if accelerator.is_main_process else None])
accelerator.save_state(folder)
accelerator.wait_for_everyone()
kept = accelerator.unwrap_model(model).weight.item()
with torch.no_grad():
    accelerator.unwrap_model(model).weight.zero_()
accelerator.load_state(folder)
assert accelerator.unwrap_model(model).weight.item() == kept
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    shutil.rmtree(folder)
assert accelerator.num_processes == 2
assert gather_object([accelerator.process_index]) == [0, 1]
accelerator.end_training()
result = round(kept, 1)
