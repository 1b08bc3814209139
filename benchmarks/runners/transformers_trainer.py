"""What the tools built on transformers' Trainer share: their micro-batches pass through `Trainer.training_step`."""

from __future__ import annotations

from typing import Any

from recorder import Recorder
from transformers import Trainer, TrainerCallback


def watch(recorder: Recorder, per_step: int) -> None:
    """Tell the recorder of every micro-batch; `per_step` of them are one optimizer step, whose losses add up."""
    original, parts = Trainer.training_step, []

    def training_step(self: Trainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids = inputs["input_ids"]
        recorder.micro(ids.shape[0], ids.shape[1])
        loss = original(self, model, inputs, *args, **kwargs)
        parts.append(loss.item())
        if len(parts) == per_step:
            recorder.loss(sum(parts))
            parts.clear()
        return loss

    Trainer.training_step = training_step


class Quiet(TrainerCallback):
    """Nothing is saved and nothing is evaluated while the clock runs."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = control.should_evaluate = False
        return control


def schedule(job: dict[str, Any], micro_batch: int, accumulation: int) -> dict[str, Any]:
    """The TrainingArguments that every such tool takes."""
    return {
        "output_dir": job["folder"], "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 1,
        "learning_rate": job["recipe"]["train"]["learning_rate"],
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "weight_decay": 0.0, "optim": "adamw_torch",
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 0, "use_cpu": True,
        "dataloader_num_workers": 0,
    }  # fmt: skip
