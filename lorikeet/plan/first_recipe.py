"""What `lorikeet init` does behind its questions: looks at model, data and machine, chooses, and says what it found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorikeet.adapters._contract import Adapter
from lorikeet.base import machine as system
from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.sources import options_of, validation_of
from lorikeet.data.web import is_url
from lorikeet.models.causal_lm import Shape
from lorikeet.models.families._contract import Family
from lorikeet.models.load import pick_device, pick_dtype
from lorikeet.models.spec import DecoderSpec, Spec
from lorikeet.plan import purposes, simulate, speed
from lorikeet.plan.checkup import BUSY
from lorikeet.plan.choose import Choice, Machine, Method, Network, choose
from lorikeet.plan.look import SAMPLE, Look, look
from lorikeet.plan.memory import GIB, Sizes
from lorikeet.plan.purposes import Purpose
from lorikeet.plan.recipe_text import beside, render
from lorikeet.plan.trained import trained_by
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from lorikeet.tokens._contract import Tokenizer

SLOW_EPOCH = 6 * 3600  # seconds; longer ones deserve a word


@dataclass(frozen=True)
class First:
    """A recipe to be written, and what to say about it."""

    text: str
    found: Look
    network: Network
    machine: Machine
    choice: Choice


def network_of(name: str, family: str, spec: Spec) -> Network:
    """The model that `models.load.identify` found."""
    shape: Shape = spec.shape
    return Network(name, family, Sizes.of(shape, tied=isinstance(spec, DecoderSpec) and spec.tied), shape.max_position)


def method_of(kind: str, family: Family, spec: Spec) -> Method:
    """What an adapter of this kind, with its defaults, trains in a model. Raises RecipeError for a kind that does not
    exist, or cannot be in this model."""
    known = kinds("lorikeet.adapters")
    if kind not in known:
        near = nearest(kind, known)
        raise RecipeError(
            f"--adapter: there is no '{kind}'", given=kind, allowed=" ".join(known), try_=f"--adapter {near or 'lora'}"
        )
    adapter = kind_class("lorikeet.adapters", Adapter, kind).model_validate({})
    trained = trained_by(adapter, simulate.Network(family, spec, NoQuant(), torch.bfloat16))
    over_nf4 = adapter.quant_refusal(NF4(double_quant=True)) is None
    return Method(kind, trained, adapter.usual_rate, over_nf4, adapter.context_taken)


def this_machine() -> Machine:
    """Measured now: about a second."""
    busy = system.busy_elsewhere()
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = system.memory()[1]
    cores, threads = system.usable_cores(), torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        flops = speed.matmul_flops(dtype, device, seconds=0.5)
    finally:
        torch.set_num_threads(threads)
    all_cores = os.cpu_count() or 1
    name = str(dtype).removeprefix("torch.")
    return Machine(device.type, free, name, torch.empty(0, dtype=dtype).element_size(), flops, cores, all_cores, busy)


def make(
    network: Network,
    tokenizer: Tokenizer,
    machine: Machine,
    data: Sequence[str],
    *,
    recipe: Path,
    purpose: Purpose | None,
    found: Look | None = None,
    method: Method | None = None,
) -> First:
    """Look at the data (unless `found` is given), choose, and write the text. `purpose` None: what the data look like;
    `method` None: LoRA.

    Raises DataError, TemplateError, ModelError and RecipeError for what cannot be trained."""
    found = found or look(data, tokenizer)
    purpose = purpose or purposes.suggest(found)
    purposes.check(purpose, found)
    own_split = bool(validation_of(DataOptions(train=list(data), validation="auto")))
    choice = choose(found, network, machine, purpose, held_out=own_split, method=method)
    text = render(
        choice,
        found,
        network,
        machine,
        data=[named(path, recipe) for path in data],
        model=named(network.name, recipe),
        output_dir=free_name(Path("runs") / stem(data[0])),
        validation=own_split,
    )
    return First(text, found, network, machine, choice)


def named(source: str, recipe: Path) -> str:
    """How the recipe names a model or a source: paths so that they hold from everywhere, other names as they are."""
    if is_url(source) or not Path(source).expanduser().exists():
        return source
    return beside(Path(source), recipe)


def stem(source: str) -> str:
    """A folder's name after a source."""
    name = Path(options_of(source).path.rstrip("/")).name
    for ending in (".gz", ".json", ".jsonl", ".csv", ".parquet", ".txt", ".md"):
        name = name.removesuffix(ending)
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.")
    return plain or "first"


