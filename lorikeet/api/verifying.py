"""The verb verify merge: a merged model against the run it came from, and the certificate that says how near it is."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorikeet import kernels
from lorikeet.adapters import _storage as storage
from lorikeet.api.answering import Located, locate
from lorikeet.base.errors import CheckFailed, CheckpointError, DataError, OutputError, RecipeError, TemplateError
from lorikeet.base.files import need_space, write_file
from lorikeet.base.heap import give_back
from lorikeet.base.log import note
from lorikeet.base.nouns import Example
from lorikeet.data import pipeline
from lorikeet.data.formats.auto import Auto
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.roles import asked_of
from lorikeet.data.sources import validation_of
from lorikeet.data.templates._contract import Template
from lorikeet.infer.engine import Engine
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.load import pick_device, pick_dtype
from lorikeet.verify import merge as check
from lorikeet.verify import reading
from lorikeet.verify.limits import Limits, default_limits
from lorikeet.verify.merge import HeldOut, Measured, Said

CERTIFICATE = "certificate.json"
_PARTS = {"adapter_sha256": "adapter", "adapter_settings_sha256": "an adapter's settings"}
MERGED = "merged"  # the key of a merged folder's lorikeet.json that says what was merged


@dataclass(frozen=True)
class Asked:
    """How much is measured."""

    conversations: int = 256  # of the held-out ones, the first so many
    prompts: int = 50
    max_new_tokens: int = 64

    @property
    def replies(self) -> GenerateOptions:
        return GenerateOptions(max_new_tokens=self.max_new_tokens)


def verify_merge(
    merged: Path,
    run: Path,
    *,
    data: Sequence[str | Path] = (),
    limits: Mapping[str, float] | None = None,
    output: Path | None = None,
    asked: Asked | None = None,
    model: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """Measure `merged` against `run` (a run or an adapter folder) on the run's validation data, or on `data`.

    Writes the certificate, by default certificate.json in `merged`, and returns it. `limits` replace the defaults of
    the way it was merged; `model`: options of the recipe's section, for both. Raises CheckpointError for a folder that
    was made from another adapter, CheckFailed for one that has changed since or reads prompts otherwise."""
    asked, output = asked or Asked(), output or merged / CERTIFICATE
    if output.is_dir():
        proposal = f"--output {output / CERTIFICATE}"
        raise OutputError(f"{output}: is a folder", given=str(output), allowed="a file", try_=proposal)
    need_space(output.parent, 1 << 20, "the certificate")
    if merged.resolve() == run.resolve():
        raise CheckpointError(f"{merged} cannot be compared with itself", given=f"{merged} twice", try_="--run RUN")
    said = storage.read_json(merged / storage.IDENTITY).get(MERGED) if merged.is_dir() else None
    if limits and "same_replies" in limits and not asked.prompts:
        raise RecipeError(
            "--min-same-replies: has no effect without replies",
            given="--prompts 0",
            allowed="at least one prompt",
            try_="--prompts 50",
        )
    trained = settled(locate(run, model, allow_other_base=allow_other_base))
    if trained.adapter_folder is None:
        raise CheckpointError(f"{run} has no adapter", given=str(run), allowed="the run, or its adapter folder")
    other = locate(merged, as_trained(trained))
    _same_adapter(said, trained.adapter_folder, merged, run)
    _same_vocabulary(trained, other)
    hashes = identity_of(other)
    template = trained.template.bind(trained.base.tokenizer)
    examples, questions, of_what = examples_of(trained, template, data, asked)
    try:
        _unchanged(said, hashes, merged)
        _reads_the_same(template, other, merged, examples, by_us=said is not None)
    except CheckFailed:
        output.unlink(missing_ok=True)  # a certificate that is there is of another folder than this
        raise
    found = measure(trained, other, template, examples, questions, asked)
    chosen = replace(default_limits(said or _unsaid(other)), **(limits or {}))
    made = _certificate(trained, run, other, merged, hashes, said, of_what, asked, found, chosen)
    write_file(output, json.dumps(made, indent=2) + "\n")
    for line in check.table(found, chosen):
        note(line)
    return made | {"certificate": str(output)}


def refuse_failed(certificate: Mapping[str, Any]) -> None:
    """Raise CheckFailed, which names the limits, for a certificate that did not pass."""
    if certificate["passed"]:
        return
    measured, limits, broken = (certificate[name] for name in ("measured", "limits", "broken"))
    raise CheckFailed(
        f"the merged model in {certificate['merged']['path']} is not near enough to what was trained",
        given=", ".join(f"{name} {measured[name]:.4g}" for name in broken),
        allowed=", ".join(f"{name} {'>=' if name in Limits.AT_LEAST else '<='} {limits[name]:g}" for name in broken),
        try_=f"another way to merge, or limits of your own; {certificate['certificate']} has all numbers",
    )


def identity_of(located: Located) -> dict[str, Any]:
    """The hash of what answers: `weights`, and the adapter's own where one lies on them."""
    weights, folder = located.base.checkpoint.fingerprint(), located.adapter_folder
    return {"weights": weights} | ({} if folder is None else storage.hashes(folder))


