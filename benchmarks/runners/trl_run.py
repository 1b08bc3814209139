"""TRL's SFTTrainer with PEFT's LoRA, on pretokenised rows. Logging, entropy and accuracy stay as TRL ships them.

Settings: micro_batch; grouped; checkpointing; adapters (float32 under autocast, TRL's default, or bfloat16); full: no
LoRA, all weights train, which are then what `adapters` speaks of;
packing: a length (best-fit decreasing, padding-free, sequences kept apart by their positions); quant: nf4 or fp4, by
bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from recorder import Recorder, labels, ordered, read_job
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers_trainer import Quiet, schedule, watch
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset


def table(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row["tokens"] for row in rows], "labels": [labels(row) for row in rows]})


def load(model: str, quant: str | None, dtype: torch.dtype) -> Any:
    """The base model in `dtype`, its linears in 4 bits where `quant` says so, as QLoRA's recipe has it."""
    if quant is None:
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant, bnb_4bit_compute_dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    for module in loaded.modules():
        # a pass without gradients would turn the weights, for good, into a form that has no backward pass
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded


def main() -> None:
    job = read_job()
    setting, rows, per_step = job["setting"], ordered(job), job["rows_per_step"]
    first, micro = job["warmup_steps"] * per_step, setting["micro_batch"]
    if length := setting.get("packing"):
        parts = [pack_dataset(table(part), length, "bfd") for part in (rows[:first], rows[first:])]
        data, micro = concatenate_datasets(parts), 1
        warm, total = len(parts[0]), len(data)
        accumulation = max(1, round(warm / job["warmup_steps"]))
        extra = {"packing": True, "max_length": length, "dataset_kwargs": {"skip_prepare_dataset": True}}
    else:
        data, warm, total = table(rows), first // micro, len(rows) // micro
        accumulation, extra = per_step // micro, {"packing": False, "max_length": None}
    recorder = Recorder(("trl", "peft", "transformers", "accelerate"), warm, total)
    watch(recorder, accumulation)
    wide, full = setting.get("adapters", "float32") == "float32", setting.get("full", False)
    model = load(job["model"], setting.get("quant"), torch.float32 if full and wide else torch.bfloat16)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = model if full else get_peft_model(model, lora, autocast_adapter_dtype=wide)
    config = SFTConfig(
        **schedule(job, micro, accumulation), **extra, bf16=wide, train_sampling_strategy="sequential",
        gradient_checkpointing=setting["checkpointing"], report_to=[],
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Quiet()]).train()
    recorder.finish()


if __name__ == "__main__":
    main()