def free_name(folder: Path) -> str:
    """`folder`, or with the first number behind it under which nothing lies."""
    tried, number = folder, 2
    while tried.exists():
        tried, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return str(tried)


def facts(first: First) -> Iterator[tuple[str, str]]:
    """(what, in words) of what was found and chosen."""
    found, rows, choice, machine = first.found, first.found.rows, first.choice, first.machine
    size = first.network.sizes.parameters / 1e6
    yield "model", f"{Path(first.network.name).name}: {first.network.family}, {size:,.0f} million weights"
    kind = "texts" if found.documents else "conversations"
    counted = f"{'about ' if rows.estimated else ''}{rows.rows:,} rows of {' '.join(rows.formats)}"
    yield "data", f"{counted}; {found.distinct:,} different {kind}"
    looked = f" (of {SAMPLE:,} sampled)" if len(rows.sample) < rows.read else ""
    lengths = (
        f"half up to {found.percentile(0.5)}, 99 % up to {found.percentile(0.99)}, {found.lengths.max()} the longest"
    )
    yield "tokens", f"{lengths}{looked}"
    yield "template", found.template
    yield "purpose", f"{choice.purpose.name}: {choice.purpose.what}"
    where = f"{machine.dtype} at {machine.matmul_flops / 1e12:.2f} TFLOP/s ({machine.device})"
    yield "machine", f"{machine.memory_bytes / GIB:.1f} GiB free, {where}"
    yield "estimate", f"{choice.memory.total / GIB:.1f} GiB at the peak, good to about a fifth"
    low, high = choice.epoch_seconds
    span = " to ".join(dict.fromkeys((duration(low), duration(high))))
    yield "", f"{span} an epoch, {choice.epochs} epochs of {choice.epoch_tokens:,} tokens"


def warnings(first: First) -> list[str]:
    """What a person should look at before training."""
    found, rows, choice = first.found, first.found.rows, first.choice
    told = list(choice.told)
    if rows.placeholders:
        names = ", ".join(f"{name} ({count} rows)" for name, count in rows.placeholders.most_common(4))
        told.append(f"placeholders in the data: {names}; the model will say them as they stand: replace them first")
    if rows.unreadable:
        first_one = f"; the first: {rows.first_fault.what}" if rows.first_fault else ""
        told.append(f"{rows.unreadable} of {rows.rows:,} rows cannot be read and are left out{first_one}")
    if found.unusable:
        share = found.unusable / max(1, len(rows.sample))
        told.append(f"the template {found.template} cannot say {share:.1%} of the conversations: they are left out")
    beyond = float((found.lengths > first.network.max_position).mean())
    if beyond and not found.documents:
        told.append(
            f"{beyond:.0%} of the conversations are longer than the model's context of {first.network.max_position} "
            "tokens: they lose the start of their prompt"
        )
    if 2 * found.distinct < rows.read:
        told.append(f"only {found.distinct:,} of {rows.rows:,} rows are different: repeated rows are learned by heart")
    if choice.validation is None and "validation: auto" not in first.text:
        told.append("too few conversations to hold some out: nothing will show whether it learns or recites")
    if (busy := first.machine.busy_elsewhere) is not None and busy > BUSY:
        told.append(f"other processes took {busy:.0%} of the CPU meanwhile: alone, training takes less time than this")
    if choice.epoch_seconds[0] > SLOW_EPOCH:
        told.append("an epoch takes many hours here: a smaller model, or data.max_examples=1000 for a first look")
    return told


def duration(seconds: float) -> str:
    """1 min, 2.5 h."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
