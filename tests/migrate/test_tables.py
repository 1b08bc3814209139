"""The tables cannot rot: what they name exists, and what they know stands on the page for people who come."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorikeet.base.kinds import kinds
from lorikeet.base.option_fields import find
from lorikeet.config import Recipe
from lorikeet.migrate import alpaca_lora, axolotl, hf_arguments, llamafactory
from lorikeet.migrate._axolotl_table import PREFIXES
from lorikeet.migrate._kinds import OPTIMIZERS, SCHEDULES, TEMPLATES
from lorikeet.migrate._table import Table, option_choices

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")
TABLES: dict[str, Table] = {
    "llamafactory": llamafactory.TABLE,
    "axolotl": axolotl.TABLE,
    "hf_arguments": hf_arguments.TABLE,
    "alpaca_lora": alpaca_lora.TABLE,
}
DEFAULTS = {
    "llamafactory": llamafactory.DEFAULTS,
    "axolotl": axolotl.DEFAULTS,
    "alpaca_lora": alpaca_lora.DEFAULTS,
    **{dialect.name: dialect.defaults for dialect in hf_arguments.DIALECTS},
}
ROWS = [(system, key) for system, table in TABLES.items() for key in table]


def exists(option: str) -> bool:
    return find(Recipe, tuple(option.split(".")), {})[0] is not None


@pytest.mark.parametrize("system", TABLES)
def test_a_row_names_options_of_ours_or_a_reason(system: str) -> None:
    for key, row in TABLES[system].items():
        assert [option for option in row.options if not exists(option)] == [], key
        if row.status in ("differs", "not needed"):
            assert row.why and not row.why.endswith("."), key
        if row.status == "to":
            assert len(row.options) == 1, key


@pytest.mark.parametrize("system", DEFAULTS)
def test_defaults_are_of_options_of_ours(system: str) -> None:
    assert [option for option in DEFAULTS[system] if not exists(option)] == []


def test_the_rows_that_the_code_reads_are_read_by_it() -> None:
    sources = "".join(path.read_text() for path in (Path(llamafactory.__file__).parent).glob("*.py"))
    for system, key in ROWS:
        if TABLES[system][key].status == "by hand":
            assert len(re.findall(rf'"{key}"', sources)) > 1, f"{system}: {key} stands in its table and nowhere else"


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_lead_to_kinds(name: str) -> None:
    assert set(TEMPLATES[name]) <= set(kinds("lorikeet.data.templates"))


def test_choices_there_are_found_here() -> None:
    assert set(option_choices("train.lr_scheduler_type")) <= set(SCHEDULES)
    assert set(option_choices("train.optim")) <= {word for words in OPTIMIZERS.values() for word in words}


@pytest.mark.parametrize("system", TABLES)
def test_every_key_is_on_the_page(system: str) -> None:
    assert [key for key in TABLES[system] if not re.search(rf"`(--)?{key}[` ]", PAGE)] == []


def test_the_prefixes_are_on_the_page() -> None:
    assert [prefix for prefix in PREFIXES if f"`{prefix}`" not in PAGE] == []


# the flags of the five systems that this one unifies
FLAGS = {
    "llm_finetuning finetune.py": """
        base_model data_path output_dir batch_size micro_batch_size num_epochs learning_rate
        cutoff_len val_set_size eval_steps save_steps logging_steps lora_r lora_alpha lora_dropout lora_target_modules
        train_on_inputs add_eos_token group_by_length wandb_project wandb_run_name wandb_watch wandb_log_model
        resume_from_checkpoint prompt_template mode gradient_checkpointing gptq_backend gptq_groupsize eval""",
    "llm_finetuning inference.py": """base data delta mode batch_size type max_new_tokens temperature num_beams
        repetition_penalty overwrite_instruction prompt_template selected_ids api_url guidance_template
        gptq_group_size""",
    "llm_finetuning, others": "--branch --threads --text-only --output --clean --check",
    "Qwen finetune.py": """model_name_or_path data_path eval_data_path lazy_preprocess cache_dir optim model_max_length
        use_lora lora_r lora_alpha lora_dropout lora_target_modules lora_weight_path lora_bias q_lora deepspeed NNODES
        NODE_RANK MASTER_ADDR MASTER_PORT -m -d adam_beta2 report_to bf16 fp16""",
    "Qwen, others": """run_gptq.py --out_path --max_len --bits --group-size openai_api.py --api-auth --cpu-only
        --server-port --server-name --disable-gc cli_demo.py :help :clear :history :seed :conf :exit web_demo.py --share
        --inbrowser use_cache_quantization use_dynamic_ntk use_logn_attn""",
    "llama-lora-fine-tuning": """--input_dir --model_size --in-file --out-file --begin --end --keep-lang --skip-lang
        --reduce-rep --max-length --num_gpus lora_r lora_alpha lora_dropout model_name_or_path data_path fp16 output_dir
        num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
        evaluation_strategy save_strategy save_steps save_total_limit learning_rate weight_decay warmup_ratio
        lr_scheduler_type logging_steps model_max_length gradient_checkpointing --base_model --lora_weights --load_8bit
        --prompt_template""",
    "QLoRA-LLM": """model_type max_seq_len max_train_samples max_val_samples dataloader_workers full_pad val_interval
        val_steps lora_r lora_scaling lora_dropout lora_attn_query lora_attn_key lora_attn_value lora_attn_proj
        lora_attn_mlp train_bias train_head quant_4bit quant_lora_4bit quant_4bit_double quant_4bit_type
        convert_lora_checkpoint.py convert_meta_checkpoint.py""",
    "LLM-FineTuning-Guide": """--do_train --do_predict --train_file --validation_file --test_file --prompt_column
        --response_column --overwrite_cache --model_name_or_path --output_dir --pre_seq_len --ptuning_checkpoint
        --quantization_bit --pretrained_model_path --is_cuda ui.py api.py""",
    "LoraConfig": """r lora_alpha lora_dropout bias use_rslora target_modules layers_to_transform layers_pattern
        exclude_modules rank_pattern alpha_pattern modules_to_save trainable_token_indices use_dora init_lora_weights
        task_type inference_mode fan_in_fan_out""",
}


@pytest.mark.parametrize("system", FLAGS)
def test_every_flag_is_on_the_page(system: str) -> None:
    assert [flag for flag in FLAGS[system].split() if not re.search(rf"`{re.escape(flag)}[` ]", PAGE)] == []


def test_the_options_on_the_page_exist() -> None:
    named = set(re.findall(r"`((?:model|quant|adapter|data|train|evaluate|generate)\.[a-z0-9_.]+)", PAGE))
    assert len(named) > 40
    own = {"train.py", "train.json", "generate.py"}  # files of theirs
    assert [name for name in named - own if not exists(name.rstrip("."))] == []
