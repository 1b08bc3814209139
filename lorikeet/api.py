"""The verbs: prepare, train, evaluate, predict, chat, merge, show. The only file that joins the layers.

Each verb opens what it needs in the order in which things can go wrong cheaply: folder, tokenizer, data, weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorikeet import config
from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare, merged_tensors, probes
from lorikeet.base.errors import CheckFailed, CheckpointError, OutputError, RecipeError, TokenizerError
from lorikeet.base.files import need_space, new_folder, sha256_file, write_file
from lorikeet.base.kinds import kind_class
from lorikeet.base.log import note
from lorikeet.base.nouns import Batch
from lorikeet.checkpoints import hf
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.config import Recipe
from lorikeet.data import pipeline, sources
from lorikeet.data.formats.auto import Auto
from lorikeet.data.pack import ExampleSource, pack_row, plan_rows, run_step, total_steps
from lorikeet.data.pipeline import Prepared
from lorikeet.data.rows import conversations
from lorikeet.data.show import show as show_examples
from lorikeet.data.templates._contract import Template, TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.infer.chat import Chat
from lorikeet.infer.engine import Engine
from lorikeet.infer.predict import check_output
from lorikeet.infer.predict import predict as predict_file
from lorikeet.infer.samples import write_samples
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM, Shape
from lorikeet.models.load import ModelOptions, identify, load, pick_device, pick_dtype
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from lorikeet.tokens._contract import Tokenizer
from lorikeet.tokens.open import open_tokenizer
from lorikeet.train import state as run_state
from lorikeet.train.capacity import default_row_tokens
from lorikeet.train.evaluate import evaluate as evaluate_batches
from lorikeet.train.loop import Progress, Run, summarise
from lorikeet.train.loop import train as train_loop
from lorikeet.train.metrics import Metrics, peak_rss_bytes
from lorikeet.train.optim import Stepper
from lorikeet.train.report import write_report

GIB = 1 << 30
MERGED_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Base:
    """A model on disk with its tokenizer, before any weight is read."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    shape: Shape
    options: ModelOptions

    def load(self, quant: Quant) -> CausalLM:
        """Read the weights."""
        device = pick_device(self.options.device)
        dtype = pick_dtype(self.options.dtype, device)
        return load(self.checkpoint, quant, dtype=dtype, device=device, family=self.options.family)


def open_base(options: ModelOptions) -> Base:
    """Find the model (downloading an alias or hub name) and check that its tokenizer fits."""
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    pick_device(options.device)  # one that is not there is told before anything is downloaded
    path = resolve(options.path, allow_pickle=options.allow_pickle)
    checkpoint = open_checkpoint(path, allow_pickle=options.allow_pickle)
    _, spec = identify(checkpoint, options.family)
    tokenizer = open_tokenizer(path, checkpoint)
    if tokenizer.vocab_size > spec.shape.vocab_size:
        raise TokenizerError(
            "the tokenizer has more tokens than the model",
            given=f"{tokenizer.vocab_size} tokens in the tokenizer",
            allowed=f"at most {spec.shape.vocab_size}",
            try_="the tokenizer that belongs to the model",
        )
    return Base(checkpoint, tokenizer, spec.shape, options)


def prepare(recipe: Recipe) -> tuple[Base, Template, Prepared]:
    """Read, render and store the recipe's data."""
    base = open_base(recipe.model)
    template = recipe.data.template.bind(base.tokenizer)
    if recipe.data.max_length > base.shape.max_position:
        raise RecipeError(
            "data.max_length: beyond the model's context",
            given=recipe.data.max_length,
            allowed=f"at most {base.shape.max_position}",
            try_=f"data.max_length={base.shape.max_position}",
        )
    return base, template, pipeline.prepare(recipe.data, base.tokenizer, template, seed=recipe.train.seed)


def show(recipe: Recipe, n: int = 5) -> None:
    """Print `n` conversations as the model sees them, trained tokens coloured."""
    from rich.console import Console

    base, _, prepared = prepare(recipe)
    for part in show_examples(prepared.preview(), base.tokenizer, n):
        Console().print(part)
    note(str(prepared))