def _same_adapter(said: Mapping[str, Any] | None, adapter: Path, merged: Path, run: Path) -> None:
    """Raise CheckpointError where the merged folder says that it was made from another adapter."""
    if said is None:
        note(f"{merged} does not say what it was merged from: measured as it is")
        return
    given = storage.hashes(adapter)
    for name, what in _PARTS.items():
        if said.get(name, given[name]) != given[name]:
            raise CheckpointError(
                f"{merged} was not merged from the adapter of {run}",
                given=f"{what} {given[name][:16]} in {adapter}",
                allowed=f"{what} {str(said[name])[:16]}, once in {said.get('run')}",
                try_="the run it was merged from; after more training, merge again",
            )


def _unchanged(said: Mapping[str, Any] | None, hashes: Mapping[str, str], merged: Path) -> None:
    """Raise CheckFailed where the folder is no longer what was written."""
    known = said or {}
    if known.get("weights") not in (None, hashes["weights"]):
        raise CheckFailed(
            f"the weights in {merged} are not those that were written when it was merged",
            given=hashes["weights"][:16],
            allowed=known["weights"][:16],
        )
    for name, what in _PARTS.items():
        if name in hashes and known.get(name, hashes[name]) != hashes[name]:
            raise CheckFailed(
                f"the adapter in {merged} is not the one that was laid there",
                given=f"{what} {hashes[name][:16]}",
                allowed=f"{what} {known[name][:16]}",
            )


def _reads_the_same(
    template: Template, other: Located, merged: Path, examples: Sequence[Example], *, by_us: bool
) -> None:
    """Raise CheckFailed where the folder's tokenizer or template is another one than the run's: both are measured with
    the run's, and whoever takes the folder has its own. Another program's folder never had the run's template."""
    tokenizer = other.base.tokenizer
    found, what = reading.tokenizers_differ(template.tokenizer, tokenizer, examples), "tokenizer"
    if found is None:
        what = "template"
        try:
            found = reading.templates_differ(template, other.template.bind(tokenizer))
        except TemplateError:
            found = reading.Difference("everything", "the run's template", "no template")
    if found is None:
        return
    told = f"the {what} of {merged} makes something else of {found.where} than the one in training"
    if what == "template" and not by_us:
        note(f"{told}: {found.merged}, not {found.trained}; measured with the run's")
        return
    raise CheckFailed(told, given=found.merged, allowed=found.trained, try_="merge again, or the run's own files")


def settled(located: Located) -> Located:
    """With the device and dtype decided: `auto` times a matmul, and the next one may decide otherwise."""
    options = located.base.options
    device = pick_device(options.device)
    dtype = str(pick_dtype(options.dtype, device)).removeprefix("torch.")
    settled = options.model_copy(update={"device": str(device), "dtype": dtype})
    return replace(located, base=replace(located.base, options=settled))


def as_trained(trained: Located) -> dict[str, Any]:
    """The options of the model under which the merged one computes as the trained one does."""
    options = trained.base.options
    names = ("dtype", "device", "threads", "kernels", "family", "source", "trust_remote_code")
    return {name: getattr(options, name) for name in names}


def _same_vocabulary(trained: Located, other: Located) -> None:
    sizes = trained.base.shape.vocab_size, other.base.shape.vocab_size
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            "the merged model has another vocabulary than the trained one",
            given=f"{sizes[1]} tokens",
            allowed=f"{sizes[0]} tokens",
            try_="the model that was merged from this run",
        )


