"""LLaMA-Factory's SFT stage through its own entry, on a tokenised data set as its `tokenized_path` takes it.

Settings: micro_batch; grouped; checkpointing (on is its default); adapters (float32; its `pure_bf16` refuses a CPU);
packing: a cutoff_len, rows laid out as its PackedSupervisedDatasetProcessor does with neat_packing (it adds
one token and pads ids, but not positions, to a multiple of 8: only lengths that leave 7 over eight run).

PyPI's torchvision and torchaudio are built against CUDA and do not load beside a CPU build of PyTorch. Without
torchvision transformers does well; LLaMA-Factory imports torchaudio, which text never calls, so an empty module stands
in for it."""

from __future__ import annotations

import importlib.machinery
import shutil
import sys
import types
from pathlib import Path
from typing import Any

sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from datasets import Dataset, DatasetDict  # noqa: E402
from llamafactory.data.processor.processor_utils import greedy_knapsack  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402
from recorder import Recorder, labels, ordered, read_job  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from transformers_trainer import schedule, watch  # noqa: E402


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"input_ids": row["tokens"], "attention_mask": [1] * len(row["tokens"]), "labels": labels(row)} for row in rows
    ]


def packed(rows: list[dict[str, Any]], length: int, pad: int) -> list[dict[str, Any]]:
    """Rows of length + 1, the sequences numbered from 1 in the attention mask, padding 0."""
    by_length: dict[int, list[dict[str, Any]]] = {}
    for row in plain(rows):
        by_length.setdefault(len(row["input_ids"]), []).append(row)
    found = []
    for knapsack in greedy_knapsack([len(row["tokens"]) for row in rows], length):
        made: dict[str, Any] = {"input_ids": [], "attention_mask": [], "labels": [], "position_ids": []}
        for number, size in enumerate(knapsack):
            row = by_length[size].pop()
            made["input_ids"] += row["input_ids"]
            made["labels"] += row["labels"]
            made["attention_mask"] += [number + 1] * size
            made["position_ids"] += range(size)
        rest = length + 1 - len(made["input_ids"])
        for name, value in (("input_ids", pad), ("attention_mask", 0), ("labels", -100), ("position_ids", 0)):
            made[name] += [value] * rest
        found.append(made)
    return found


def main() -> None:
    job = read_job()
    setting, rows, per_step = job["setting"], ordered(job), job["rows_per_step"]
    first, micro = job["warmup_steps"] * per_step, setting["micro_batch"]
    pad = AutoTokenizer.from_pretrained(job["model"]).pad_token_id or 0
    if length := setting.get("packing"):
        parts, micro = [packed(part, length, pad) for part in (rows[:first], rows[first:])], 1
        warm, total = len(parts[0]), len(parts[0]) + len(parts[1])
        data, accumulation = parts[0] + parts[1], max(1, round(warm / job["warmup_steps"]))
    else:
        data, warm, total, accumulation = plain(rows), first // micro, len(rows) // micro, per_step // micro
    folder = Path(job["folder"])
    shutil.rmtree(folder / "tokenised", ignore_errors=True)
    DatasetDict({"train": Dataset.from_list(data)}).save_to_disk(str(folder / "tokenised"))
    recorder = Recorder(("llamafactory", "peft", "transformers", "accelerate"), warm, total)
    watch(recorder, accumulation)
    arguments = schedule(job, micro, accumulation) | {
        "stage": "sft", "do_train": True, "dataset": "tokenised", "finetuning_type": "lora",
        "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target": "all", "model_name_or_path": job["model"],
        "template": "empty",
        "tokenized_path": str(folder / "tokenised"), "cutoff_len": job["max_length"], "bf16": True,
        "disable_gradient_checkpointing": not setting["checkpointing"], "disable_shuffling": True,
        "packing": bool(length), "neat_packing": bool(length),
        "report_to": "none", "overwrite_cache": True, "remove_unused_columns": False,
    }  # fmt: skip
    if length:
        arguments["cutoff_len"] = length
    run_exp(arguments)
    recorder.finish()


if __name__ == "__main__":
    main()