def train(recipe: Recipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Run a recipe, or go on with it where its output_dir holds a checkpoint. Returns the summary.

    Raises Interrupted (exit code 3) after saving when asked to stop."""
    folder, started = recipe.output_dir, time.time()
    config.check_effects(recipe)
    run_state.check_folder(folder, overwrite=overwrite)
    need_space(folder, GIB // 4, "checkpoints and the adapter")
    base, template, prepared = prepare(recipe)
    with run_state.locked(folder):
        run_state.empty_folder(folder) if overwrite else run_state.clear_leftovers(folder)
        note(f"data: {prepared}")
        model = base.load(recipe.quant)
        recipe = _with_row_tokens(recipe, model)
        recipe.adapter.attach(model, seed=recipe.train.seed)
        parameters = recipe.adapter.parameters(model)
        size = f"{sum(parameter.numel() for parameter in parameters.values()):,} trainable parameters"
        note(f"model: {recipe.model.path}, {base.shape.layers} layers, {model.dtype} on {model.device}; {size}")
        identity = _identity(recipe, base, template, prepared, model)
        saver = partial(
            storage.save_adapter, adapter=recipe.adapter, model=model, identity=_adapter_identity(recipe, identity)
        )
        run = Run(
            folder,
            model,
            parameters,
            partial(_step_batches, prepared.train, recipe, model),
            _steps(recipe, prepared),
            saver,
            _validation_rows(recipe, prepared, model),
            recipe.evaluate.before,
            identity,
        )
        done, stepper = _resume(run, recipe)
        config.save(recipe, folder / "recipe.yaml")
        engine = Engine(model, base.tokenizer, template)
        asked = list(prepared.validation or [])[: recipe.evaluate.samples]
        if done.step == 0 and asked:
            write_samples(folder, engine, asked, recipe.generate, "before")
        outcome = train_loop(run, recipe.train, done=done, stepper=stepper)
        with new_folder(folder / "adapter") as adapter_folder:
            saver(adapter_folder)
        if asked:
            write_samples(folder, engine, asked, recipe.generate, "after")
        summary = summarise(outcome, run, wall_seconds=time.time() - started) | {"data": prepared.as_dict()}
        write_file(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_report(folder)
    return summary


def evaluate(target: Recipe | Path, *, adapter: Path | None = None) -> dict[str, Any]:
    """Loss, perplexity and token accuracy on a recipe's validation data, with the run's adapter (or `adapter`).

    A bare recipe is evaluated with its run's adapter where there is one, else the base alone."""
    recipe = config.load(target / "recipe.yaml") if isinstance(target, Path) else target
    if sources.validation_of(recipe.data) is None:
        raise RecipeError("data.validation: not set, so there is nothing to evaluate on", try_="data.validation=0.1")
    if isinstance(target, Path) and adapter is None and not (recipe.output_dir / "adapter").exists():
        adapter = target / "adapter"
    base, _, prepared = prepare(recipe)
    assert prepared.validation is not None
    model = base.load(recipe.quant)
    recipe = _with_row_tokens(recipe, model)
    chosen = adapter or recipe.output_dir / "adapter"
    if used := adapter is not None or chosen.exists():
        _attach(model, base, chosen)
    rows = _validation_rows(recipe, prepared, model)
    assert rows is not None
    result = evaluate_batches(model, rows)
    found = {"eval_loss" if name == "loss" else name: value for name, value in vars(result).items()}
    return {
        "adapter": str(chosen) if used else "none",
        **found,
        "conversations": len(prepared.validation),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def engine(path: str | Path) -> Engine:
    """What answers: a run, an adapter folder, a merged model, or any model that `resolve` finds."""
    return _open(path)[0]


def predict(path: str | Path, inputs: Sequence[Path | str], output: Path, **options: Any) -> dict[str, Any]:
    """Answer every prompt of the input files; writes one JSON object per line to `output`."""
    generate = GenerateOptions(**options)
    check_output(output, inputs)
    read = list(conversations([str(file) for file in inputs], Auto.model_validate({}), reply=False))
    start = time.perf_counter()
    rows = predict_file(engine(path), read, output, generate)
    seconds = time.perf_counter() - start
    return {"replies": len(rows), "seconds": seconds, "output": str(output), "peak_rss_bytes": peak_rss_bytes()}


def chat(path: str | Path, **options: Any) -> None:
    """Talk to a run, an adapter or a model at the terminal."""
    Chat(engine(path), GenerateOptions(**options)).run()


def merge(path: Path, output: Path, *, dtype: str | None = None, max_shard_bytes: int = 4 * GIB) -> dict[str, Any]:
    """Fold a run's adapter into its base: a Hugging Face folder. Then load it and compare it with base + adapter.

    Raises CheckFailed if the two say different things."""
    if dtype not in (None, *MERGED_DTYPES):
        raise RecipeError(
            f"--dtype: there is no '{dtype}'", given=dtype, allowed=" ".join(MERGED_DTYPES), try_="--dtype bfloat16"
        )
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise OutputError(f"{output} exists already", given=str(output), try_="another folder")
    engine_, base, adapter, identity = _open(path)
    if adapter is None:
        raise CheckpointError(f"{path} has no adapter to merge", given=str(path), allowed="a run or an adapter folder")
    model, target = engine_.model, getattr(torch, dtype) if dtype else engine_.model.dtype
    size = sum(tensor.numel() for _, tensor in model.tensors()) * torch.empty(0, dtype=target).element_size()
    need_space(output, size + GIB // 8, "the merged model")
    settings = model.shape.config | {"dtype": str(target).split(".")[-1]}
    with new_folder(output) as folder:
        hf.save(folder, settings, merged_tensors(model, adapter, target), max_shard_bytes=max_shard_bytes)
        engine_.tokenizer.save(folder)
        write_file(folder / "generation_config.json", json.dumps(engine_.generation_config(), indent=2) + "\n")
        write_file(folder / storage.IDENTITY, json.dumps({"template": identity.get("template")}, indent=2) + "\n")
    note("comparing the merged model with base + adapter")
    made = open_checkpoint(output)
    merged = load(made, NoQuant(), dtype=model.dtype, device=model.device, family=base.options.family)
    check = compare(model, merged, probes(engine_.tokenizer), 1e-6 if target == torch.float32 == model.dtype else 0.02)
    found = {
        "output": str(output),
        "bytes": size,
        "same_top_token": check.agreement,
        "mean_kl": check.kl,
        "max_logit_difference": check.max_difference,
    }
    if not check.passed:
        raise CheckFailed(
            f"the merged model in {output} does not equal base + adapter",
            given=f"mean KL {check.kl:.3g}, same most likely token {check.agreement:.0%}",
            allowed=f"mean KL at most {check.tolerance:g}",
        )
    told = f"mean KL {check.kl:.2e}, same most likely token {check.agreement:.0%}"
    note(f"merged = base + adapter within rounding: {told}")
    return found


def _open(path: str | Path) -> tuple[Engine, Base, Adapter | None, dict[str, Any]]:
    """(engine, base, adapter, identity) of whatever can answer."""
    folder = Path(path)
    quant, adapter = NoQuant(), None
    if (folder / "recipe.yaml").is_file():
        recipe = config.load(folder / "recipe.yaml")
        options, quant = recipe.model, recipe.quant
        where = run_state.trained_adapter(folder)
        template_options: TemplateOptions = recipe.data.template
    elif (folder / storage.CONFIG).is_file():
        where = folder
        base_name = storage.read_json(folder / storage.CONFIG).get("base_model_name_or_path")
        if not base_name:
            raise CheckpointError(
                f"the adapter in {folder} does not say which model it belongs to",
                given=f"no base_model_name_or_path in {storage.CONFIG}",
                try_="write the model's path there",
            )
        options = ModelOptions(path=str(base_name))
        template_options = _template(folder)
    else:
        where, options, template_options = None, ModelOptions(path=str(path)), _template(folder)
    base = open_base(options)
    template = template_options.bind(base.tokenizer)
    model = base.load(quant)
    identity: dict[str, Any] = {}
    if where is not None:
        adapter, identity = _attach(model, base, where)
    if identity and identity.get("template_fingerprint") not in (None, template.fingerprint):
        raise CheckpointError(
            "the template differs from the one the adapter was trained with",
            given=template.fingerprint[:12],
            allowed=identity["template_fingerprint"][:12],
        )
    weights = base.checkpoint.fingerprint() + (sha256_file(where / storage.WEIGHTS) if where else "")
    return Engine(model, base.tokenizer, template, f"{weights} {model.dtype}"), base, adapter, identity


def _template(folder: Path) -> TemplateOptions:
    """The template that lorikeet.json names, else the model's own."""
    named = storage.read_json(folder / storage.IDENTITY).get("template")
    if named is None:
        return Jinja.model_validate({})
    return kind_class("lorikeet.data.templates", TemplateOptions, named["kind"]).model_validate(named)


def _attach(model: CausalLM, base: Base, folder: Path) -> tuple[Adapter, dict[str, Any]]:
    adapter, tensors, identity = storage.read_adapter(folder)
    storage.check_base(identity, base.checkpoint, folder)
    adapter.attach(model, seed=0)
    storage.fill(model, adapter, tensors, source=folder)
    return adapter, identity


def _with_row_tokens(recipe: Recipe, model: CausalLM) -> Recipe:
    """The recipe with train.row_tokens decided, so that the run's folder says what was used."""
    if recipe.train.row_tokens is not None:
        return recipe
    checkpointing = recipe.train.gradient_checkpointing
    fits = default_row_tokens(model.shape, model.dtype, model.device, gradient_checkpointing=checkpointing)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"row_tokens": fits})})


