"""Lightning's Trainer with strategy="ddp": fit, validate with a logged mean over the ranks."""

import lightning
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = 0

    def training_step(self, batch, index):
        inputs, targets = batch
        self.seen += len(inputs)
        return torch.nn.functional.mse_loss(self.layer(inputs), targets)

    def validation_step(self, batch, index):
        inputs, targets = batch
        self.log("loss", torch.nn.functional.mse_loss(self.layer(inputs), targets), sync_dist=True)
        self.log("rank", float(self.global_rank), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


lightning.seed_everything(0, verbose=False)
x = torch.linspace(-1, 1, 64).unsqueeze(1)
loader = DataLoader(TensorDataset(x, 3 * x + 1), batch_size=8)
line = Line()
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=10,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(line, loader)
assert (trainer.world_size, line.seen) == (2, 10 * 32)
(metrics,) = trainer.validate(line, loader, verbose=False)
assert dist.is_initialized()
assert metrics["rank"] == 0.5
result = metrics["loss"] < 0.01, round(line.layer.weight.item(), 1)
