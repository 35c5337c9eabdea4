"""transformers: a Trainer on a tiny model with random weights, with evaluation over both ranks and a checkpoint."""

import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

(folder,) = broadcast_object_list([tempfile.mkdtemp() if PartialState().is_main_process else None])
set_seed(0)
config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
)
model = BertForSequenceClassification(config)
data = [{"input_ids": [1 + i % 2] * 4, "attention_mask": [1] * 4, "labels": i % 2} for i in range(34)]
arguments = TrainingArguments(
    output_dir=folder,
    use_cpu=True,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=4,
    num_train_epochs=6,
    learning_rate=2e-2,
    logging_steps=4,
    save_steps=15,
    report_to=[],
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=data,
    eval_dataset=data,
    compute_metrics=lambda p: {
        "accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean()),
        "items": len(p.label_ids),
    },
)
trained = trainer.train()
metrics = trainer.evaluate()
assert arguments.world_size == 2
assert trained.global_step == 6 * 5, trained  # 34 items: 5 batches of 4 on each rank, not 9
assert metrics["eval_items"] == 34
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
both = [torch.zeros_like(weights) for _ in range(2)]
dist.all_gather(both, weights)
assert both[0].equal(both[1])
PartialState().wait_for_everyone()
if PartialState().is_main_process:
    assert any(path.name.startswith("checkpoint") for path in Path(folder).iterdir())
    shutil.rmtree(folder)
result = metrics["eval_accuracy"]
