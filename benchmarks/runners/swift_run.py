"""ms-swift's SFT pipeline with a data set that is tokenised already; its own model loading, tuner and trainer.

Settings: micro_batch; grouped; checkpointing (on is its default); adapters (float32, its default, or bfloat16)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recorder import Recorder, labels, ordered, read_job
from swift.pipelines.train.sft import SwiftSft
from transformers_trainer import schedule, watch


class Tokenised(SwiftSft):
    """The pipeline with its rows given."""

    rows: list[dict[str, Any]]

    def _prepare_dataset(self) -> list[Any]:
        return [self.rows, None]


def main() -> None:
    job = read_job()
    setting, rows, per_step = job["setting"], ordered(job), job["rows_per_step"]
    micro, config = setting["micro_batch"], json.loads(Path(job["model"], "config.json").read_text())
    recorder = Recorder(
        ("ms-swift", "peft", "transformers", "accelerate"),
        job["warmup_steps"] * per_step // micro,
        len(rows) // micro,
    )
    watch(recorder, per_step // micro)
    Tokenised.rows = [{"input_ids": row["tokens"], "labels": labels(row), "length": len(row["tokens"])} for row in rows]
    options = schedule(job, micro, per_step // micro) | {
        "model": job["model"], "model_type": config["model_type"], "template": "dummy", "tuner_type": "lora",
        "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear",
        "torch_dtype": "bfloat16",
        "bf16": setting["adapters"] == "float32", "dataset": "given", "train_dataloader_shuffle": False,
        "gradient_checkpointing": setting["checkpointing"], "report_to": "none", "load_from_cache_file": False,
        "lora_dtype": setting["adapters"], "add_version": False,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    Tokenised(arguments).main()
    recorder.finish()


if __name__ == "__main__":
    main()
