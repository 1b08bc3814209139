"""transformers' TrainingArguments, which LLaMA-Factory, TRL, and most training scripts share: the table, and what
several keys say together (warm-up, precision, batch, when to validate and save)."""

from __future__ import annotations

from typing import Any

from lorikeet.migrate._contract import Translation
from lorikeet.migrate._kinds import OPTIMIZERS, set_choice, set_schedule, unread_by
from lorikeet.migrate._table import Row, by_hand, differs, not_needed, to

_LOG = "figures go to metrics.jsonl and report.html in the run's folder; no account, no upload"
_TELL = "figures go to metrics.jsonl and report.html; train.report_to: [tensorboard, wandb, trackio] tells them too"
_SPEED = "changes speed or memory there, and no number; Lorikeet has its own way"
_HUB = "upload the merged folder with the hub's own tool"
_DEVICES = "several devices do not work here yet; a step there is as many times larger as it had devices"

TABLE: dict[str, Row] = {
    "output_dir": to("output_dir", "text"),
    "learning_rate": to("train.learning_rate", "number"),
    "num_train_epochs": to("train.num_train_epochs", "number"),
    "weight_decay": to("train.weight_decay", "number"),
    "max_grad_norm": to("train.max_grad_norm", "number"),
    "adam_beta1": to("train.adam_beta1", "number"),
    "adam_beta2": to("train.adam_beta2", "number"),
    "adam_epsilon": to("train.adam_epsilon", "number"),
    "seed": to("train.seed", "whole"),
    "save_total_limit": to("train.save_total_limit", "whole"),
    "max_steps": by_hand("train.max_steps"),
    "per_device_train_batch_size": by_hand("train.per_device_train_batch_size", "train.examples_per_step"),
    "gradient_accumulation_steps": by_hand("train.gradient_accumulation_steps", "train.examples_per_step"),
    "logging_steps": by_hand("train.logging_steps"),
    "logging_strategy": not_needed("train.logging_steps is always in steps"),
    "lr_scheduler_type": by_hand("train.lr_scheduler_type"),
    "warmup_ratio": by_hand("train.warmup_ratio"),
    "warmup_steps": by_hand("train.warmup_steps", "train.warmup_ratio"),
    "optim": by_hand("train.optim"),
    "eval_steps": by_hand("train.eval_steps"),
    "eval_strategy": by_hand("train.eval_steps"),
    "evaluation_strategy": by_hand("train.eval_steps"),
    "save_steps": by_hand("train.save_steps"),
    "save_strategy": by_hand("train.save_steps"),
    "gradient_checkpointing": to("train.gradient_checkpointing", "flag"),
    "bf16": by_hand("model.dtype"),
    "fp16": by_hand(),
    "lr_scheduler_kwargs": by_hand("train.lr_scheduler_type"),
    "optim_args": differs("the settings of an optimizer stand below it here: train.optim.clip_threshold=1.0"),
    "label_smoothing_factor": to("train.label_smoothing_factor", "number"),
    "neftune_noise_alpha": to("train.neftune_noise_alpha", "number"),
    "load_best_model_at_end": differs("the last weights are kept; every checkpoint of the run can be evaluated"),
    "metric_for_best_model": not_needed("the last weights are kept; every checkpoint of the run can be evaluated"),
    "greater_is_better": not_needed("the last weights are kept; every checkpoint of the run can be evaluated"),
    "dataloader_drop_last": differs("the last, smaller step of an epoch is trained too"),
    "group_by_length": not_needed("rows are packed without padding; the order stays random"),
    "length_column_name": not_needed("rows are packed without padding; the order stays random"),
    "data_seed": not_needed("the order of the data follows from train.seed too"),
    "deepspeed": differs(_DEVICES),
    "fsdp": differs(_DEVICES),
    "fsdp_config": differs(_DEVICES),
    "resume_from_checkpoint": not_needed("the same command goes on from the newest checkpoint by itself"),
    "overwrite_output_dir": not_needed("lorikeet train recipe.yaml --overwrite"),
    "do_train": not_needed("lorikeet train recipe.yaml"),
    "do_eval": not_needed("lorikeet evaluate RUN; training validates wherever data.validation is given"),
    "do_predict": not_needed("lorikeet predict RUN FILE --output replies.jsonl"),
    "predict_with_generate": not_needed("lorikeet predict RUN FILE --output replies.jsonl"),
    "report_to": not_needed(_TELL),
    "run_name": not_needed(_LOG),
    "logging_dir": not_needed(_LOG),
    "logging_first_step": not_needed(_LOG),
    "disable_tqdm": not_needed(_LOG),
    "log_level": not_needed(_LOG),
    "push_to_hub": not_needed(_HUB),
    "hub_model_id": not_needed(_HUB),
    "hub_strategy": not_needed(_HUB),
    "hub_token": not_needed(_HUB),
    "hub_private_repo": not_needed(_HUB),
    "remove_unused_columns": not_needed("columns that the format does not read are left alone"),
    "per_device_eval_batch_size": not_needed("validation packs rows too"),
    "eval_accumulation_steps": not_needed("validation keeps sums, never logits"),
    "prediction_loss_only": not_needed("validation keeps sums, never logits"),
    "eval_delay": not_needed("validation changes no weight; train.eval_steps says when"),
    "eval_on_start": to("evaluate.before", "flag"),
    "save_only_model": not_needed("checkpoints always hold what resuming needs"),
    "save_safetensors": not_needed("weights are always saved as safetensors"),
    "gradient_checkpointing_kwargs": not_needed(_SPEED),
    "tf32": not_needed(_SPEED),
    "bf16_full_eval": not_needed(_SPEED),
    "fp16_full_eval": not_needed(_SPEED),
    "fp16_opt_level": not_needed(_SPEED),
    "half_precision_backend": not_needed(_SPEED),
    "torch_compile": not_needed(_SPEED),
    "use_liger_kernel": not_needed(_SPEED),
    "auto_find_batch_size": not_needed("rows are split to fit the memory; a step's examples stay the same"),
    "dataloader_num_workers": not_needed(_SPEED),
    "dataloader_pin_memory": not_needed(_SPEED),
    "dataloader_persistent_workers": not_needed(_SPEED),
    "dataloader_prefetch_factor": not_needed(_SPEED),
    "ddp_timeout": not_needed("one device"),
    "ddp_find_unused_parameters": not_needed("one device"),
    "ddp_backend": not_needed("one device"),
    "local_rank": not_needed("one device"),
    "use_cpu": by_hand("model.device"),
    "no_cuda": by_hand("model.device"),
    "full_determinism": not_needed("order, initialisation and dropout always follow from train.seed"),
    "include_num_input_tokens_seen": not_needed(_LOG),
    "average_tokens_across_devices": not_needed("the loss is always one mean over the whole step's tokens"),
}
DEFAULTS: dict[str, tuple[str, Any]] = {
    "train.learning_rate": ("learning_rate", 5e-5),
    "train.num_train_epochs": ("num_train_epochs", 3.0),
    "train.lr_scheduler_type": ("lr_scheduler_type", "linear"),
    "train.seed": ("seed", 42),
    "train.save_steps": ("save_steps", 500),
}
BATCH = 8  # per_device_train_batch_size, where nothing is said


