"""Rows a second and peak memory of preparing alpaca rows: Lorikeet, TRL, LLaMA-Factory, each in a process of its own.

    python benchmarks/data_prepare.py ROWS.jsonl --model MODEL --tokenizer FOLDER --trl PYTHON --llamafactory PYTHON

ROWS.jsonl has instruction, input and output. Each side reads them, renders them with the model's chat template and
encodes them, with what it keeps afterwards (TRL: an arrow file; LLaMA-Factory: its data set; Lorikeet: its store), and
nothing of it from a cache. Loading of packages and of the tokenizer is not counted. `--peer-rows` gives the others
only the first rows; rows a second are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
import json, resource, sys, time
from pathlib import Path
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pipeline import DataOptions, prepare
from lorikeet.tokens.open import open_tokenizer
rows, model, workers = sys.argv[1:4]
tokenizer = open_tokenizer(Path(model), open_checkpoint(Path(model)))
workers = None if workers == "0" else int(workers)
options = DataOptions(train=[rows], validation=None, cache=False, max_length=1024, workers=workers)
template = options.template.bind(tokenizer)
start = time.perf_counter()
made = prepare(options, tokenizer, template, seed=0)
seconds = time.perf_counter() - start
peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"rows": made.counts.rows, "seconds": seconds, "peak_gib": peaks[0], "peak_worker_gib": peaks[1]}))
"""
TRL = """
import json, resource, sys, time
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import SFTConfig, SFTTrainer
rows, folder, workers, out = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(folder)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                     num_attention_heads=1, num_key_value_heads=1)
model = AutoModelForCausalLM.from_config(config)
start = time.perf_counter()
data = load_dataset("json", data_files=rows, split="train", cache_dir=out)
def pair(row):
    asked = row["instruction"] + ("\\n" + row["input"] if row["input"] else "")
    return {"prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": row["output"]}]}
count = None if workers == "1" else int(workers)
data = data.map(pair, remove_columns=data.column_names, num_proc=count)
settings = SFTConfig(output_dir=out, max_length=1024, report_to=[], bf16=False, use_cpu=True, dataset_num_proc=count)
SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"rows": len(data), "seconds": seconds, "peak_gib": peak}))
"""
LLAMAFACTORY = """
import importlib.machinery, json, resource, sys, time, types
sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # imported, never called for text: see runners/
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
rows, folder, workers, out = sys.argv[1:5]
name = rows.rsplit("/", 1)[-1]
json.dump({"rows": {"file_name": name}}, open(rows.rsplit("/", 1)[0] + "/dataset_info.json", "w"))
settings = dict(model_name_or_path=folder, stage="sft", do_train=True, finetuning_type="lora", dataset="rows",
                dataset_dir=rows.rsplit("/", 1)[0], template="chatml", cutoff_len=1024, output_dir=out,
                overwrite_cache=True, report_to="none")
if workers != "1":
    settings["preprocessing_num_workers"] = int(workers)
model_args, data_args, training_args, _, _ = get_train_args(settings)
module = load_tokenizer(model_args)
template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
start = time.perf_counter()
made = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"rows": len(made), "seconds": seconds, "peak_gib": peak}))
"""


def measured(python: str, program: str, *arguments: str) -> dict[str, float]:
    """What a program says on its last line; {} where it fails, with its last words on standard error."""
    done = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-1500:], file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"rows_per_second": found["rows"] / found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", required=True, help="for Lorikeet: a folder or a GGUF file")
    parser.add_argument("--tokenizer", required=True, help="for the others: the same tokenizer as a folder")
    parser.add_argument("--trl", help="a python that has trl")
    parser.add_argument("--llamafactory", help="a python that has llamafactory")
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1, help="processes of every side; 0 is Lorikeet's default")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "rows.jsonl"
        with given.rows.open(encoding="utf-8") as source:
            few.write_text("".join(line for _, line in zip(range(given.peer_rows), source)), encoding="utf-8")
        for turn in range(given.rounds):
            jobs = [("lorikeet", sys.executable, OURS, str(given.rows), given.model)]
            jobs += [("trl", given.trl, TRL, str(few), given.tokenizer)] if given.trl else []
            if given.llamafactory:
                jobs += [("llamafactory", given.llamafactory, LLAMAFACTORY, str(few), given.tokenizer)]
            for name, python, program, *arguments in jobs:
                out = Path(folder) / f"{name}{turn}"
                workers = str(given.workers if name == "lorikeet" else max(1, given.workers))
                print(json.dumps({"side": name} | measured(python, program, *arguments, workers, str(out))), flush=True)


if __name__ == "__main__":
    main()
