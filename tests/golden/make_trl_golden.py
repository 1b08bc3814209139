"""Train 20 steps with TRL and write down what it measured: `smollm2_trl_losses.json`.

Two commands, the first where Lorikeet is installed, the second where TRL 1.x is (its own environment; Lorikeet is not
needed there):

    python tests/golden/smollm2_case.py /tmp/golden
    python tests/golden/make_trl_golden.py /tmp/golden

A step is 2 micro-batches of 2 padded conversations, with sdpa attention, so everything that Lorikeet does otherwise
(packing, shared prefixes, one row, a chunked loss at trained positions only) stands against TRL's own way.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent
STEPS, MICRO_BATCH, ACCUMULATION = 20, 2, 2
SCHEDULE = {
    "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 2, "max_grad_norm": 1.0,
    "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
}  # fmt: skip


class Recorder(SFTTrainer):
    """SFTTrainer that keeps each step's loss as a float: what it logs is rounded for people."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = defaultdict(float)

    def training_step(self, *args, **kwargs):
        """A micro-batch's loss is already divided by the trained tokens of the whole step, so they add up."""
        loss = super().training_step(*args, **kwargs)
        self.losses[self.state.global_step] += loss.item()
        return loss


class Rates(TrainerCallback):
    """The learning rate each update really used, and the gradients' norm before clipping."""

    def __init__(self):
        self.rates, self.norms, self.logged = [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))
            self.logged.append(float(logs["loss"]))


def rows() -> Dataset:
    """input_ids, and labels that are -100 where a token is not trained."""
    read = [json.loads(line) for line in (HERE / "smollm2_examples.jsonl").read_text().splitlines()]
    labels = []
    for row in read:
        trained = {at for start, end in row["trained"] for at in range(start, end)}
        labels.append([token if at in trained else -100 for at, token in enumerate(row["tokens"])])
    return Dataset.from_dict({"input_ids": [row["tokens"] for row in read], "labels": labels})


def main(folder: Path) -> None:
    """Train on what smollm2_case.py wrote into `folder`."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    config = SFTConfig(
        output_dir=str(folder / "trl"), max_steps=STEPS, per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION, train_sampling_strategy="sequential", shuffle_dataset=False,
        packing=False, max_length=None, bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False,
        optim="adamw_torch", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, seed=0, **SCHEDULE,
    )  # fmt: skip
    rates = Rates()
    trainer = Recorder(
        model=model, args=config, train_dataset=rows(), callbacks=[rates],
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
    )  # fmt: skip
    trainer.train()
    losses = [trainer.losses[step] for step in range(STEPS)]
    assert len(losses) == len(rates.rates) == len(rates.norms) == STEPS
    assert all(abs(loss - logged) < 1e-3 for loss, logged in zip(losses, rates.logged)), (losses, rates.logged)
    names = ("trl", "transformers", "peft", "accelerate", "torch")
    golden = {
        "command": "python tests/golden/make_trl_golden.py FOLDER, after smollm2_case.py FOLDER",
        "versions": {name: version(name) for name in names},
        "hashes": json.loads((folder / "hashes.json").read_text()),
        "schedule": SCHEDULE,
        "examples_per_step": MICRO_BATCH * ACCUMULATION,
        "losses": losses,
        "learning_rates": rates.rates,
        "grad_norms": rates.norms,
    }
    (HERE / "smollm2_trl_losses.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