def together(translation: Translation) -> None:
    """What several keys of TrainingArguments say together. Call before the table is applied."""
    _batch(translation)
    _length(translation)
    _schedule(translation)
    _precision(translation)
    _save(translation)


def _batch(translation: Translation) -> None:
    content = translation.content
    size = content.whole("per_device_train_batch_size", BATCH)
    steps = content.whole("gradient_accumulation_steps", 1)
    size_key, steps_key = "per_device_train_batch_size", "gradient_accumulation_steps"
    if content.devices > 1:
        note = f"{size} x {steps} x {content.devices} devices"
        translation.seen |= {size_key, steps_key}
        key = size_key if content.has(size_key) else steps_key if content.has(steps_key) else ""
        translation.set("train.examples_per_step", size * steps * content.devices, key, note)
        if content.has("deepspeed"):
            why = f"one device here; its step is as large as that of the {content.devices} together"
            translation.leave("not needed", "deepspeed", why)
        return
    for option, key, value in (("train." + size_key, size_key, size), ("train." + steps_key, steps_key, steps)):
        if content.has(key):
            translation.set(option, value, key)
        else:
            translation.set(option, value, "", f"{translation.system}'s default for {key}")


def _length(translation: Translation) -> None:
    content = translation.content
    if content.has("max_steps") and content.number("max_steps") > 0:
        translation.set("train.max_steps", content.whole("max_steps"), "max_steps")
        if content.has("num_train_epochs"):
            translation.leave("not needed", "num_train_epochs", "max_steps decides the length")
        translation.seen.add("num_train_epochs")
    translation.seen.add("max_steps")
    every = content.number("logging_steps", 1)
    if content.has("logging_steps"):
        if isinstance(every, int) and every >= 1:
            translation.set("train.logging_steps", every, "logging_steps")
        else:
            translation.leave("not needed", "logging_steps", "written after every step")