def _steps(recipe: Recipe, prepared: Prepared) -> int:
    options = recipe.train
    return total_steps(prepared.epoch_examples, options.examples_per_step, options.num_train_epochs, options.max_steps)


def _step_batches(examples: ExampleSource, recipe: Recipe, model: CausalLM, step: int) -> list[Batch]:
    """The run's step as micro-batches: a pure function of the step."""
    options = recipe.train
    assert options.row_tokens is not None
    # dropout's masks are drawn per row
    share = _may_share(recipe, model) and getattr(recipe.adapter, "lora_dropout", 0) == 0
    size, capacity = options.examples_per_step, options.row_tokens
    return run_step(examples, step, seed=options.seed, examples_per_step=size, row_tokens=capacity, share=share)


def _may_share(recipe: Recipe, model: CausalLM) -> bool:
    return model.shares_within is None or recipe.data.max_length <= model.shares_within


def _validation_rows(recipe: Recipe, prepared: Prepared, model: CausalLM) -> list[Batch] | None:
    capacity, share = recipe.train.row_tokens, _may_share(recipe, model)
    if prepared.validation is None:
        return None
    assert capacity is not None
    rows = plan_rows(list(prepared.validation), row_tokens=capacity, share=share)
    return [pack_row(row, share=share) for row in rows]


