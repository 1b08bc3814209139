"""litgpt's finetune_lora through its own `setup`, with a data module of pretokenised rows in a given order.

Settings: micro_batch; adapters (bfloat16 is precision bf16-true, float32 is bf16-mixed). It has neither packing nor
length grouping, and checkpoints activations on several devices only. Its schedule starts with one warm-up step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import lora
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from recorder import Recorder, labels, ordered, read_job
from torch.utils.data import DataLoader

KNOWN = {"smollm2-135m": "SmolLM2-135M-Instruct", "tinyllama": "tiny-llama-1.1b"}  # our folder's name, its name


class Rows(DataModule):
    """The rows in order; validation is the shortest of them, because litgpt insists on one."""

    def __init__(self, rows: list[dict[str, Any]], recorder: Recorder):
        super().__init__()
        self.rows, self.recorder, self.batch_size = [self._row(row) for row in rows], recorder, 1

    @staticmethod
    def _row(row: dict[str, Any]) -> dict[str, Any]:
        counts = {"raw": len(row["tokens"]), "raw_plus_prompt_template": len(row["tokens"])}
        return {"input_ids": torch.tensor(row["tokens"]), "labels": torch.tensor(labels(row)), "token_counts": counts}

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        pad = get_sft_collate_fn(max_seq_length=-1, pad_id=0)

        def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = pad(samples)
            self.recorder.micro(*batch["input_ids"].shape)
            return batch

        return DataLoader(self.rows, batch_size=self.batch_size, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        shortest = min(self.rows, key=lambda row: len(row["input_ids"]))
        return DataLoader([shortest], batch_size=1, collate_fn=get_sft_collate_fn(max_seq_length=-1, pad_id=0))


def converted(model: Path) -> Path:
    """The folder with litgpt's own weights beside it, made once."""
    made = model.with_name(f"{model.name}-litgpt")
    if not (made / "lit_model.pth").exists():
        if model.name not in KNOWN:
            raise SystemExit(f"litgpt knows no configuration for {model.name}")
        shutil.copytree(model, made, dirs_exist_ok=True)
        convert_hf_checkpoint(made, model_name=KNOWN[model.name])
        (made / "model.safetensors").unlink()
    return made


def main() -> None:
    job = read_job()
    setting, rows, per_step = job["setting"], ordered(job), job["rows_per_step"]
    micro = setting["micro_batch"]
    folder = converted(Path(job["model"]))
    recorder = Recorder(("litgpt", "lightning"), job["warmup_steps"] * per_step // micro, len(rows) // micro)
    original, parts = lora.chunked_cross_entropy, []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(*args, **kwargs)
        if loss.requires_grad:
            parts.append(loss.item())
            if len(parts) == per_step // micro:  # a step's loss, as litgpt has it: the mean of its micro-batches' means
                recorder.loss(sum(parts) / len(parts))
                parts.clear()
        return loss

    lora.chunked_cross_entropy = watched
    lora.setup(
        folder, Path(job["folder"]) / "out", devices=1, lora_r=8, lora_alpha=16, lora_dropout=0.0, lora_query=True,
        lora_key=True, lora_value=True, lora_projection=True, lora_mlp=True, lora_head=False,
        precision="bf16-mixed" if setting["adapters"] == "float32" else "bf16-true", data=Rows(rows, recorder),
        train=TrainArgs(save_interval=None, log_interval=1, global_batch_size=per_step, micro_batch_size=micro,
                        lr_warmup_steps=1, epochs=2, max_steps=len(rows) // per_step),
        eval=EvalArgs(interval=10**6, max_new_tokens=1, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.0}},
    )  # fmt: skip
    recorder.finish()


if __name__ == "__main__":
    main()