def _unsaid(other: Located) -> dict[str, Any]:
    """What is known of a folder that some other program has merged."""
    return {"into": other.quant.model_dump(mode="json"), "base": "quantised"}


def examples_of(
    trained: Located, template: Template, data: Sequence[str | Path], asked: Asked
) -> tuple[list[Example], Sequence[Example], dict[str, Any]]:
    """The first held-out conversations; those of them whose last replies are asked for, as `asked_of` has them; and
    what they are."""
    base, recipe = trained.base, trained.recipe
    longest = min(recipe.data.max_length if recipe else 2048, base.shape.max_position)
    seed = 0 if recipe is None else recipe.train.seed
    if data:
        files = {"train": [str(file) for file in data], "validation": None, "format": Auto.model_validate({})}
        options = DataOptions.model_validate({**files, "template": trained.template, "max_length": longest})
        chosen: Any = pipeline.prepare(options, base.tokenizer, template, seed=seed).train
    elif recipe is None or validation_of(recipe.data) is None:
        raise RecipeError(
            "there are no held-out conversations to measure on",
            given="an adapter folder without its run" if recipe is None else "a run without data.validation",
            allowed="a run with data.validation, or files",
            try_="--data FILE",
        )
    else:
        options = recipe.data.model_copy(update={"max_length": longest})
        chosen = pipeline.prepare(options, base.tokenizer, template, seed=seed).validation
    examples = [chosen[i] for i in range(min(asked.conversations, len(chosen)))]
    if not examples:
        raise DataError("no held-out conversation is left to measure on", try_="--data FILE")
    where = [str(file) for file in data] or "the run's data.validation"
    questions = asked_of(examples[: asked.prompts], options, base.tokenizer, template)
    return examples, questions, {"from": where, "conversations": len(examples), "sha256": chosen.fingerprint}


def measure(
    trained: Located,
    other: Located,
    template: Template,
    examples: list[Example],
    questions: Sequence[Example],
    asked: Asked,
) -> Measured:
    """One model after the other: the first is gone, but for its head, when the second is read."""
    note(f"the trained model on {len(examples)} held-out conversations")
    said, held_out = _listen(trained, template, trained, asked, (examples, questions))
    give_back()
    note("the merged model on the same")
    again, _ = _listen(other, template, trained, asked, held_out)
    return check.compare(said, again, held_out, trained.base.tokenizer)


def _listen(
    located: Located,
    template: Template,
    voice: Located,
    asked: Asked,
    rows: HeldOut | tuple[list[Example], Sequence[Example]],
) -> tuple[Said, HeldOut]:
    """Load a model and listen to it. Both speak with the trained one's template and tokenizer: `voice`. `rows` are laid
    out for the first of them, from conversations and questions."""
    model, _, _ = located.load()
    held_out = rows if isinstance(rows, HeldOut) else check.held_out(*rows, model)
    engine = Engine(model, voice.base.tokenizer, template)
    return check.listen(engine, held_out, asked.replies), held_out


def _certificate(
    trained: Located,
    run: Path,
    other: Located,
    merged: Path,
    hashes: dict[str, Any],
    said: Mapping[str, Any] | None,
    of_what: dict[str, Any],
    asked: Asked,
    found: Measured,
    limits: Limits,
) -> dict[str, Any]:
    """certificate.json: both sides by hash, what was asked, what was found, what was allowed."""
    base, broken = trained.base, limits.broken(found)
    return {
        "certificate_version": 1,
        "passed": not broken,
        "broken": broken,
        "trained": {
            "path": str(run),
            "base": base.options.path,
            "base_fingerprint": base.checkpoint.fingerprint(),
            "tokenizer_fingerprint": base.tokenizer.fingerprint,
            "quant": trained.quant.model_dump(mode="json"),
            "adapter_trained_on": trained.other_base() or None,
            **{key: value for key, value in identity_of(trained).items() if key in _PARTS},
        },
        "merged": {"path": str(merged), **hashes, "how": None if said is None else dict(said)},
        "data": of_what,
        "asked": vars(asked),
        "measured": check.named(found),
        "limits": check.named(limits),
        "computed": {
            "dtype": base.options.dtype,
            "device": base.options.device,
            "threads": torch.get_num_threads(),
            "kernels": kernels.identity() if base.options.device == "cpu" else "torch",
        },
        "versions": {
            "lorikeet": version("lorikeet-llm"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