def _schedule(translation: Translation) -> None:
    content = translation.content
    if content.has("lr_scheduler_type"):
        name = content.text("lr_scheduler_type")
        set_schedule(translation, name, "lr_scheduler_type")
    if content.has("optim"):
        set_choice(translation, "train.optim", OPTIMIZERS, content.text("optim"), "optim")
    warm_up(translation)
    optim = translation.get("train.optim")
    for key in unread_by(optim):
        if content.has(key):
            translation.leave("not needed", key, f"{optim} has none")


def warm_up(translation: Translation) -> None:
    """warmup_steps and warmup_ratio: steps win, a number of steps below 1 is a share, and constant has none."""
    content = translation.content
    steps, ratio = content.number("warmup_steps"), content.number("warmup_ratio")
    asked = [key for key in ("warmup_steps", "warmup_ratio") if content.has(key)]
    translation.seen |= set(asked)
    if translation.get("train.lr_scheduler_type") == "constant":
        for key in asked:
            if content.number(key):
                translation.leave("not needed", key, "the schedule 'constant' has no warm-up, there either")
    elif 0 < steps < 1:
        translation.set("train.warmup_ratio", steps, "warmup_steps", "below 1: a share of the steps")
    elif steps:
        translation.set("train.warmup_steps", content.whole("warmup_steps"), "warmup_steps")
        if ratio:
            translation.leave("not needed", "warmup_ratio", "warmup_steps overrules it")
    elif content.has("warmup_ratio"):
        translation.set("train.warmup_ratio", ratio, "warmup_ratio")


def _precision(translation: Translation) -> None:
    content = translation.content
    if content.has("bf16") and content.text("bf16").lower() != "auto" and content.flag("bf16"):
        translation.set("model.dtype", "bfloat16", "bf16")
    if content.has("fp16") and content.flag("fp16"):
        why = "model.dtype: auto takes the dtype the device is fast at; trained weights are float32 here and there"
        translation.leave("not needed", "fp16", why)
    translation.seen |= {"bf16", "fp16"}
    for key in ("use_cpu", "no_cuda"):
        if content.has(key) and content.flag(key):
            translation.set("model.device", "cpu", key)
        translation.seen.add(key)


def _save(translation: Translation) -> None:
    content = translation.content
    strategy = content.text("save_strategy", "steps")
    if strategy != "steps":
        why = "a checkpoint is always written at the end; train.save_steps writes more"
        translation.leave("not needed", "save_strategy", why)
        translation.set("train.save_steps", None, "save_strategy")
        translation.seen.add("save_steps")
        return
    translation.seen.add("save_strategy")
    if content.has("save_steps"):
        every = content.number("save_steps")
        if isinstance(every, int) and every >= 1:
            translation.set("train.save_steps", every, "save_steps")
        else:
            translation.leave("not needed", "save_steps", "a share of the run; train.save_steps counts steps")


def when_to_validate(translation: Translation) -> None:
    """eval_steps and eval_strategy. Call when data.validation is settled."""
    content = translation.content
    strategy_key = "eval_strategy" if content.has("eval_strategy") else "evaluation_strategy"
    strategy = content.text(strategy_key)
    validates = translation.get("data.validation") is not None
    every = content.number("eval_steps", content.number("logging_steps", 500))
    translation.seen |= {"eval_strategy", "evaluation_strategy", "eval_steps"}
    if not validates:
        for key in (strategy_key, "eval_steps"):
            if content.has(key) and content.text(key).lower() not in ("no", "0"):
                translation.leave("not needed", key, "there is nothing to validate on")
        if translation.content.has("eval_on_start"):
            translation.leave("not needed", "eval_on_start", "there is nothing to validate on")
    elif strategy == "epoch":
        translation.leave("not needed", strategy_key, "validated at the end of the run; train.eval_steps adds more")
    elif strategy != "steps":
        if content.has("eval_steps"):
            translation.leave("not needed", "eval_steps", f"has no effect there without {strategy_key}: steps")
    elif every >= 1 and isinstance(every, int):
        note = "" if content.has("eval_steps") else "every logging_steps, where eval_steps is not given"
        translation.set("train.eval_steps", every, "eval_steps" if content.has("eval_steps") else strategy_key, note)
    else:
        translation.leave("not needed", "eval_steps", "a share of the run; train.eval_steps counts steps")