def _identity(recipe: Recipe, base: Base, template: Template, prepared: Prepared, model: CausalLM) -> dict[str, Any]:
    """What must be the same for a run to go on: everything that decides its numbers."""
    cadence = {"logging_steps", "eval_steps", "save_steps", "save_total_limit"}
    return {
        "base": recipe.model.path,
        "family": recipe.model.family and sha256_file(Path(recipe.model.family)),
        "base_fingerprint": base.checkpoint.fingerprint(),
        "tokenizer_fingerprint": base.tokenizer.fingerprint,
        "template_fingerprint": template.fingerprint,
        "data": prepared.train.fingerprint,
        "quant": recipe.quant.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json", exclude=cadence),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _adapter_identity(recipe: Recipe, identity: dict[str, Any]) -> dict[str, Any]:
    names = ("base", "base_fingerprint", "tokenizer_fingerprint", "template_fingerprint", "data", "quant")
    return {name: identity[name] for name in names} | {"template": recipe.data.template.model_dump(mode="json")}


def _resume(run: Run, recipe: Recipe) -> tuple[Progress, Stepper]:
    """Load the newest whole checkpoint, if there is one."""
    stepper, last = Stepper(run.parameters, recipe.train), run_state.latest_checkpoint(run.folder)
    metrics = Metrics(run.folder / "metrics.jsonl")
    if last is None:
        if run_state.checkpoints(run.folder):
            raise CheckpointError(f"no checkpoint in {run.folder} is whole", try_="--overwrite to start anew")
        metrics.truncate(-1)
        return Progress(), stepper
    state, optimizer = run_state.read_state(last)
    run_state.check_identity(state["identity"], json.loads(json.dumps(run.identity)), last)
    storage.fill(run.model, recipe.adapter, storage.read_adapter(last)[1], source=last)
    stepper.load_state_dict(optimizer)
    done = Progress(**state["progress"])
    metrics.truncate(done.step)
    note(f"going on from {last}")
    return done, stepper
